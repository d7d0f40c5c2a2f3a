"""`detlayer.toml`, and `[tool.detlayer]` of pyproject.toml: text in, typed settings out. Never the disk.

`tables` is what may be written, and its JSON schema; `parsing` turns text into tables, with errors that name file, key
and what was meant; `substitution` fills in variables and placeholders; `layer` and `image` are what a build goes by;
`project` joins files and their members. Files and globs are read by whoever calls.
"""

from __future__ import annotations

from detlayer.building.settings.image import ImageSettings
from detlayer.building.settings.layer import LayerSettings
from detlayer.building.settings.parsing import FILE_NAME, PYPROJECT, has_section, read_image
from detlayer.building.settings.project import Files, Project, load
from detlayer.building.settings.tables import schema

__all__ = [
    "FILE_NAME",
    "PYPROJECT",
    "Files",
    "ImageSettings",
    "LayerSettings",
    "Project",
    "has_section",
    "load",
    "read_image",
    "schema",
]

"""Parse detlayer.toml and `[tool.detlayer]` of pyproject.toml into typed settings. Does no I/O.

`tables` defines the keys and the JSON schema; `parsing` turns text into tables, with errors that name file, key and a
suggestion; `substitution` fills in variables and placeholders; `layer` and `image` are the checked settings; `project`
joins files and their members. The caller provides access to files.
"""

from __future__ import annotations

from detlayer.building.settings.image import ImageSettings
from detlayer.building.settings.layer import LayerSettings
from detlayer.building.settings.parsing import FILE_NAME, PYPROJECT, has_section, read_image
from detlayer.building.settings.project import Files, Project, load
from detlayer.building.settings.toml_tables import schema

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

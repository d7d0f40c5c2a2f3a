"""An image from a base, layers and settings: config, manifest, and an index over platforms. Never network or disk.

Carries out image-spec config.md, manifest.md and image-index.md, and Docker's manifest v2 schema 2; SPEC 7.1 for how
JSON is spelt. The same inputs give the same bytes.
"""

from __future__ import annotations

from detlayer.image.assembly import (
    DEFAULT_CREATED,
    Base,
    Part,
    assemble,
    configure,
    index,
    parse_base,
    runs_on,
    scratch,
)
from detlayer.image.media import Format, layer_type
from detlayer.image.runtime import EnvChange, HealthCheck, Runtime, merge_env

__all__ = [
    "DEFAULT_CREATED",
    "Base",
    "EnvChange",
    "Format",
    "HealthCheck",
    "Part",
    "Runtime",
    "assemble",
    "configure",
    "index",
    "layer_type",
    "merge_env",
    "parse_base",
    "runs_on",
    "scratch",
]

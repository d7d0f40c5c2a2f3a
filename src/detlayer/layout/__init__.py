"""What others wrote, opened for reading: layer files, OCI layouts in directories and archives, and what docker saves.

All of it is hostile until its digests say otherwise: nothing is extracted, names are only ever looked up, and
documents, their number and their depth are bounded.
"""

from __future__ import annotations

from detlayer.layout.file import OpenFile, find_kind, open_file, open_layer, read_bounded
from detlayer.layout.images import SAVED, Image, Layout, LayoutName, Measure, name_layout, open_layout, split_name
from detlayer.layout.source import SOURCE, FileBody, OpenedFile, OpenedImage, open_image

__all__ = [
    "SAVED",
    "SOURCE",
    "FileBody",
    "Image",
    "Layout",
    "LayoutName",
    "Measure",
    "OpenFile",
    "OpenedFile",
    "OpenedImage",
    "find_kind",
    "name_layout",
    "open_file",
    "open_image",
    "open_layer",
    "open_layout",
    "read_bounded",
    "split_name",
]

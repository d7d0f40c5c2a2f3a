"""What others wrote, opened for reading: layer files, OCI layouts in directories and archives, and what docker saves.

All of it is hostile until its digests say otherwise: nothing is extracted, names are only ever looked up, and
documents, their number and their depth are bounded.
"""

from __future__ import annotations

from detlayer.layout.file import OpenFile, begins_like_layer, looks_like_layer, open_file, open_layer, read_bounded
from detlayer.layout.images import Image, Layout, LayoutName, Measure, name_layout, open_layout
from detlayer.layout.source import SOURCE, FileBody, OpenedFile, OpenedImage, open_image

__all__ = [
    "SOURCE",
    "FileBody",
    "Image",
    "Layout",
    "LayoutName",
    "Measure",
    "OpenFile",
    "OpenedFile",
    "OpenedImage",
    "begins_like_layer",
    "looks_like_layer",
    "name_layout",
    "open_file",
    "open_image",
    "open_layer",
    "open_layout",
    "read_bounded",
]

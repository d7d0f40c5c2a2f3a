"""Where blobs and images go: files, streams, OCI layouts, archives. What is written appears whole or not at all.

`archive` is imported by itself: a pack needs none of what it needs.
"""

from __future__ import annotations

from detlayer.sink.layout import LayoutWriter, PartialBlob
from detlayer.sink.output import FileOutput, LayoutOutput, Output, Outputs, StreamOutput, Tee

__all__ = [
    "FileOutput",
    "LayoutOutput",
    "LayoutWriter",
    "Output",
    "Outputs",
    "PartialBlob",
    "StreamOutput",
    "Tee",
]

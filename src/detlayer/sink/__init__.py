"""Where blobs and images go: files, streams, OCI layouts, archives. What is written appears whole or not at all.

`archive` is imported by itself: a pack needs nothing of what it needs.
"""

from __future__ import annotations

from detlayer.sink.layout import LayoutWriter, PartialBlob
from detlayer.sink.output import FileOutput, LayoutOutput, Output, Outputs, StreamOutput, Tee, write_file

__all__ = [
    "FileOutput",
    "LayoutOutput",
    "LayoutWriter",
    "Output",
    "Outputs",
    "PartialBlob",
    "StreamOutput",
    "Tee",
    "write_file",
]

"""Where blobs and images go: files, streams, OCI layouts, archives. What is written appears whole or not at all.

Archives load when they are first used: a pack needs nothing of what they need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from detlayer.sink.layout import LayoutWriter, PartialBlob
from detlayer.sink.output import FileOutput, LayoutOutput, Output, Outputs, StreamOutput, Tee

if TYPE_CHECKING:
    from detlayer.sink.archive import write_docker_archive as write_docker_archive
    from detlayer.sink.archive import write_oci_archive as write_oci_archive

__all__ = [
    "FileOutput",
    "LayoutOutput",
    "LayoutWriter",
    "Output",
    "Outputs",
    "PartialBlob",
    "StreamOutput",
    "Tee",
    "write_docker_archive",
    "write_oci_archive",
]


def __getattr__(name: str) -> object:
    if name in ("write_docker_archive", "write_oci_archive"):
        return getattr(import_module("detlayer.sink.archive"), name)
    raise AttributeError(f"module 'detlayer.sink' has no attribute {name!r}")

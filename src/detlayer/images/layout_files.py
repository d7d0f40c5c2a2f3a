"""Files of a layout in a directory (image-spec image-layout.md); see `archive_files` for tars."""

from __future__ import annotations

import os
from typing import Protocol

from detlayer.errors import LayerError, TreeError, printable
from detlayer.filesystem import is_dir, look
from detlayer.images.files import OpenFile, open_regular, read_bounded, unreadable
from detlayer.oci.types import MAX_DOCUMENT_BYTES, Digest

BLOBS = "blobs/sha256/"


class LayoutStorage(Protocol):
    """Files of a layout by their relative names, such as `index.json`."""

    def open(self, name: str) -> OpenFile | None:
        """Open a file; None if it is not found. Raises LayerError."""

    def holds(self, name: str) -> bool:
        """Tell whether the name exists, as any kind of file."""

    def blobs(self) -> list[str]:
        """Return the names in blobs/sha256, sorted; raises LayerError."""

    def close(self) -> None:
        """Release shared resources."""


class Directory:
    """A layout in a directory. Follows symlinks, which build systems create: digests are verified anyway."""

    def __init__(self, path: str) -> None:
        try:
            is_there = is_dir(path)
        except OSError as error:
            raise unreadable(path, error) from error
        if not is_there:
            raise TreeError(
                "layout-missing", f"OCI layout not found: {printable(path)}", "check the path: oci:DIR[:TAG]"
            )
        self._path = path

    def open(self, name: str) -> OpenFile | None:
        path = os.path.join(self._path, name)
        try:
            return open_regular(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise unreadable(path, error) from error

    def holds(self, name: str) -> bool:
        path = os.path.join(self._path, name)
        try:
            return look(path, follow_symlinks=False) is not None
        except OSError as error:
            raise unreadable(path, error) from error

    def blobs(self) -> list[str]:
        directory = os.path.join(self._path, BLOBS)
        try:
            return sorted(os.listdir(directory))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise unreadable(directory, error) from error

    def close(self) -> None:
        return


def blob_name(digest: Digest) -> str:
    """Return the relative path of a blob."""
    return f"{BLOBS}{digest.hex}"


def read_document(file: OpenFile, name: str) -> bytes:
    """Read a whole file of bounded size, and close it; raises LayerError if it is too large."""
    with file:
        data = read_bounded(file, MAX_DOCUMENT_BYTES)
    if data is None:
        raise LayerError("document-too-long", f"{name} has over {MAX_DOCUMENT_BYTES} bytes", "remove large annotations")
    return data

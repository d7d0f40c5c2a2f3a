"""Where the files of a layout are: in a directory (image-spec image-layout.md); `archive_files` has those of a tar."""

from __future__ import annotations

import os
from typing import Protocol

from detlayer.errors import LayerError, TreeError, printable
from detlayer.filesystem import is_dir, look
from detlayer.images.files import OpenFile, open_regular, read_bounded, unreadable
from detlayer.oci.types import MAX_DOCUMENT_BYTES, Digest

BLOBS = "blobs/sha256/"


class LayoutStorage(Protocol):
    """Files of a layout by their names in it, such as `index.json`."""

    def open(self, name: str) -> OpenFile | None:
        """Open a file; None if there is none. Raises LayerError."""

    def holds(self, name: str) -> bool:
        """Tell whether anything has that name, if it is no file."""

    def blobs(self) -> list[str]:
        """Name all that lies in blobs/sha256, in order; raises LayerError."""

    def close(self) -> None:
        """Release what was opened for all files."""


class Directory:
    """A layout in a directory. Symlinks are followed: build systems write them, and digests are the judge."""

    def __init__(self, path: str) -> None:
        try:
            is_there = is_dir(path)
        except OSError as error:
            raise unreadable(path, error) from error
        if not is_there:
            raise TreeError(
                "layout-missing", f"there is no OCI layout {printable(path)}", "check the path: oci:DIR[:TAG]"
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
    """Name the file that holds a blob."""
    return f"{BLOBS}{digest.hex}"


def read_document(file: OpenFile, name: str) -> bytes:
    """Read a whole file of bounded size, and close it; raises LayerError for one that is too large."""
    with file:
        data = read_bounded(file, MAX_DOCUMENT_BYTES)
    if data is None:
        raise LayerError(
            "document-too-long", f"{name} has over {MAX_DOCUMENT_BYTES} bytes", "registries refuse such manifests"
        )
    return data

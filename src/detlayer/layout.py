"""OCI layouts read back: a directory, or an archive of one (image-spec image-layout.md). Knows no tar fields, no image.

A layout comes from anywhere: nothing is extracted, names are only ever looked up, and documents are bounded. An archive
is indexed in one pass, and its blobs are read where they stand.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Protocol, Self

from detlayer.blob import BlobReader, Readable
from detlayer.errors import LayerError, TreeError, printable
from detlayer.oci import Digest
from detlayer.tar import BLOCK_BYTES, padding
from detlayer.untar import TarReader

MAX_DOCUMENT_BYTES = 4 << 20  # what registries take for a manifest (distribution-spec)
_MAX_MEMBERS = 100_000
_PIECE_BYTES = 1 << 20
_BLOBS = "blobs/sha256/"
_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst")


class Layout(Protocol):
    """A layout to read. Files are named as in the layout, `index.json`."""

    def open(self, name: str) -> Readable | None:
        """Open a file; None if there is none. Closed with the layout, or by the next call."""

    def blobs(self) -> list[str]:
        """Name all that lies in blobs/sha256, in order."""

    def close(self) -> None:
        """Release what was opened."""


class DirLayout:
    """A layout in a directory. Symlinks are followed: build systems write them, and digests are the judge."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def open(self, name: str) -> Readable | None:
        self.close()
        try:
            # Not blocking: a FIFO of that name must not hold us up.
            fd = os.open(os.path.join(self._path, name), os.O_RDONLY | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(os.path.join(self._path, name), error) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return None
        self._file = os.fdopen(fd, "rb")
        return self._file

    def blobs(self) -> list[str]:
        directory = os.path.join(self._path, _BLOBS)
        try:
            return sorted(os.listdir(directory))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _unreadable(directory, error) from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class ArchiveLayout:
    """A layout in a tar, which may be compressed: then it is decompressed to a temporary file first."""

    def __init__(self, path: str, *, max_expansion: int) -> None:
        try:
            self._file: BinaryIO = open(path, "rb")  # noqa: SIM115  (closed by `close`)
        except OSError as error:
            raise _unreadable(path, error) from error
        self._places: dict[str, tuple[int, int]] = {}
        try:
            if self._file.read(4)[:2] in (b"\x1f\x8b", b"\x28\xb5"):
                self._expand(max_expansion)
            self._index(path)
        except OSError as error:
            self.close()
            raise _unreadable(path, error) from error
        except BaseException:
            self.close()
            raise

    def _expand(self, max_expansion: int) -> None:
        self._file.seek(0)
        plain: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `close`)
        try:
            for piece in BlobReader(self._file, max_expansion=max_expansion):
                plain.write(piece)
        except BaseException:
            plain.close()
            raise
        self._file.close()
        self._file = plain

    def _index(self, path: str) -> None:
        self._file.seek(0)
        at = 0
        for member in TarReader(iter(lambda: self._file.read(_PIECE_BYTES), b"")):
            entry = member.entry
            at += len(member.blocks)
            if member.sparse:
                raise LayerError("layout-invalid", f"{printable(path)} holds sparse files", "make the archive anew")
            if entry.kind == "file" and not member.special:
                name = printable(entry.path)
                if name in self._places:
                    raise LayerError(
                        "layout-invalid", f"{printable(path)} has {name} twice", "readers would not agree which counts"
                    )
                self._places[name] = (at, entry.size_bytes)
            if len(self._places) > _MAX_MEMBERS:
                raise LayerError(
                    "layout-invalid", f"{printable(path)} has over {_MAX_MEMBERS} files", "no layout has as many"
                )
            at += entry.size_bytes + padding(entry.size_bytes)

    def open(self, name: str) -> Readable | None:
        place = self._places.get(name)
        return None if place is None else _Window(self._file, *place)

    def blobs(self) -> list[str]:
        return sorted(name.removeprefix(_BLOBS) for name in self._places if name.startswith(_BLOBS))

    def close(self) -> None:
        self._file.close()


class _Window:
    """A stretch of a file."""

    def __init__(self, file: BinaryIO, start: int, size_bytes: int) -> None:
        self._file = file
        self._left = size_bytes
        file.seek(start)

    def read(self, size: int, /) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


@contextmanager
def open_layout(path: str, *, is_archive: bool, max_expansion: int = 200) -> Iterator[Layout]:
    """Open a layout for reading; raises TreeError where there is none, LayerError for an archive that is no tar."""
    layout: Layout
    if is_archive:
        layout = ArchiveLayout(path, max_expansion=max_expansion)
    else:
        if not os.path.isdir(path):
            raise TreeError(
                "layout-missing", f"there is no OCI layout {printable(path)}", "check the path: oci:DIR[:TAG]"
            )
        layout = DirLayout(path)
    try:
        yield layout
    finally:
        layout.close()


def blob_name(digest: Digest) -> str:
    """Name the file that holds a blob."""
    return f"{_BLOBS}{digest.hex}"


def read_document(layout: Layout, name: str) -> bytes | None:
    """Read a whole file of bounded size; None if there is none. Raises LayerError for one that is too large."""
    file = layout.open(name)
    if file is None:
        return None
    parts = []
    left = MAX_DOCUMENT_BYTES + 1
    while left and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    if not left:
        raise LayerError(
            "document-too-long",
            f"{name} has over {MAX_DOCUMENT_BYTES} bytes",
            "registries refuse such manifests",
        )
    return b"".join(parts)


def looks_like_layer(path: str) -> bool:
    """Tell whether a path is a regular file that begins like a tar, or like gzip or zstd, or is named as a layer.

    The name counts, so that a layer that is empty or damaged is not taken for a source, which may well be reproducible.
    """
    try:
        if not os.path.isfile(path):
            return False
        if path.endswith(_SUFFIXES):
            return True
        with open(path, "rb") as file:
            return begins_like_layer(file.read(BLOCK_BYTES))
    except (OSError, ValueError):
        return False  # what is wrong with it is for whoever packs it to say


def begins_like_layer(head: bytes) -> bool:
    """Tell whether these are the first bytes of a tar, or of gzip or zstd."""
    return head[:2] == b"\x1f\x8b" or head[:4] == b"\x28\xb5\x2f\xfd" or head[257:262] == b"ustar"


class BlobFile:
    """A layer blob in a file, opened for each pass over it; what the system says becomes a TreeError."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._file = open(path, "rb")  # noqa: SIM115  (closed by __exit__)
        except OSError as error:
            raise _unreadable(path, error) from error

    def read(self, size: int, /) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            raise _unreadable(self._path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failed: object) -> None:
        self._file.close()


def _unreadable(path: str, error: OSError) -> TreeError:
    if isinstance(error, FileNotFoundError):
        return TreeError("source-missing", f"there is no {printable(path)}", "check the path")
    return TreeError("unreadable", f"{printable(path)} can't be read: {error.strerror}", "check its mode and owner")

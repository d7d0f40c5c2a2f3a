"""Where the files of a layout are: in a directory, or in an archive of one (image-spec image-layout.md).

An archive is indexed once, header by header, and its files are read where they stand.
"""

from __future__ import annotations

import os
import posixpath
import tempfile
from collections.abc import Iterator
from typing import Protocol

from detlayer.blob import BlobReader
from detlayer.errors import LayerError, TreeError, printable
from detlayer.layout.file import OpenFile, open_regular, read_bounded, unreadable
from detlayer.oci import MAX_DOCUMENT_BYTES, Digest
from detlayer.tar import padding
from detlayer.untar import TarReader

_MAX_MEMBERS = 100_000
_MAX_LINKS = 16
_INDEX_BYTES = 1 << 16
_BLOBS = "blobs/sha256/"


class Place(Protocol):
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
        if not os.path.isdir(path):
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
        return os.path.lexists(os.path.join(self._path, name))

    def blobs(self) -> list[str]:
        directory = os.path.join(self._path, _BLOBS)
        try:
            return sorted(os.listdir(directory))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise unreadable(directory, error) from error

    def close(self) -> None:
        return


class Archive:
    """A layout in a tar, which may be compressed: then it is decompressed to a temporary file first."""

    def __init__(self, path: str, *, max_expansion: int) -> None:
        self._path = path
        self._file = _open_archive(path)
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        try:
            with self._file.stretch(0, min(4, self._file.size_bytes)) as head:
                is_compressed = head.read(2) in (b"\x1f\x8b", b"\x28\xb5")
            if is_compressed:
                self._expand(max_expansion)
            self._index()
        except BaseException:
            self.close()
            raise

    def _expand(self, max_expansion: int) -> None:
        try:
            with tempfile.TemporaryFile() as plain:
                for piece in BlobReader(self._file, max_expansion=max_expansion):
                    plain.write(piece)
                plain.flush()
                self._file.close()
                self._file = OpenFile(os.dup(plain.fileno()), self._path)
                plain.seek(0)
        except OSError as error:
            raise unreadable(self._path, error) from error

    def _index(self) -> None:
        at = 0
        walk = _Pieces(self._file)
        for member in TarReader(walk, walk.skip):
            entry = member.entry
            at += len(member.blocks)
            if member.sparse:
                raise self._invalid("holds sparse files", "make the archive anew")
            if entry.kind != "dir" and not member.special:
                name = printable(entry.path)
                if name in self._places or name in self._links:
                    raise self._invalid(f"has {name} twice", "readers would not agree which counts")
                if entry.kind == "file":
                    self._places[name] = (at, entry.size_bytes)
                else:
                    self._links[name] = _target(name, printable(entry.target), is_symlink=entry.kind == "symlink")
            if len(self._places) + len(self._links) > _MAX_MEMBERS:
                raise self._invalid(f"has over {_MAX_MEMBERS} files", "no layout has as many")
            at += entry.size_bytes + padding(entry.size_bytes)

    def _invalid(self, what: str, hint: str) -> LayerError:
        return LayerError("layout-invalid", f"{printable(self._path)} {what}", hint)

    def open(self, name: str) -> OpenFile | None:
        for _ in range(_MAX_LINKS):
            if name not in self._links:
                break
            name = self._links[name]
        place = self._places.get(name)
        return None if place is None else self._file.stretch(*place)

    def holds(self, name: str) -> bool:
        return name in self._places or name in self._links

    def blobs(self) -> list[str]:
        names = (*self._places, *self._links)
        return sorted(name.removeprefix(_BLOBS) for name in names if name.startswith(_BLOBS))

    def close(self) -> None:
        self._file.close()


class _Pieces:
    """The bytes of a file, of which those of contents are passed by."""

    def __init__(self, file: OpenFile) -> None:
        self._file = file
        self._at = 0
        self._left = file.size_bytes

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self._left:
            raise StopIteration
        with self._file.stretch(self._at, min(_INDEX_BYTES, self._left)) as stretch:
            piece = stretch.read(_INDEX_BYTES)
        self.skip(len(piece))
        return piece

    def skip(self, size: int) -> None:
        if size > self._left:
            raise LayerError("tar-truncated", "the tar ends in the middle of an entry", "fetch or make it again")
        self._at += size
        self._left -= size


def _target(name: str, target: str, *, is_symlink: bool) -> str:
    """Say where a link leads; outside of the archive there is nothing."""
    if is_symlink:
        target = posixpath.join(posixpath.dirname(name), target)
    return posixpath.normpath(target)


def blob_name(digest: Digest) -> str:
    """Name the file that holds a blob."""
    return f"{_BLOBS}{digest.hex}"


def read_document(file: OpenFile, name: str) -> bytes:
    """Read a whole file of bounded size, and close it; raises LayerError for one that is too large."""
    with file:
        data = read_bounded(file, MAX_DOCUMENT_BYTES)
    if data is None:
        raise LayerError(
            "document-too-long", f"{name} has over {MAX_DOCUMENT_BYTES} bytes", "registries refuse such manifests"
        )
    return data


def _open_archive(path: str) -> OpenFile:
    try:
        file = open_regular(path)
    except FileNotFoundError:
        file = None
    except OSError as error:
        raise unreadable(path, error) from error
    if file is None:
        raise TreeError(
            "layout-missing",
            f"there is no archive {printable(path)}",
            "check the path: oci-archive:FILE[:TAG], docker-archive:FILE[:REPO:TAG]",
        )
    return file

"""Files of a layout in a tar archive: indexed once by their headers, and read in place."""

from __future__ import annotations

import os
import posixpath
import tempfile
from collections.abc import Iterator

from detlayer.errors import LayerError, OutputError, TreeError, printable
from detlayer.images.files import OpenFile, open_regular, unreadable
from detlayer.images.layout_files import BLOBS
from detlayer.layer.decompress import BlobReader
from detlayer.layer.formats import HEAD_BYTES, check_format, format_of
from detlayer.layer.reader import TarReader
from detlayer.layer.tar import padding

_MAX_MEMBERS = 100_000
_MAX_LINKS = 16
_INDEX_BYTES = 1 << 16


class Archive:
    """A layout in a tar; a compressed one is first decompressed to a temporary file."""

    def __init__(self, path: str, *, max_expansion: int) -> None:
        self._path = path
        self._file = _open_archive(path)
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        try:
            with self._file.stretch(0, min(HEAD_BYTES, self._file.size_bytes)) as head:
                first = head.read(HEAD_BYTES)
            check_format(first, path, is_image=True)
            if format_of(first) in ("gzip", "zstd"):
                self._expand(max_expansion)
            self._index()
        except BaseException:
            self.close()
            raise

    def _expand(self, max_expansion: int) -> None:
        pieces = iter(BlobReader(self._file, max_expansion=max_expansion))
        try:
            with tempfile.TemporaryFile(buffering=0) as plain:
                for piece in pieces:
                    view = memoryview(piece)
                    while view:
                        view = view[plain.write(view) :]
                self._file.close()
                self._file = OpenFile(os.dup(plain.fileno()), self._path)
        except OSError as error:
            raise OutputError(
                "spool-full",
                f"no room to decompress {printable(self._path)} in {tempfile.gettempdir()}: {error.strerror}",
                "set TMPDIR to a directory with more room, or decompress the archive first",
            ) from error

    def _index(self) -> None:
        at = 0
        walk = _Pieces(self._file)
        for member in TarReader(walk, walk.skip):
            entry = member.entry
            at += len(member.blocks)
            if member.sparse:
                raise self._invalid("contains sparse files", "create the archive again without sparse files")
            if entry.kind != "dir" and not member.special:
                name = printable(entry.path)
                if name in self._places or name in self._links:
                    raise self._invalid(f"has {name} twice", "readers disagree: create the archive again")
                if entry.kind == "file":
                    self._places[name] = (at, entry.size_bytes)
                else:
                    self._links[name] = _target(name, printable(entry.target), is_symlink=entry.kind == "symlink")
            if len(self._places) + len(self._links) > _MAX_MEMBERS:
                raise self._invalid(f"has over {_MAX_MEMBERS} files", "this is not an OCI layout: check the path")
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
        return sorted(name.removeprefix(BLOBS) for name in names if name.startswith(BLOBS))

    def close(self) -> None:
        self._file.close()


class _Pieces:
    """The bytes of a tar; the contents of files are skipped."""

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
            raise LayerError("tar-truncated", "the tar ends in the middle of an entry", "build or pull the image again")
        self._at += size
        self._left -= size


def _target(name: str, target: str, *, is_symlink: bool) -> str:
    """Resolve the target of a link within the archive; empty if it leads outside."""
    if is_symlink:
        target = posixpath.join(posixpath.dirname(name), target)
    return posixpath.normpath(target)


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
            f"archive not found: {printable(path)}",
            "check the path: oci-archive:FILE[:TAG], docker-archive:FILE[:REPO:TAG]",
        )
    return file

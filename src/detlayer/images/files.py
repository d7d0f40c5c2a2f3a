"""Open and read layer and blob files, with system errors as DetlayerErrors."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Literal, Self

from detlayer.errors import LayerError, UnreadableError, printable
from detlayer.filesystem import look
from detlayer.layer.formats import HEAD_BYTES, check_format, format_of, is_named_as_archive
from detlayer.oci.types import MEDIA_TYPE_LAYER

if TYPE_CHECKING:
    from detlayer.oci.ports import Readable


class OpenFile:
    """An open file or a range of one. Owns its descriptor; ranges of one file have independent positions."""

    def __init__(self, fd: int, name: str, stretch: tuple[int, int] | None = None) -> None:
        self._fd = fd
        self._name = name
        self._stretch = stretch

    def read(self, size: int, /) -> bytes:
        """Read up to `size` bytes, none at the end; raises LayerError."""
        try:
            if self._stretch is None:
                return os.read(self._fd, size)
            at, left = self._stretch
            data = os.pread(self._fd, min(size, left), at)
        except OSError as error:
            raise unreadable(self._name, error) from error
        if left and size and not data:
            raise LayerError(
                "input-changed", f"{printable(self._name)} is {left} bytes shorter than before", "try again"
            )
        self._stretch = at + len(data), left - len(data)
        return data

    @property
    def stamp(self) -> tuple[int, int, int]:
        """Return values that differ after the file has changed."""
        status = self._status()
        return status.st_ino, status.st_size, status.st_mtime_ns

    @property
    def size_bytes(self) -> int:
        """The number of bytes left in the range, or the size of a whole file."""
        return self._status().st_size if self._stretch is None else self._stretch[1]

    def _status(self) -> os.stat_result:
        try:
            return os.fstat(self._fd)
        except OSError as error:
            raise unreadable(self._name, error) from error

    def stretch(self, at: int, size_bytes: int) -> OpenFile:
        """Open a part of the remaining range; it outlives this object."""
        start = self._stretch[0] if self._stretch is not None else 0
        return OpenFile(os.dup(self._fd), self._name, (start + at, size_bytes))

    def close(self) -> None:
        """Close the file; can be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failed: object) -> None:
        self.close()


def open_regular(path: str) -> OpenFile | None:
    """Open a regular file; None for other kinds. Raises OSError."""
    # Non-blocking: opening a FIFO without a writer would hang.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return OpenFile(fd, path)
    os.close(fd)
    return None


def open_file(path: str) -> OpenFile:
    """Open a layer file that is read more than once; raises LayerError, also for other file formats."""
    try:
        file = open_regular(path)
    except OSError as error:
        raise unreadable(path, error) from error
    if file is None:
        raise LayerError("input-unreadable", f"{printable(path)} is not a regular file", "save it to a file first")
    _check_head(file, path)
    return file


def open_layer(path: str | os.PathLike[str]) -> OpenFile:
    """Open a layer that is read once: a file or a pipe. Raises LayerError."""
    name = os.fspath(path)
    try:
        with open(name, "rb", buffering=0) as opened:  # fails for directories
            file = OpenFile(os.dup(opened.fileno()), name)
            if stat.S_ISREG(os.fstat(opened.fileno()).st_mode):  # a pipe's first bytes are checked by its reader
                _check_head(file, name)
            return file
    except OSError as error:
        raise LayerError("layer-unreadable", f"{printable(name)}: {error.strerror}", "check the path") from error


def _check_head(file: OpenFile, name: str) -> None:
    """Close the file and raise LayerError if its format is never that of a layer."""
    try:
        with file.stretch(0, min(HEAD_BYTES, file.size_bytes)) as head:
            check_format(head.read(HEAD_BYTES), name)
    except BaseException:
        file.close()
        raise


def read_bounded(file: Readable, limit: int) -> bytes | None:
    """Read the rest of a file; None if it has over `limit` bytes."""
    parts = []
    left = limit + 1
    while left and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts) if left else None


def find_kind(path: str) -> Literal["", "layer", "layout"]:
    """Classify a path: layer file, directory with an OCI layout, or neither. Raises LayerError.

    A file is a layer by its first bytes or its name, so that an empty or damaged one is not taken for a source tree.
    Other file formats count as layers too, and are rejected when opened.
    """
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        has = {name: _mode(os.path.join(path, name)) != 0 for name in ("oci-layout", "index.json", "blobs/sha256")}
        return "layout" if has["oci-layout"] or (has["index.json"] and has["blobs/sha256"]) else ""
    if not stat.S_ISREG(mode):
        return ""
    if is_named_as_archive(path):
        return "layer"
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise unreadable(path, error) from error
    if file is None:
        return ""
    with file:
        return "layer" if format_of(file.read(HEAD_BYTES)) else ""


def _mode(path: str) -> int:
    """Return the mode of a path; 0 if it is not found. Raises LayerError for other errors of the system."""
    try:
        status = look(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # as with a long SOURCE:DEST
            return 0
        raise unreadable(path, error) from error
    return status.st_mode if status is not None else 0


def layer_type(head: bytes) -> str:
    """Return the media type of a layer by its first bytes."""
    return MEDIA_TYPE_LAYER + {"gzip": "tar+gzip", "zstd": "tar+zstd"}.get(format_of(head), "tar")


def unreadable(name: str, error: OSError) -> UnreadableError:
    """Turn an OSError into an error for a file that cannot be read."""
    return UnreadableError(
        "input-unreadable", f"{printable(name)}: {error.strerror or error}", "check the path and its permissions"
    )

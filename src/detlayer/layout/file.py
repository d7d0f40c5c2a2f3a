"""Files as the layers and blobs that they hold: opened, read, and what the system says of them as an error of ours."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Self

from detlayer.errors import LayerError, printable
from detlayer.oci import MEDIA_TYPE_LAYER
from detlayer.presence import is_file
from detlayer.tar import BLOCK_BYTES

if TYPE_CHECKING:
    from detlayer.blob import Readable

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst")


class OpenFile:
    """A file being read, or a stretch of one. Owns its descriptor; stretches of one file do not disturb each other."""

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
                "input-changed", f"{printable(self._name)} ends {left} bytes too early", "did something cut it off?"
            )
        self._stretch = at + len(data), left - len(data)
        return data

    @property
    def stamp(self) -> tuple[int, int, int]:
        """What is another after the file has changed."""
        status = self._status()
        return status.st_ino, status.st_size, status.st_mtime_ns

    @property
    def size_bytes(self) -> int:
        """How much there is to read; of a file as a whole, how long it is."""
        return self._status().st_size if self._stretch is None else self._stretch[1]

    def _status(self) -> os.stat_result:
        try:
            return os.fstat(self._fd)
        except OSError as error:
            raise unreadable(self._name, error) from error

    def stretch(self, at: int, size_bytes: int) -> OpenFile:
        """Open a part of what is left of a stretch, or of a file as a whole; it outlives this one."""
        start = self._stretch[0] if self._stretch is not None else 0
        return OpenFile(os.dup(self._fd), self._name, (start + at, size_bytes))

    def close(self) -> None:
        """Close the file; once is enough."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failed: object) -> None:
        self.close()


def open_regular(path: str) -> OpenFile | None:
    """Open a regular file; None if it is something else. Raises OSError."""
    # Not blocking: what was named may be a FIFO, which nobody writes to.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return OpenFile(fd, path)
    os.close(fd)
    return None


def open_file(path: str) -> OpenFile:
    """Open a layer file that is read more than once; raises LayerError, also for what is no regular file."""
    try:
        file = open_regular(path)
    except OSError as error:
        raise unreadable(path, error) from error
    if file is None:
        raise LayerError(
            "input-unreadable", f"{printable(path)} is no file that can be read twice", "save it as a file"
        )
    return file


def open_layer(path: str | os.PathLike[str]) -> OpenFile:
    """Open a layer that is read once: a file or a pipe. Raises LayerError."""
    name = os.fspath(path)
    try:
        with open(name, "rb", buffering=0) as file:  # it refuses directories, too
            return OpenFile(os.dup(file.fileno()), name)
    except OSError as error:
        raise LayerError("layer-unreadable", f"{printable(name)}: {error.strerror}", "check the path") from error


def read_bounded(file: Readable, limit: int) -> bytes | None:
    """Read all that is left of a file; None if that is over `limit` bytes."""
    parts = []
    left = limit + 1
    while left and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts) if left else None


def looks_like_layer(path: str) -> bool:
    """Tell whether a path is a regular file that begins like a tar, or like gzip or zstd, or is named as a layer.

    The name counts, so that a layer that is empty or damaged is not taken for a source, which may well be reproducible.
    Raises LayerError where it can't be told.
    """
    try:
        if not is_file(path):
            return False
        if path.endswith(_SUFFIXES):
            return True
        with open(path, "rb") as file:
            return begins_like_layer(file.read(BLOCK_BYTES))
    except OSError as error:
        raise unreadable(path, error) from error


def begins_like_layer(head: bytes) -> bool:
    """Tell whether these are the first bytes of a tar, or of gzip or zstd."""
    return head[:2] == b"\x1f\x8b" or head[:4] == b"\x28\xb5\x2f\xfd" or head[257:262] == b"ustar"


def layer_type(head: bytes) -> str:
    """Name the media type of a layer that begins like this."""
    suffix = "tar+gzip" if head[:2] == b"\x1f\x8b" else "tar+zstd" if head[:4] == b"\x28\xb5\x2f\xfd" else "tar"
    return MEDIA_TYPE_LAYER + suffix


def unreadable(name: str, error: OSError) -> LayerError:
    """Make an error of what the system says."""
    return LayerError(
        "input-unreadable", f"{printable(name)}: {error.strerror or error}", "check the path, and its mode and owner"
    )

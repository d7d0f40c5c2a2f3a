"""Contents spooled to disk while a layer is sorted: one unnamed file that ends with the process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress

from detlayer.errors import OutputError
from detlayer.layer.entry import ContentReader


class Spool:
    """Bytes written once and read at any offset."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="detlayer-")  # noqa: SIM115 - closed by close()
        self._end = 0

    def append(self, views: Iterable[memoryview]) -> int:
        """Write a content; returns its offset. Raises OutputError if the disk is full."""
        start = self._end
        try:
            for view in views:
                self._end += self._file.write(view)
        except OSError as error:
            raise _full(error) from error
        return start

    def flush(self) -> None:
        """Flush everything written; raises OutputError if the disk is full."""
        try:
            self._file.flush()
        except OSError as error:
            raise _full(error) from error

    def content(self, start: int, size_bytes: int, patch: tuple[int, bytes] | None = None) -> SpoolContent:
        """Return a range as content; `patch` replaces bytes at an offset in it."""
        return SpoolContent(self._file.fileno(), start, size_bytes, patch)

    def read(self, start: int, size_bytes: int) -> bytes:
        """Read a range; raises OutputError."""
        try:
            return os.pread(self._file.fileno(), size_bytes, start)
        except OSError as error:
            raise _unreadable(error) from error

    def close(self) -> None:
        with suppress(OSError):  # unwritten bytes are not needed any more
            self._file.close()


def _full(error: OSError) -> OutputError:
    message = f"no space left to sort the layer in {tempfile.gettempdir()}: {error.strerror}"
    return OutputError("spool-full", message, "set TMPDIR to a directory with more space")


def _unreadable(error: OSError) -> OutputError:
    message = f"cannot read the temporary file in {tempfile.gettempdir()}: {error.strerror}"
    return OutputError("spool-unreadable", message, "check that disk, or set TMPDIR to another directory")


class SpoolContent:
    """A range of a spool, as content and as its own reader."""

    __slots__ = ("_at", "_end", "_fd", "_patch", "_start")

    def __init__(self, fd: int, start: int, size_bytes: int, patch: tuple[int, bytes] | None) -> None:
        self._fd = fd
        self._start = self._at = start
        self._end = start + size_bytes
        self._patch = patch

    def open(self) -> ContentReader:
        self._at = self._start
        return self

    def read_into(self, buffer: memoryview) -> int:
        done = 0
        want = min(len(buffer), self._end - self._at)
        while done < want:
            try:
                count = os.preadv(self._fd, (buffer[done:want],), self._at + done)
            except OSError as error:
                raise _unreadable(error) from error
            if not count:
                break
            done += count
        if self._patch is not None and self._at == self._start:
            offset, data = self._patch
            buffer[offset : offset + len(data)] = data
        self._at += done
        return done

    def finish(self) -> bool:
        return True

    def close(self) -> None:
        return

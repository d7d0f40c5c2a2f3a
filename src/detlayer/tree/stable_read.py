"""Read files that may change at any time: each read gives one state of a file, or an error (SPEC 9.1, 9.2).

No program can set a ctime, so it shows a write even if size and mtime are set back. A new mode, owner or link moves it
as well, which is harmless: only a second read tells the two apart.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

from detlayer.errors import TreeError, printable

T = TypeVar("T")

# Linux updates its file times with its timer, every 1 to 10 ms, and may be late. A ctime without a fraction of a
# millisecond comes from a file system that rounds, to at most 2 s.
_TICK_NS = 12_000_000
_COARSE_NS = 2_000_000_000
_PIECE_BYTES = 1 << 20

CHANGED_AGAIN = "changed while it was read, and again while it was read a second time"


def settle(status: os.stat_result) -> None:
    """Wait until a change would give the file another ctime than `status` has: at most one tick of its clock."""
    ctime_ns = status.st_ctime_ns
    age_ns = time.time_ns() - ctime_ns
    if age_ns < _COARSE_NS:  # rare
        grain_ns = _TICK_NS if ctime_ns % 1_000_000 else _COARSE_NS
        if -_TICK_NS < age_ns < grain_ns:  # further in the future, no change gets the same ctime
            time.sleep((grain_ns - age_ns) / 1e9)


def difference(was: os.stat_result, now: os.stat_result) -> str | None:
    """Describe how a file changed while it was read; None if it did not.

    Empty if only its ctime changed: the bytes may be right, and a second read tells.
    """
    if now.st_ino != was.st_ino:
        return "was replaced while it was read"
    if not stat.S_ISDIR(was.st_mode):
        if now.st_size != was.st_size:
            return f"changed from {was.st_size} to {now.st_size} bytes while it was read"
        if now.st_mtime_ns != was.st_mtime_ns:
            return "was written to while it was read"
    return "" if now.st_ctime_ns != was.st_ctime_ns else None


def steady(path: bytes, was: os.stat_result, look: Callable[[], os.stat_result], read: Callable[[], T]) -> T:
    """Call `read`, and retry once if the ctime changed meanwhile; raises TreeError if the file at `path` changed.

    `was` is the stat before the first read; `look` returns the stat after each.
    """
    for _ in range(2):
        settle(was)
        found = read()
        now = look()
        how = difference(was, now)
        if how is None:
            return found
        if how:
            raise changed(path, how)
        was = now
    raise changed(path, CHANGED_AGAIN)


def read_file(path: bytes) -> bytes:
    """Read one state of a named file; raises OSError, and TreeError if it keeps changing."""
    with open(path, "rb", buffering=0) as file:
        fd = file.fileno()
        was = os.fstat(fd)
        if not stat.S_ISREG(was.st_mode):
            return file.read()

        def read() -> bytes:
            file.seek(0)
            return file.read()

        return steady(path, was, lambda: os.fstat(fd), read)


def copy_file(old: bytes, new: bytes) -> None:
    """Copy one state of a file's content; raises OSError, and TreeError if it keeps changing."""
    with open(_open_regular(old), "rb", buffering=0) as source, open(new, "wb", buffering=0) as copy:

        def write() -> None:
            source.seek(0)
            copy.seek(0)
            shutil.copyfileobj(source, copy, _PIECE_BYTES)
            copy.truncate()

        steady(old, os.fstat(source.fileno()), lambda: os.fstat(source.fileno()), write)


def _open_regular(path: bytes) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # does not wait for the writer of a FIFO
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "not a regular file", path)


def changed(path: bytes, what: str) -> TreeError:
    return TreeError("changed-while-read", f"{printable(path)} {what}", "stop the process that writes to it, or retry")


def fail(error: OSError, path: bytes) -> NoReturn:
    """Convert an OSError to a TreeError that names the path."""
    shown = printable(path)
    match error.errno:
        case errno.ENOENT:
            code, message = "vanished", f"{shown} vanished during the walk"
            hint = "stop the process that changes the tree, or retry"
        case errno.EACCES | errno.EPERM:
            code, message = "unreadable", f"{shown} can't be read: {error.strerror}"
            hint = "change its mode or owner, or --exclude it"
        case errno.ELOOP | errno.ENOTDIR:
            raise changed(path, "was replaced during the walk") from error
        case errno.ENAMETOOLONG:
            code, message = "path-too-long", f"{shown[:60]}… is too long for this system"
            hint = "start from a shorter path"
        case errno.EMFILE | errno.ENFILE:
            code, message = "too-many-open-files", f"cannot open {shown}: too many open files"
            hint = "raise the limit: ulimit -n 4096"
        case _:
            code, message = "tree-io", f"{shown}: {error.strerror}"
            hint = "check its disk or mount"
    raise TreeError(code, message, hint) from error

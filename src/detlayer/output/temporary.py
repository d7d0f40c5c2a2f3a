"""Temporary files: without a name until they are complete, or locked under a recognisable name.

A killed process leaves nothing if the file system has unnamed files (open(2), O_TMPFILE). Elsewhere, and while a file
replaces another, a temporary file has a name (`layer.entry.is_temporary`) and a lock, so that a later run can tell
whether its owner still runs.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from detlayer.layer.entry import TEMPORARY_NAME, is_temporary

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o666  # before the umask
_ATTEMPTS = 10

_Made = TypeVar("_Made")


class Temporary:
    """A file that gets its name when it is complete.

    It is created on the file system of `directory`. If it needs a temporary name, that is in `home`, by default the
    same directory, which is swept first. A missing `home` is created, and removed when empty. Raises OSError.
    """

    def __init__(self, directory: str, home: str | None = None) -> None:
        self._home = home or directory
        self._is_own_home = home is not None
        self._name = ""
        sweep(self._home)
        self._leave_home()
        self.fd = _open_unnamed(directory)
        if self.fd < 0:
            self.fd, self._name = self._open_named()

    def publish(self, path: str) -> None:
        """Name the file, replacing an existing one of that name; raises OSError."""
        if not self._name:
            try:
                _link(self.fd, path)
                return
            except FileExistsError:
                self._name = self._link_in_home()
        os.replace(self._name, path)
        self._name = ""
        self._leave_home()

    def close(self) -> None:
        """Close it; an unpublished file is removed. May be called again."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            if self._name:
                with suppress(OSError):  # its directory may have been removed
                    os.unlink(self._name)
                self._name = ""
                self._leave_home()
            os.close(fd)

    def _open_named(self) -> tuple[int, str]:
        """Create a file with a name and a lock."""
        while True:
            path = _path_in(self._home)
            fd = self._at_home(lambda path=path: os.open(path, _FLAGS | os.O_EXCL, _MODE))  # type: ignore[misc]
            if _lock(fd) and is_at(path, os.fstat(fd)):
                return fd, path
            os.close(fd)  # a sweep came before the lock

    def _link_in_home(self) -> str:
        path = _path_in(self._home)
        self._at_home(lambda: _link(self.fd, path))
        return path

    def _at_home(self, make: Callable[[], _Made]) -> _Made:
        return make_in(self._home, make) if self._is_own_home else make()

    def _leave_home(self) -> None:
        if self._is_own_home:
            with suppress(OSError):  # not empty
                os.rmdir(self._home)


def make_in(directory: str, make: Callable[[], _Made]) -> _Made:
    """Create something in a directory that is created if missing, and that others remove when it is empty.

    Raises OSError.
    """
    for _ in range(_ATTEMPTS):
        with suppress(FileNotFoundError):
            with suppress(FileExistsError):  # another process removed it between the two calls of makedirs
                os.makedirs(directory, exist_ok=True)
            return make()
    return make()


def sweep(directory: str) -> None:
    """Remove the temporary files of processes that have ended, if possible."""
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        if is_temporary(os.fsencode(name)):
            with suppress(OSError):
                _remove_abandoned(os.path.join(directory, name))


def _remove_abandoned(path: str) -> None:
    """Remove a temporary file unless a process holds its lock; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if stat.S_ISREG(status.st_mode) and is_at(path, status):
            os.unlink(path)
    finally:
        os.close(fd)


def _path_in(directory: str) -> str:
    return os.path.join(directory, TEMPORARY_NAME % os.urandom(6).hex())


def _open_unnamed(directory: str) -> int:
    """Create a file without a name, and lock it; -1 if that is not possible."""
    flag = getattr(os, "O_TMPFILE", 0)
    if not flag:
        return -1
    try:
        fd = os.open(directory, os.O_RDWR | flag | os.O_CLOEXEC, _MODE)
    except OSError:  # creating a named file will report it
        return -1
    try:
        # It can get a name only through /proc, which may not be mounted.
        if os.path.samestat(os.stat(_proc(fd)), os.fstat(fd)):
            _lock(fd)
            return fd
    except OSError:
        pass
    os.close(fd)
    return -1


def _lock(fd: int) -> bool:
    """Lock a new file; False if a sweep holds its lock. File systems without locks have no sweeps either."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _link(fd: int, path: str) -> None:
    # With a directory descriptor, which is ignored for an absolute path, os.link follows the link in /proc (linkat(2)).
    os.link(_proc(fd), path, src_dir_fd=fd, follow_symlinks=True)


def _proc(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def is_at(path: str, status: os.stat_result) -> bool:
    """Tell whether a path still refers to this file; raises OSError."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), status)
    except FileNotFoundError:
        return False

"""File locks with a time limit. They end with the process that holds them, even after a crash."""

from __future__ import annotations

import errno
import fcntl
import time

_PATIENCE_S = 3.0


def lock(fd: int, how: int) -> bool:
    """Acquire a lock (`fcntl.LOCK_SH` or `LOCK_EX`), waiting briefly; tells whether it succeeded. Raises OSError."""
    until = time.monotonic() + _PATIENCE_S
    while not try_lock(fd, how):
        if time.monotonic() >= until:
            return False
        time.sleep(0.01)
    return True


def try_lock(fd: int, how: int) -> bool:
    """Acquire a lock without waiting; raises OSError if the file system has no locks."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EINTR):
            return False
        raise
    return True

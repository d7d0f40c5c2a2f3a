"""Locks of files, for which nobody waits for ever. They end with the process that has them, however it ends."""

from __future__ import annotations

import errno
import fcntl
import time

_PATIENCE_S = 3.0


def lock(fd: int, how: int) -> bool:
    """Take a lock (`fcntl.LOCK_SH` or `LOCK_EX`), waiting a little; tells whether it is ours. Raises OSError."""
    until = time.monotonic() + _PATIENCE_S
    while not try_lock(fd, how):
        if time.monotonic() >= until:
            return False
        time.sleep(0.01)
    return True


def try_lock(fd: int, how: int) -> bool:
    """Take a lock if nobody has it; raises OSError where there are none."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EINTR):
            return False
        raise
    return True

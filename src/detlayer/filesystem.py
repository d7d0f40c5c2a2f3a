"""What is at a path. Only ENOENT and ENOTDIR mean that nothing is; for `os.path.isfile` and the like, any error does.

All functions raise OSError where it can't be told.
"""

from __future__ import annotations

import errno
import os
import stat

_ABSENT = (errno.ENOENT, errno.ENOTDIR)


def look(path: str | bytes, *, follow_symlinks: bool = True) -> os.stat_result | None:
    """Stat what is at `path`; None if nothing is."""
    try:
        return os.stat(path, follow_symlinks=follow_symlinks)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise
    except ValueError:  # no path has a NUL
        return None


def is_file(path: str | bytes) -> bool:
    """Tell whether a path leads to a regular file."""
    status = look(path)
    return status is not None and stat.S_ISREG(status.st_mode)


def is_dir(path: str | bytes) -> bool:
    """Tell whether a path leads to a directory."""
    status = look(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def real_path(path: str) -> str:
    """Resolve all symlinks of a path, whose end may be missing."""
    try:
        return os.path.realpath(path, strict=True)
    except OSError as error:
        # A symlink to itself leads nowhere; whoever opens it says so.
        if error.errno in (*_ABSENT, errno.ELOOP):
            return os.path.realpath(path)
        raise

"""Check which file is at a path. Unlike `os.path.isfile`, only ENOENT and ENOTDIR mean that there is none.

All functions raise OSError for other errors.
"""

from __future__ import annotations

import errno
import os
import stat

_ABSENT = (errno.ENOENT, errno.ENOTDIR)


def look(path: str | bytes, *, follow_symlinks: bool = True) -> os.stat_result | None:
    """Stat a path; None if nothing exists there."""
    try:
        return os.stat(path, follow_symlinks=follow_symlinks)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise
    except ValueError:  # a NUL in the path
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
    """Resolve all symlinks of a path, whose last components may be missing."""
    try:
        return os.path.realpath(path, strict=True)
    except OSError as error:
        # A symlink to itself can't be resolved; opening it reports the error.
        if error.errno in (*_ABSENT, errno.ELOOP):
            return os.path.realpath(path)
        raise

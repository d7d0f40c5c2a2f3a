"""The files of a project on disk: found upwards, read, and listed by pattern."""

from __future__ import annotations

import errno
import os
import stat

from detlayer.config import FILE_NAME, PYPROJECT, read_tables
from detlayer.errors import ConfigError, printable

_MAX_BYTES = 64 << 20


class ProjectFiles:
    """Files by paths relative to the working directory (`config.Files`)."""

    def read(self, path: str) -> bytes | None:
        """Read a file; None if there is none. Raises ConfigError, also for what is no regular file, or too large."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would hold us up
            with os.fdopen(fd, "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError(errno.EINVAL, "it is no regular file")
                data = file.read(_MAX_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError("config-unreadable", f"{printable(path)}: {why}", "check the path") from error
        if len(data) > _MAX_BYTES:
            raise ConfigError(
                "config-unreadable", f"{printable(path)} has over {_MAX_BYTES} bytes", "is it the right file?"
            )
        return data

    def members(self, directory: str, pattern: str) -> list[str]:
        """List the directories that a pattern stands for, in order."""
        import glob

        found = glob.glob(pattern, root_dir=directory or ".")
        paths = [os.path.normpath(os.path.join(directory, one)) for one in found]
        return sorted(path for path in paths if os.path.isdir(path))

    def same(self, path: str) -> str:
        return os.path.realpath(path)


def find_project() -> str:
    """Find detlayer.toml, or a pyproject.toml with tool.detlayer, from here upwards; raises ConfigError."""
    files = ProjectFiles()
    directory = os.getcwd()
    while True:
        for name in (FILE_NAME, PYPROJECT):
            path = os.path.join(directory, name)
            if not os.path.isfile(path):
                continue
            data = files.read(path)
            if name == FILE_NAME or (data is not None and b"detlayer" in data and _is_ours(data, path)):
                return os.path.relpath(path)
        above = os.path.dirname(directory)
        if above == directory:
            raise ConfigError(
                "config-missing", f"there is no {FILE_NAME} here or above", "write one with `detlayer init`"
            )
        directory = above


def _is_ours(data: bytes, path: str) -> bool:
    """Tell whether a pyproject.toml has a table of ours; what is wrong in it is said when it is read."""
    try:
        return read_tables(data, path, {}) is not None
    except ConfigError as error:
        return error.code != "config-invalid"

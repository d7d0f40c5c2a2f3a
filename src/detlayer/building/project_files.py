"""Find, read and list the files of a project."""

from __future__ import annotations

import errno
import fnmatch
import os
import stat

from detlayer.building.settings import FILE_NAME, PYPROJECT, has_section
from detlayer.errors import ConfigError, printable
from detlayer.filesystem import is_dir, is_file

_MAX_BYTES = 64 << 20


class ProjectFiles:
    """Files on disk, relative to the working directory (`settings.Files`)."""

    def read(self, path: str) -> bytes | None:
        """Read a file; None if it does not exist. Raises ConfigError, also if it is too large or not a regular file."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a FIFO would block
            with os.fdopen(fd, "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError(errno.EINVAL, "not a regular file")
                data = file.read(_MAX_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error
        if len(data) > _MAX_BYTES:
            raise ConfigError(
                "config-unreadable",
                f"{printable(path)} is larger than {_MAX_BYTES} bytes",
                "check the path",
                file=path,
            )
        return data

    def members(self, directory: str, pattern: str) -> list[str]:
        """List the directories that match a pattern, in order."""
        try:
            found = ["/" if pattern.startswith("/") else directory]
            for part in filter(None, pattern.split("/")):
                found = [os.path.join(one, name) for one in found for name in _matching(one, part)]
            return sorted({os.path.normpath(path) for path in found if is_dir(path)})
        except (OSError, ValueError) as error:
            # `glob` would silently skip an unreadable directory and its images.
            raise _unreadable(getattr(error, "filename", None) or directory, error) from error

    def same(self, path: str) -> str:
        return os.path.realpath(path)


def find_project() -> str:
    """Find detlayer.toml, or pyproject.toml with tool.detlayer, in this directory or a parent; raises ConfigError."""
    files = ProjectFiles()
    directory = os.getcwd()
    while True:
        for name in (FILE_NAME, PYPROJECT):
            path = os.path.join(directory, name)
            try:
                has_file = is_file(path)
            except OSError as error:  # do not use a file in a parent instead
                raise _unreadable(path, error) from error
            if not has_file:
                continue
            data = files.read(path)
            if name == FILE_NAME or (data is not None and b"detlayer" in data and has_section(data, path)):
                return os.path.relpath(path)
        above = os.path.dirname(directory)
        if above == directory:
            raise ConfigError(
                "config-missing", f"no {FILE_NAME} in this or a parent directory", "create one with `detlayer init`"
            )
        directory = above


def _matching(directory: str, part: str) -> list[str]:
    """List the names in a directory that match one pattern component, as `glob` does; raises OSError."""
    if not any(one in part for one in "*?["):
        return [part]
    try:
        names = os.listdir(directory or ".")
    except (FileNotFoundError, NotADirectoryError):
        return []
    if not part.startswith("."):
        names = [name for name in names if not name.startswith(".")]
    return fnmatch.filter(names, part)


def _unreadable(path: str, error: OSError | ValueError) -> ConfigError:
    why = error.strerror if isinstance(error, OSError) else str(error)
    return ConfigError("config-unreadable", f"{printable(path)}: {why}", "check the path", file=path)

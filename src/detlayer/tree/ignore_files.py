"""Files of exclude patterns: the `.detlayerignore` of a source, and those given by option (SPEC 4.9)."""

from __future__ import annotations

import os
from collections.abc import Iterable

from detlayer.errors import ConfigError, printable
from detlayer.filesystem import is_file
from detlayer.tree.patterns import Pattern, parse_patterns, read_ignore_file
from detlayer.tree.stable_read import read_file

IGNORE_FILE = ".detlayerignore"


def read_ignore_files(paths: Iterable[str | os.PathLike[str]]) -> list[Pattern]:
    """Read files of gitignore lines; raises ConfigError."""
    found: list[Pattern] = []
    for path in paths:
        try:
            data = read_file(os.fsencode(path))
        except OSError as error:
            raise _unreadable(os.fspath(path), error) from error
        found += read_ignore_file(data, os.fspath(path))
    return found


def find_ignore_file(directory: str) -> str | None:
    """Return the path of the ignore file in a directory; None if it has none. Raises ConfigError."""
    path = os.path.join(directory, IGNORE_FILE)
    try:
        return path if is_file(path) else None
    except OSError as error:
        raise _unreadable(path, error) from error


def read_own_patterns(directory: str) -> list[Pattern]:
    """Read the ignore file of a directory, whose patterns exclude the file itself; raises ConfigError."""
    path = find_ignore_file(directory)
    # Its own pattern comes first, so that a later line can re-include it.
    return [*parse_patterns(["/" + IGNORE_FILE]), *read_ignore_files([path])] if path is not None else []


def _unreadable(path: str, error: OSError) -> ConfigError:
    return ConfigError("ignore-file", f"{printable(path)}: {error.strerror}", "check the path")

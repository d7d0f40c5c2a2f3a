"""Sources, and which of their files are included. Reads nothing."""

from __future__ import annotations

from typing import Literal

import msgspec

from detlayer.errors import printable
from detlayer.tree.patterns import Pattern


class Source(msgspec.Struct, frozen=True):
    """A directory or file to pack. `path` is followed if it is a symlink.

    `dest` is its destination, without leading or trailing slashes: the contents of a directory go below it, a file gets
    this path. `patterns` apply to paths relative to a directory.
    """

    path: bytes
    dest: bytes = b""
    patterns: tuple[Pattern, ...] = ()

    def __str__(self) -> str:
        return printable(self.path)


class Selection(msgspec.Struct, frozen=True):
    """Which files of the sources are included, and what is added. Paths have no leading or trailing slashes."""

    hardlinks: Literal["separate", "preserve"] = "separate"
    special: Literal["error", "skip"] = "error"
    retime_pyc: bool = True
    whiteouts: tuple[bytes, ...] = ()
    opaques: tuple[bytes, ...] = ()
    allowed_parents: frozenset[bytes] = frozenset()

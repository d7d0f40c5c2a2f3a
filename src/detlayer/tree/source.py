"""What a user names: sources, and what is taken of them. Reads nothing."""

from __future__ import annotations

from typing import Literal

import msgspec

from detlayer.errors import printable
from detlayer.tree.patterns import Pattern


class Source(msgspec.Struct, frozen=True):
    """A directory or file to pack. `path` is followed if it is a symlink: it was named, not found.

    `dest` is where it goes, without slashes at either end: what a directory contains goes below it, a file becomes it.
    `patterns` judge paths relative to a directory.
    """

    path: bytes
    dest: bytes = b""
    patterns: tuple[Pattern, ...] = ()

    def __str__(self) -> str:
        return printable(self.path)


class Selection(msgspec.Struct, frozen=True):
    """What is taken of the sources, and what is added to them. Paths are written paths, without slashes at the ends."""

    hardlinks: Literal["separate", "preserve"] = "separate"
    special: Literal["error", "skip"] = "error"
    retime_pyc: bool = True
    whiteouts: tuple[bytes, ...] = ()
    opaques: tuple[bytes, ...] = ()
    allowed_parents: frozenset[bytes] = frozenset()

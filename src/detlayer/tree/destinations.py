"""The destinations of sources, before the walk: a tree of named paths (SPEC 4.4, 4.5)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import NoReturn

import msgspec

from detlayer.errors import ConfigError, TreeError, printable
from detlayer.layer.entry import MERGED_DIRS, OPAQUE_WHITEOUT, WHITEOUT_PREFIX, check_path
from detlayer.tree.source import Selection, Source
from detlayer.tree.stable_read import fail


class Node(msgspec.Struct):
    """A path of a destination or whiteout: a directory with its contents, one file, or a marker."""

    path: bytes
    children: dict[bytes, Node] = msgspec.field(default_factory=dict)
    roots: list[Source] = msgspec.field(default_factory=list)
    file: Source | None = None
    is_marker: bool = False

    @property
    def is_dir(self) -> bool:
        return self.file is None and not self.is_marker

    def __str__(self) -> str:
        """Name the source of this path in messages."""
        if self.file is not None or self.roots:
            return str(self.file or self.roots[0])
        if self.is_marker:
            return "--opaque" if self.path.endswith(OPAQUE_WHITEOUT) else "--whiteout"
        node = self
        while node.children and not node.roots:
            node = next(iter(node.children.values()))
        return f"the destination of {node}"


def find_destinations(sources: Sequence[Source], selection: Selection) -> Node:
    """Place every source and marker; raises TreeError for collisions, ConfigError for invalid destinations."""
    top = Node(b"")
    for source in sources:
        try:
            mode = os.stat(source.path).st_mode
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            from detlayer.tree.build_commands import find_build_command  # only for this error

            command = find_build_command(source.path)
            hint = f"run the command that creates it, probably `{command}`, or " if command else ""
            raise TreeError("source-missing", f"{source} not found", f"{hint}check the path: SOURCE[:DEST]") from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise TreeError("source-missing", f"{source} is a symlink to itself", "name another path") from error
            fail(error, source.path)
        if stat.S_ISDIR(mode):
            node = _branch(top, source.dest, selection, str(source))
            node.roots.append(source)
        elif stat.S_ISREG(mode):
            _leaf(top, source.dest, selection, str(source)).file = source
        else:
            raise TreeError("special-files", f"{source} is neither a directory nor a file", "name a directory or file")
    for path in dict.fromkeys(selection.whiteouts):
        above, slash, name = path.rpartition(b"/")
        _leaf(top, above + slash + WHITEOUT_PREFIX + name, selection, "--whiteout", is_marker=True)
    for path in dict.fromkeys(selection.opaques):
        name = path + b"/" + OPAQUE_WHITEOUT if path else OPAQUE_WHITEOUT
        _leaf(top, name, selection, "--opaque", is_marker=True)
    return top


def collide(path: bytes, one: str, other: str, detail: str = "") -> NoReturn:
    raise TreeError(
        "collision",
        f"{printable(path)} comes from both {one} and {other}{detail}",
        "exclude it from one of them, or choose another destination",
    )


def _branch(top: Node, path: bytes, selection: Selection, who: str) -> Node:
    """Return the directory at `path`, creating it and its parents as needed."""
    node = top
    if path:
        check_path(path)
        for name in path.split(b"/"):
            _check_name(name, path, who)
            below = node.path + b"/" + name if node.path else name
            if below in MERGED_DIRS and below not in selection.allowed_parents:
                shown = printable(below)
                better = shown.removeprefix("var/") if shown.startswith("var/") else f"usr/{shown}"
                better = "run/lock" if better == "lock" else better
                raise ConfigError(
                    "merged-usr-parent",
                    f"{who}: a directory /{shown} in a layer replaces the symlink of that name in current base images",
                    f"use /{better} instead, or --allow-parent /{shown} if /{shown} is a directory in the base",
                )
            node = node.children.setdefault(name, Node(below))
            if not node.is_dir:
                collide(node.path, str(node), who)
    return node


def _leaf(top: Node, path: bytes, selection: Selection, who: str, *, is_marker: bool = False) -> Node:
    check_path(path)
    above, _, name = path.rpartition(b"/")
    if not is_marker:
        _check_name(name, path, who)
    branch = _branch(top, above, selection, who)
    if name in branch.children:
        collide(path, str(branch.children[name]), who)
    leaf = branch.children[name] = Node(path, is_marker=is_marker)
    return leaf


def _check_name(name: bytes, path: bytes, who: str) -> None:
    if name.startswith(WHITEOUT_PREFIX):
        raise TreeError(
            "whiteout-name",
            f"{who}: in the destination {printable(path)}, engines interpret {printable(name)} as a whiteout",
            "choose another destination; to delete a file of the base, use --whiteout PATH",
        )

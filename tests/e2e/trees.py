"""Trees on disk, and what a tree is once a layer of it has been extracted."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from detlayer.layer.entry import DEFAULT_MTIME

PACKAGES = ("click", "msgspec", "pathspec", "pygments", "zstandard")

ODD_NAMES = (
    "ünïcödé",
    "日本語",
    "\N{PILE OF POO}",
    "sp ace",
    "new\nline",
    "tab\tcontrol\x01",
    "-dash",
    "back\\slash",
    "*star?",
    "'quote\"",
    "x" * 99,
    "y" * 100,
    "z" * 101,
    "w" * 255,
    "é" * 60,
)


@dataclass(frozen=True)
class Node:
    """One path as a layer promises it: kind, mode, content or target, mtime."""

    kind: str
    mode: int
    content: str = ""
    mtime: int = 0


def make_real_tree(path: Path) -> None:
    """Make a tree of installed packages (shared objects among them), odd names, links and long paths."""
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None
        home = Path(spec.origin or "").parent
        # Not the .pyc: packing writes another time into them.
        shutil.copytree(home, path / "lib" / home.name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    make_odd_tree(path / "odd")


def make_odd_tree(path: Path) -> None:
    path.mkdir(parents=True)
    for name in ODD_NAMES:
        (path / name).write_text(name, encoding="utf-8")
    deep = path.joinpath(*["long" * 20] * 5)
    deep.mkdir(parents=True)
    (deep / "leaf").write_bytes(b"deep")
    (path / "empty").mkdir()
    (path / "run").write_bytes(b"#!/bin/sh\n")
    (path / "run").chmod(0o700)
    (path / "secret").write_bytes(b"secret")
    (path / "secret").chmod(0o600)
    (path / "nothing").touch()
    (path / "block").write_bytes(b"b" * 512)
    (path / "large").write_bytes(b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(160_000)))
    (path / "hard").hardlink_to(path / "block")
    (path / "soft").symlink_to("block")
    (path / "absolute").symlink_to("/no/such/ünïcödé")
    (path / "long-target").symlink_to("t" * 100)
    (path / "longer-target").symlink_to("../" * 40 + "t" * 101)


def read_tree(path: Path) -> dict[str, Node]:
    """Read a tree as it is on disk."""
    return {str(found.relative_to(path)): _node(found) for found in path.rglob("*")}


def expect_tree(path: Path) -> dict[str, Node]:
    """Read a tree as it is to come out of a layer with normalized values."""
    return {name: _normalized(node) for name, node in read_tree(path).items()}


def _node(path: Path) -> Node:
    status = path.lstat()
    mode, mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
    if stat.S_ISLNK(status.st_mode):
        return Node("symlink", 0o777, os.readlink(path))  # what time and mode a link gets is the reader's affair
    if stat.S_ISDIR(status.st_mode):
        return Node("dir", mode, mtime=mtime)
    assert stat.S_ISREG(status.st_mode)
    with path.open("rb") as file:
        return Node("file", mode, hashlib.file_digest(file, "sha256").hexdigest(), mtime)


def _normalized(node: Node) -> Node:
    if node.kind == "symlink":
        return node
    executable = node.kind == "dir" or node.mode & 0o100
    return Node(node.kind, 0o755 if executable else 0o644, node.content, DEFAULT_MTIME)

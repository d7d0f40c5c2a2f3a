"""Trees on disk from dictionaries, and what is in them."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class File:
    data: bytes = b""
    mode: int = 0o644
    mtime: int | None = None


@dataclass(frozen=True)
class Link:
    target: bytes


Spec = Mapping[str, "str | bytes | File | Link | Spec"]


def make_tree(path: Path, spec: Spec) -> Path:
    """Make what `spec` says: text or bytes are files, mappings are directories. Returns `path`."""
    path.mkdir(parents=True, exist_ok=True)
    for name, what in spec.items():
        here = path / name
        match what:
            case str():
                here.write_text(what, encoding="utf-8")
            case bytes():
                here.write_bytes(what)
            case File(data, mode, mtime):
                here.write_bytes(data)
                here.chmod(mode)
                if mtime is not None:
                    os.utime(here, (mtime, mtime))
            case Link(target):
                os.symlink(target, os.fsencode(here))
            case _:
                make_tree(here, what)
    return path


def remove_deep(path: Path) -> None:
    """Remove a tree of any depth: shutil.rmtree recurses, and long paths can't be named."""
    subprocess.run(["rm", "-rf", "--", path], check=True)


def make_deep(path: Path, levels: int, name: str = "d") -> None:
    """Make a chain of directories, with a file in the innermost, by descriptors: no path is ever long."""
    path.mkdir()
    fd = os.open(path, os.O_RDONLY)
    try:
        for _ in range(levels):
            os.mkdir(name, dir_fd=fd)
            below = os.open(name, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(os.open("leaf", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd))
    finally:
        os.close(fd)


def list_files(path: Path) -> list[str]:
    """All names below, hidden ones included."""
    return sorted(str(found.relative_to(path)) for found in path.rglob("*"))


def disk_mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)

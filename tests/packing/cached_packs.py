"""Helpers for tests of the cache: packs with and without a store, an offset clock, and edits of a tree."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detlayer.layer.writer import Layer
from detlayer.packing import packer
from detlayer.packing.explanation import Explanation
from detlayer.packing.options import PackOptions
from detlayer.store import Store
from tests.layers import Words, take_outputs

LATER_S = 100.0  # with a clock this far ahead, no file on disk is young


@dataclass
class Warm:
    """The result of a pack with a store."""

    layer: Layer
    blob: bytes
    explanation: Explanation
    warnings: list[tuple[str, str]] = field(default_factory=list)


def pack_warm(cache: Path, *sources: str | Path, ahead_s: float = LATER_S, **options: Any) -> Warm:
    """Pack with a store and a clock that is ahead of the system's."""
    stream, words, heard = io.BytesIO(), Words(), list[Explanation]()
    to = take_outputs(options)
    options = {"compression": "gzip:1", "jobs": 1, "reporter": words, "explain": heard.append, **options}
    with Store(str(cache), reporter=words, clock=lambda: time.time() + ahead_s) as store:
        layer = packer.pack(sources, **{"output": stream, **to}, store=store, options=PackOptions(**options))
    return Warm(layer, stream.getvalue(), heard[0] if heard else Explanation(), words.warnings)


def pack_cold(*sources: str | Path, **options: Any) -> tuple[Layer, bytes]:
    """Pack without a store."""
    stream = io.BytesIO()
    to = take_outputs(options)
    options = {"compression": "gzip:1", "jobs": 1, **options}
    return packer.pack(sources, **{"output": stream, **to}, options=PackOptions(**options)), stream.getvalue()


def next_tick(near: Path) -> None:
    """Wait until the file system's clock has moved, so that no change is within one tick of the last stat."""
    mark = near / ".tick"
    mark.touch()
    first = mark.stat().st_ctime_ns
    while mark.stat().st_ctime_ns == first:
        mark.touch()
    mark.unlink()


# -- edits: each does nothing if its path has the wrong type

Edit = tuple[str, int, int, int]
NAMES = ("a", "b", "c.py", "d/e", "d/f", "d/g/h", "i/j", "d/__pycache__/f.cpython-311.pyc")


def edit(tree: Path, what: Edit) -> None:
    """Change a tree."""
    kind, one, other, size = what
    path, twin = tree / NAMES[one % len(NAMES)], tree / NAMES[other % len(NAMES)]
    try:
        _EDITS[kind](path, twin, size)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError, PermissionError):
        return


def _content(seed: int, size: int) -> bytes:
    return (b"%d," % seed * size)[:size]


def _write(path: Path, twin: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_content(size, size * 7))


def _append(path: Path, twin: Path, size: int) -> None:
    with open(path, "r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(_content(1, size))


def _truncate(path: Path, twin: Path, size: int) -> None:
    os.truncate(path, min(path.stat().st_size, size))


def _edit_in_place(path: Path, twin: Path, size: int) -> None:
    """Another content of the same size, with the old mtime restored."""
    status = path.stat()
    with open(path, "r+b") as file:
        file.write(_content(size + 1, status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _replace(path: Path, twin: Path, size: int) -> None:
    """Another file of the same size and mtime under the same name."""
    status = path.stat()
    beside = path.with_name("beside")
    beside.write_bytes(_content(size + 2, status.st_size))
    os.utime(beside, ns=(status.st_atime_ns, status.st_mtime_ns))
    beside.rename(path)


def _swap(path: Path, twin: Path, size: int) -> None:
    if path.is_file() and twin.is_file() and path != twin:
        beside = path.with_name("beside")
        path.rename(beside)
        twin.rename(path)
        beside.rename(twin)


def _link(path: Path, twin: Path, size: int) -> None:
    twin.parent.mkdir(parents=True, exist_ok=True)
    os.link(path, twin)


def _symlink(path: Path, twin: Path, size: int) -> None:
    path.unlink()
    path.symlink_to(f"to/{size}")


def _remove(path: Path, twin: Path, size: int) -> None:
    path.unlink()


def _remove_directory(path: Path, twin: Path, size: int) -> None:
    for child in list(path.parent.iterdir()):
        if child.is_file() and path.parent.name in ("d", "g", "i"):
            child.unlink()


def _move_away_and_back(path: Path, twin: Path, size: int) -> None:
    if path.parent.name in ("g", "i"):
        path.parent.rename(path.parent.with_name("away"))
        path.parent.with_name("away").rename(path.parent)


_EDITS: dict[str, Callable[[Path, Path, int], object]] = {
    "write": _write,
    "append": _append,
    "truncate": _truncate,
    "edit in place": _edit_in_place,
    "replace": _replace,
    "swap": _swap,
    "link": _link,
    "symlink": _symlink,
    "remove": _remove,
    "remove directory": _remove_directory,
    "move away and back": _move_away_and_back,
    "rename": lambda path, twin, size: path.rename(twin),
    "touch": lambda path, twin, size: os.utime(path, (size, size)),
    "touch now": lambda path, twin, size: os.utime(path),
    "chmod": lambda path, twin, size: path.chmod(0o700 if size % 2 else 0o644),
}
EDITS: Sequence[str] = sorted(_EDITS)

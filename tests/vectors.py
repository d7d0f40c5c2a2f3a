"""The golden vectors of fixtures/vectors, and bytes that are made by counting."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detlayer.layer.entry import DEFAULT_MTIME, Entry, EntryKind
from detlayer.layer.writer import BytesContent

ROOT = Path(__file__).parent.parent

VECTORS = ROOT / "fixtures" / "vectors"


@dataclass(frozen=True)
class Vector:
    """One golden vector: entries as the file lists them, and what has to come out."""

    name: str
    entries: tuple[Entry, ...]
    expect: dict[str, Any]


def vector_names() -> list[str]:
    return sorted(path.stem for path in VECTORS.glob("*.json") if path.stem != "codec-classes")


def load_vector(name: str) -> Vector:
    document = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    return Vector(name, tuple(_vector_entry(item) for item in document["entries"]), document["expect"])


def load_classes() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((VECTORS / "codec-classes.json").read_text(encoding="utf-8"))
    return document


def vector_content(kind: dict[str, Any] | None) -> bytes:
    if kind is None:
        return b""
    if "text" in kind:
        return str(kind["text"]).encode()
    if "repeat" in kind:
        text, times = kind["repeat"]
        return str(text).encode() * int(times)
    seed, size = kind["sha256-counter"]
    return counter_bytes(seed, size)


def counter_bytes(seed: str, size: int) -> bytes:
    """Bytes that do not compress and that anybody can make again."""
    blocks = (hashlib.sha256(f"{seed}:{i}".encode()).digest() for i in range(size // 32 + 1))
    return b"".join(blocks)[:size]


def _vector_entry(item: dict[str, Any]) -> Entry:
    kind: EntryKind = item["type"]
    data = vector_content(item.get("content"))
    mode = item.get("mode", {"dir": "755", "symlink": "777"}.get(kind, "644"))
    return Entry(
        item["path"].encode(),
        kind,
        int(mode, 8),
        item.get("uid", 0),
        item.get("gid", 0),
        item.get("mtime", DEFAULT_MTIME),
        len(data),
        item.get("target", "").encode(),
        tuple((name.encode(), bytes.fromhex(value)) for name, value in item.get("xattrs", {}).items()),
        BytesContent(data) if data else None,
    )

"""`inspect`: summarize a layer in one pass."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappush, heappushpop
from typing import Any, BinaryIO

from detlayer.errors import printable
from detlayer.images.files import open_layer
from detlayer.layer.decompress import BlobFacts, BlobReader
from detlayer.layer.entry import Entry
from detlayer.layer.reader import Member, TarReader
from detlayer.oci.ports import Readable
from detlayer.packing.options import Path

_DIR_DEPTH = 4  # sizes of directories are summed up to this depth


@dataclass(slots=True)
class LayerContents:
    """Totals of a layer. Sizes are of contents, in bytes; `directories` include everything below them."""

    facts: BlobFacts
    entries: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    content_bytes: int = 0
    biggest_files: list[tuple[int, str]] = field(default_factory=list)
    biggest_directories: list[tuple[int, str]] = field(default_factory=list)

    def to_document(self) -> dict[str, Any]:
        facts = self.facts
        return {
            "digest": str(facts.digest),
            "diff_id": str(facts.diff_id),
            "size": facts.blob_bytes,
            "tar_bytes": facts.tar_bytes,
            "compression": facts.compression,
            "chunks": len(facts.members),
            "entries": self.entries,
            "kinds": self.kinds,
            "content_bytes": self.content_bytes,
            "biggest_files": [{"path": path, "size": size} for size, path in self.biggest_files],
            "biggest_directories": [{"path": path, "size": size} for size, path in self.biggest_directories],
        }


def inspect(
    source: Path | BinaryIO,
    *,
    each: Callable[[Entry, str], None] | None = None,
    top: int = 10,
    max_expansion: int = 200,
) -> LayerContents:
    """Read a layer and summarize its contents.

    `each` is called with every entry and its kind (`dir`, `file`, `symlink`, `hardlink`, or `character device` and so
    on). Raises LayerError.
    """
    if isinstance(source, str | os.PathLike):
        with open_layer(source) as file:
            return _inspect(file, each, top, max_expansion)
    return _inspect(source, each, top, max_expansion)


def entry_document(entry: Entry, kind: str) -> dict[str, Any]:
    """Convert one entry for JSON. The reader has already rejected names that are not UTF-8."""
    document: dict[str, Any] = {
        "path": entry.path.decode(),
        "kind": kind,
        "mode": f"{entry.mode:04o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime": entry.mtime,
        "size": entry.size_bytes,
    }
    if entry.target:
        document["target"] = entry.target.decode()
    if entry.xattrs:
        document["xattrs"] = {printable(name): value.hex() for name, value in entry.xattrs}
    return document


def _inspect(
    source: Readable, each: Callable[[Entry, str], None] | None, top: int, max_expansion: int
) -> LayerContents:
    reader = BlobReader(source, max_expansion=max_expansion)
    found = LayerContents(reader.facts)
    files: list[tuple[int, str]] = []
    directories: dict[bytes, int] = {}
    for member in TarReader(reader, grow=reader.grow):
        entry, kind = member.entry, _kind(member)
        found.entries += 1
        found.kinds[kind] = found.kinds.get(kind, 0) + 1
        if each is not None:
            each(entry, kind)
        size = entry.size_bytes
        if size:
            found.content_bytes += size
            if len(files) < top:
                heappush(files, (size, printable(entry.path)))
            elif top and size > files[0][0]:
                heappushpop(files, (size, printable(entry.path)))
            parts = entry.path.split(b"/", _DIR_DEPTH)
            for depth in range(1, min(len(parts), _DIR_DEPTH + 1)):
                above = b"/".join(parts[:depth])
                directories[above] = directories.get(above, 0) + size
    found.biggest_files = sorted(files, key=lambda one: (-one[0], one[1]))
    ranked = sorted(directories.items(), key=lambda one: (-one[1], one[0]))[:top]
    found.biggest_directories = [(size, printable(path) + "/") for path, size in ranked]
    return found


def _kind(member: Member) -> str:
    return member.special or ("sparse file" if member.sparse else member.entry.kind)

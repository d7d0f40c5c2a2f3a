"""What a pack reused from the cache, and why not the rest: counts and first examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from detlayer.errors import printable

ReadReason = Literal["new", "gone", "size", "mtime", "ctime", "inode", "source", "young", "attributes"]
CacheUse = Literal["whole", "chunks", "cold"]

SHOWN = 10
READ_REASONS: dict[str, str] = {
    "new": "is new",
    "gone": "was deleted",
    "size": "has a different size",
    "mtime": "has a different modification time",
    "ctime": "was changed: different ctime",
    "inode": "was replaced: different inode or device",
    "source": "is bytecode whose source, or its time, changed",
    "young": "was changed just before it was last read",
    "attributes": "has a different mode, owner or number of links",
}


class Explanation(msgspec.Struct):
    """What was reused. `outcome` is `whole` (the layer), `chunks` (some of them), or `cold` (nothing)."""

    outcome: CacheUse = "cold"
    reason: str = ""
    is_scanned: bool = False
    """Whether one look at each file was enough: nothing changed since an earlier walk."""
    is_fresh_checkout: bool = False
    """Whether every file was read, since no stat record was known, and all contents were unchanged."""
    known: int = 0
    """Contents that were not read: their stat records are unchanged."""
    read: int = 0
    same: int = 0
    """Number of contents that were read and unchanged."""
    reasons: dict[ReadReason, int] = msgspec.field(default_factory=dict)
    examples: list[tuple[bytes, ReadReason]] = msgspec.field(default_factory=list)
    copied: int = 0
    compressed: int = 0
    kept_outputs: int = 0

    def note(self, path: bytes, reason: ReadReason) -> None:
        """Count a changed file."""
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if len(self.examples) < SHOWN:
            self.examples.append((path, reason))

    def to_lines(self) -> Iterator[str]:
        """Format it for people."""
        match self.outcome:
            case "whole":
                yield "reused the whole layer: nothing was compressed"
            case "chunks":
                total = self.copied + self.compressed
                yield f"reused {self.copied:,} of {total:,} chunks, compressed {self.compressed:,}: {self.reason}"
            case _:
                yield f"reused nothing: {self.reason}"
        if self.kept_outputs:
            yield f"  outputs that were up to date: {self.kept_outputs}"
        if self.is_scanned:
            yield "  the tree is unchanged since it was last walked"
        if self.is_fresh_checkout:
            yield "  no file has a known stat record, as in a fresh checkout: all were read and are unchanged"
        if self.known or self.read:
            yield f"  files known by their stat records: {self.known:,}; read: {self.read:,}, unchanged {self.same:,}"
        if not self.known and not self.same:  # everything is new
            return
        for path, reason in self.examples:
            yield f"  {printable(path)} {READ_REASONS[reason]}"
        more = sum(self.reasons.values()) - len(self.examples)
        if more > 0:
            counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.reasons.items()))
            yield f"  and {more:,} more (in total: {counts})"

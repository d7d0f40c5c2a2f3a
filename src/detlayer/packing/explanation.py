"""Why a pack could reuse what it did, and why not the rest: counts, and the first examples. Never prints."""

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
    "gone": "is gone",
    "size": "has another size",
    "mtime": "has another modification time",
    "ctime": "was changed: another ctime",
    "inode": "is another file: another inode or device",
    "source": "is bytecode whose source, or time, is another",
    "young": "had just been changed when it was last seen",
    "attributes": "has another mode, owner or number of links",
}


class Explanation(msgspec.Struct):
    """What was reused. `outcome` is `whole` (the layer), `chunks` (of one), or `cold` (nothing)."""

    outcome: CacheUse = "cold"
    reason: str = ""
    is_scanned: bool = False
    """Whether no file was looked at twice: everything was as an earlier walk had seen it."""
    is_fresh_checkout: bool = False
    """Whether every file was read, since none had a stat record that is known, and all held what they had held."""
    known: int = 0
    """Contents that were not read: their stat records are as they were."""
    read: int = 0
    same: int = 0
    """Of those that were read again, how many were what they had been."""
    reasons: dict[ReadReason, int] = msgspec.field(default_factory=dict)
    examples: list[tuple[bytes, ReadReason]] = msgspec.field(default_factory=list)
    copied: int = 0
    compressed: int = 0
    kept_outputs: int = 0

    def note(self, path: bytes, reason: ReadReason) -> None:
        """Count a file that is not as it was."""
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if len(self.examples) < SHOWN:
            self.examples.append((path, reason))

    def to_lines(self) -> Iterator[str]:
        """Say it to people."""
        match self.outcome:
            case "whole":
                yield "reused the whole layer: nothing was compressed"
            case "chunks":
                total = self.copied + self.compressed
                yield f"reused {self.copied:,} of {total:,} chunks, compressed {self.compressed:,}: {self.reason}"
            case _:
                yield f"reused nothing: {self.reason}"
        if self.kept_outputs:
            yield f"  outputs that held it already: {self.kept_outputs}"
        if self.is_scanned:
            yield "  everything is as it was when it was last walked"
        if self.is_fresh_checkout:
            yield "  no file has a known stat record, as in a fresh checkout: all were read, and are as they were"
        if self.known or self.read:
            yield f"  files known by their stat records: {self.known:,}; read: {self.read:,}, unchanged {self.same:,}"
        if not self.known and not self.same:  # all of it is new
            return
        for path, reason in self.examples:
            yield f"  {printable(path)} {READ_REASONS[reason]}"
        more = sum(self.reasons.values()) - len(self.examples)
        if more > 0:
            counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.reasons.items()))
            yield f"  and {more:,} more (in all: {counts})"

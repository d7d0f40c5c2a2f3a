"""Explain how two contents of one file differ, each cause under its trap (SPEC 4.8, 9.5). Does not access the disk.

Formats are recognised by their bytes, then by name. Contents are untrusted: nothing is executed or unmarshalled,
decompression is bounded, and so is the depth of archives in archives.
"""

from __future__ import annotations

from detlayer.checks.compare import content_trap, first_difference
from detlayer.checks.content import MAX_KEPT_BYTES
from detlayer.checks.content_diff.archives import explain_ar, explain_gzip, explain_tar, explain_zip
from detlayer.checks.content_diff.binaries import explain_elf, explain_pyc
from detlayer.checks.content_diff.text import as_text, explain_bytes, explain_text
from detlayer.checks.findings import Change

MAX_DEPTH = 4
MAX_INSIDE = 64  # members compared per file, at all depths: each may expand to the bound
MAX_CAUSES = 12  # per file: more of the same cause add no information


def explain(path: bytes, a: bytes, b: bytes) -> list[Change]:
    """Return what differs between two contents of `path`; at least one cause unless they are equal."""
    causes = _explain(path, a, b, MAX_DEPTH, _Allowance())
    if len(causes) > MAX_CAUSES:
        more = len(causes) - MAX_CAUSES
        causes = [*causes[:MAX_CAUSES], Change(causes[MAX_CAUSES].trap, f"and {more} more inside", "", "")]
    return causes


class _Allowance:
    """How many more members may be compared."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_INSIDE


def _explain(path: bytes, a: bytes, b: bytes, depth: int, allowance: _Allowance) -> list[Change]:
    if a == b:
        return []

    def inside(name: bytes, old: bytes, new: bytes) -> list[Change]:
        allowance.left -= 1
        if depth == 1 or allowance.left < 0:
            return _plain(name, old, new)
        return _explain(name, old, new, depth - 1, allowance)

    found: list[Change] = []
    if path.endswith(b".pyc") and a[2:4] == b[2:4] == b"\r\n":
        found = explain_pyc(a, b)
    elif a[:2] == b[:2] == b"PK":
        found = explain_zip(a, b, MAX_KEPT_BYTES, inside)
    elif a[:3] == b[:3] == b"\x1f\x8b\x08":
        found = explain_gzip(path, a, b, MAX_KEPT_BYTES, inside)
    elif a[:4] == b[:4] == b"\x7fELF":
        found = explain_elf(a, b)
    elif a[:8] == b[:8] == b"!<arch>\n":
        found = explain_ar(a, b, inside)
    elif a[257:262] == b[257:262] == b"ustar":
        found = explain_tar(a, b, inside)
    elif (old := as_text(a)) is not None and (new := as_text(b)) is not None:
        found = explain_text(path, old, new)
    return [_named(path, change) for change in found or _plain(path, a, b)]


def _plain(path: bytes, a: bytes, b: bytes) -> list[Change]:
    at = first_difference(a, b)
    return explain_bytes(a, b, at) if at is not None else []


def _named(path: bytes, change: Change) -> Change:
    """Name the trap of a file that an installer or editor left, whatever it contains."""
    return change._replace(trap=content_trap(path)) if change.trap == "content" else change

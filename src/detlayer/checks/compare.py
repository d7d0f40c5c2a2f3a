"""Compare two ordered streams of summaries; each difference has the name of its trap. Ignores where entries came from.

A summary holds an entry's values and a 16-byte digest of its content. The order is that of SPEC 3.4. `content_diff`
explains differences inside a content.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import msgspec

from detlayer.checks.content import check_name
from detlayer.checks.findings import Change
from detlayer.errors import printable
from detlayer.layer.entry import Entry
from detlayer.layer.order import order_key

DIGEST_BYTES = 16


class EntryValues(NamedTuple):
    """Values that many entries share; equal ones are one object."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime: int


class Summary(msgspec.Struct, frozen=True, gc=False):
    """A summary of an entry. `digest` is of its content; `position` is its place in the tar."""

    path: bytes
    values: EntryValues
    size_bytes: int = 0
    digest: bytes = b""
    target: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    position: int = 0
    extras: tuple[tuple[bytes, bytes], ...] = ()
    """Further values of the entry (`untar.Member.extras`)."""
    is_link: bool = False
    """Whether the content is stored elsewhere in the tar."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One path that differs. `content` is true if its bytes differ, from `offset` on."""

    path: str
    kind: Literal["added", "removed", "changed"]
    changes: tuple[Change, ...] = ()
    what: str = ""
    """What was added or removed."""
    content: bool = False
    offset: int | None = None
    raw_path: bytes = field(default=b"", repr=False)

    @property
    def traps(self) -> tuple[str, ...]:
        return tuple(sorted({change.trap for change in self.changes}))

    def explained(self, offset: int | None, causes: Sequence[Change]) -> Difference:
        """Return the same difference with the causes of its content."""
        kept = tuple(change for change in self.changes if change.field != "content" or not causes)
        return replace(self, changes=(*kept, *causes), offset=offset)

    def to_document(self) -> dict[str, Any]:
        document: dict[str, Any] = {"path": self.path, "kind": self.kind, "traps": list(self.traps)}
        if self.what:
            document["what"] = self.what
        if self.changes:
            document["changes"] = [change.to_document() for change in self.changes]
        if self.offset is not None:
            document["offset"] = self.offset
        return document


def summarise(
    entry: Entry,
    values: dict[EntryValues, EntryValues],
    position: int,
    kind: str,
    digest: bytes,
    extras: tuple[tuple[bytes, bytes], ...] = (),
) -> Summary:
    """Summarize `entry`; `values` makes equal values one object."""
    own = EntryValues(kind, entry.mode, entry.uid, entry.gid, entry.mtime)
    shared = values.setdefault(own, own)
    return Summary(entry.path, shared, entry.size_bytes, digest, entry.target, entry.xattrs, position, extras)


def compare(a: Iterable[Summary], b: Iterable[Summary]) -> Iterator[Difference]:
    """Merge two ordered streams and yield the differences; each path occurs once per side."""
    left, right = iter(a), iter(b)
    one, other = next(left, None), next(right, None)
    while one is not None or other is not None:
        if one is not None and (other is None or order_key(one.path) < order_key(other.path)):
            yield _alone(one, "removed")
            one = next(left, None)
        elif other is not None and (one is None or one.path != other.path):
            yield _alone(other, "added")
            other = next(right, None)
        elif one is not None and other is not None:
            changes = tuple(_changes(one, other))
            if changes:
                content = any(change.field == "content" for change in changes)
                yield Difference(printable(one.path), "changed", changes, content=content, raw_path=one.path)
            one, other = next(left, None), next(right, None)


def first_out_of_order(pairs: Iterable[tuple[Summary, Summary]]) -> tuple[bytes, bytes] | None:
    """Find common paths that two tars have in another order: the path, and the one that B has only after it."""
    previous: Summary | None = None
    for _, other in sorted(pairs, key=lambda pair: pair[0].position):
        if previous is not None and other.position < previous.position:
            return other.path, previous.path
        previous = other
    return None


def content_trap(path: bytes) -> str:
    """Name the trap of a content by the file name alone: installer files, leftovers of editors and systems."""
    return next((finding.trap for finding in check_name(path, False)), "content")


def first_difference(a: bytes, b: bytes) -> int | None:
    """Find the first offset that differs; None if the two are equal. A shorter one differs where it ends."""
    length = min(len(a), len(b))
    step = 1 << 16
    for at in range(0, length, step):
        if a[at : at + step] != b[at : at + step]:
            low, high = at, min(at + step, length)
            while low < high:
                middle = (low + high) // 2
                if a[low : middle + 1] == b[low : middle + 1]:
                    low = middle + 1
                else:
                    high = middle
            return low
    return None if len(a) == len(b) else length


def _alone(summary: Summary, kind: Literal["added", "removed"]) -> Difference:
    path, values = summary.path, summary.values
    what = values.kind
    if summary.target:
        what += f" to {printable(summary.target)}"
    elif what == "file":
        what += f", {summary.size_bytes} bytes"
    trap = next((finding.trap for finding in check_name(path, values.kind == "dir")), "content")
    old, new = (what, "") if kind == "removed" else ("", what)
    return Difference(printable(path), kind, (Change(trap, "entry", old, new),), what, raw_path=path)


def _changes(a: Summary, b: Summary) -> Iterator[Change]:
    old, new = a.values, b.values
    if old.kind != new.kind:
        kinds = {old.kind, new.kind}
        special = kinds - {"dir", "file", "symlink", "hardlink"}
        trap = "special-file" if special else "hardlink-form" if kinds == {"file", "hardlink"} else "content"
        yield Change(trap, "kind", old.kind, new.kind)
    if old.mode != new.mode:
        # A difference only in bits that a umask clears most likely comes from the umask.
        masked = not (old.mode ^ new.mode) & 0o7700
        yield Change("umask" if masked else "mode", "mode", f"{old.mode:04o}", f"{new.mode:04o}")
    if (old.uid, old.gid) != (new.uid, new.gid):
        yield Change("owner", "owner", f"{old.uid}:{old.gid}", f"{new.uid}:{new.gid}")
    if old.mtime != new.mtime:
        yield Change("mtime", "mtime", str(old.mtime), str(new.mtime))
    if a.xattrs != b.xattrs:
        yield from _xattr_changes(dict(a.xattrs), dict(b.xattrs))
    if a.extras != b.extras:
        yield from _extra_changes(dict(a.extras), dict(b.extras))
    if a.target != b.target and old.kind == new.kind:
        trap = "hardlink-form" if old.kind == "hardlink" else "content"
        yield Change(trap, "target", printable(a.target), printable(b.target))
    if a.digest != b.digest and {old.kind, new.kind} <= {"file", "hardlink"}:
        yield Change(content_trap(a.path), "content", f"{a.size_bytes} bytes", f"{b.size_bytes} bytes")


def _xattr_changes(a: dict[bytes, bytes], b: dict[bytes, bytes]) -> Iterator[Change]:
    for name in sorted(a.keys() | b.keys()):
        old, new = a.get(name), b.get(name)
        if old != new:
            yield Change("xattrs", f"xattr {printable(name)}", _value(old), _value(new))


def _extra_changes(a: dict[bytes, bytes], b: dict[bytes, bytes]) -> Iterator[Change]:
    for key in sorted(a.keys() | b.keys()):
        old, new = a.get(key, b""), b.get(key, b"")
        if old != new:
            is_device = key == b"device"
            name = "device" if is_device else f"record {printable(key)}"
            yield Change("special-file" if is_device else "xattrs", name, printable(old[:200]), printable(new[:200]))


def _value(raw: bytes | None) -> str:
    return "" if raw is None else raw[:32].hex() + ("…" if len(raw) > 32 else "") or "empty"

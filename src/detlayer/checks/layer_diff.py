"""Compare two layers that should be equal; each difference has the trap that explains it.

As in `diff`, `compare` compares entries and `content_diff` contents. This module adds the marks of the two runs: texts,
such as a build path, that only one of them can have written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple

from blake3 import blake3
from msgspec import structs

from detlayer.checks.compare import (
    Difference,
    EntryValues,
    Summary,
    compare,
    first_out_of_order,
    summarise,
)
from detlayer.checks.content_diff import explain
from detlayer.checks.findings import Change, Finding
from detlayer.errors import printable
from detlayer.layer.decompress import BlobReader
from detlayer.layer.order import order_key
from detlayer.layer.reader import TarReader
from detlayer.oci.ports import Readable

MAX_COMPARED_BYTES = 64 << 20
"""Bytes of differing contents kept per layer to explain them; the smallest first."""

MARKS = {"build path": "build-path-in-content", "home": "environment", "time zone": "environment"}
"""The marks of a run, and the trap that is reported if a content contains one."""


@dataclass(frozen=True, slots=True)
class Run:
    """A layer that one run made: its name in messages, how to open its blob, and the run's marks (see MARKS)."""

    name: str
    open: Callable[[], AbstractContextManager[Readable]]
    marks: Mapping[str, bytes] = field(default_factory=dict)


class _Listed(NamedTuple):
    summary: Summary
    headers: bytes


def diff_layers(expected: Run, found: Run, *, max_expansion: int = 200) -> Iterator[Finding]:
    """Report every difference between two layers; none if their tars are equal. Raises LayerError."""
    old, new = _read_entries(expected, max_expansion), _read_entries(found, max_expansion)
    pairs = [(one.summary, new[path].summary) for path, one in old.items() if path in new]
    if (order := first_out_of_order(pairs)) is not None:
        moved, other = map(printable, order)
        yield Finding("entry-order", moved, "order", f"before {other}", f"after {other}")
    differences = list(compare(_sorted(old), _sorted(new)))
    contents = {one.raw_path: max(old[one.raw_path].summary.size_bytes, new[one.raw_path].summary.size_bytes)
                for one in differences if one.content and _is_file(old, new, one)}  # fmt: skip
    wanted = set(_smallest(contents))
    left, right = (_read_contents(run, wanted, max_expansion) if wanted else {} for run in (expected, found))
    for one in differences:
        path = one.raw_path
        for change in one.changes:
            if change.field == "content" and path in wanted:
                yield from explain_content(path, left[path], right[path], expected.marks, found.marks)
            else:
                yield _finding(path, change)
    yield from _header_changes(old, new, {one.raw_path for one in differences})


def _read_entries(run: Run, max_expansion: int) -> dict[bytes, _Listed]:
    listed: dict[bytes, _Listed] = {}
    values: dict[EntryValues, EntryValues] = {}
    with run.open() as source:
        reader = BlobReader(source, max_expansion=max_expansion)
        for place, member in enumerate(TarReader(reader, grow=reader.grow)):
            digest = blake3()
            for view in member.views():
                digest.update(view)
            entry = structs.replace(member.entry, content=None)
            target = listed.get(entry.target) if entry.kind == "hardlink" else None
            content = digest.digest() if target is None else target.summary.digest  # as of the link's position
            summary = summarise(entry, values, place, member.special or entry.kind, content, tuple(member.extras))
            listed[entry.path] = _Listed(summary, member.blocks + member.map)
    return listed


def _sorted(listed: Mapping[bytes, _Listed]) -> list[Summary]:
    return sorted((one.summary for one in listed.values()), key=lambda summary: order_key(summary.path))


def _is_file(old: Mapping[bytes, _Listed], new: Mapping[bytes, _Listed], difference: Difference) -> bool:
    path = difference.raw_path
    return old[path].summary.values.kind == new[path].summary.values.kind == "file"


def _read_contents(run: Run, wanted: set[bytes], max_expansion: int) -> dict[bytes, bytes]:
    contents: dict[bytes, bytes] = {}
    with run.open() as source:
        reader = BlobReader(source, max_expansion=max_expansion)
        for member in TarReader(reader, grow=reader.grow):
            if member.entry.path in wanted:
                contents[member.entry.path] = b"".join(map(bytes, member.views()))
    return contents


def _smallest(sizes: Mapping[bytes, int]) -> Iterator[bytes]:
    left = MAX_COMPARED_BYTES
    for path in sorted(sizes, key=lambda path: sizes[path]):
        left -= sizes[path]
        if left < 0:
            return
        yield path


def _header_changes(
    old: Mapping[bytes, _Listed], new: Mapping[bytes, _Listed], explained: set[bytes]
) -> Iterator[Finding]:
    """Find headers whose bytes differ although their entries have equal values."""
    for path in sorted(old.keys() & new.keys() - explained):
        a, b = old[path].headers, new[path].headers
        if a != b:
            at = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            yield Finding("header-bytes", printable(path), f"offset {at}", b[at : at + 8].hex(), a[at : at + 8].hex())


def _finding(path: bytes, change: Change) -> Finding:
    found, wanted = change.new, change.old
    if change.field == "entry":
        found, wanted = found or "missing", wanted or "missing"
    return Finding(change.trap, printable(path), change.field, found, wanted)


def explain_content(
    path: bytes,
    expected: bytes,
    found: bytes,
    expected_marks: Mapping[str, bytes],
    found_marks: Mapping[str, bytes],
) -> Iterator[Finding]:
    """Explain how two contents of one path differ, marks of the runs first; at least one finding."""
    a, b = expected, found
    for label in sorted(found_marks.keys() & expected_marks.keys(), key=lambda label: -len(found_marks[label])):
        old, new = expected_marks[label], found_marks[label]
        trap = MARKS[label]
        if trap == "build-path-in-content" and path.endswith(b".pyc"):
            trap = "pyc-path"
        # One run writes its own mark, and the other does not write the same.
        if (new in b and new not in a) or (old in a and old not in b):
            place = b.find(new) if new in b else a.find(old)
            shown = (printable(text) if text in data else "other text" for text, data in ((new, b), (old, a)))
            yield Finding(trap, printable(path), f"{label} at offset {place}", *shown)
        a, b = a.replace(old, b""), b.replace(new, b"")
    if (a, b) != (expected, found) and (a == b or b"\0" in a):
        return  # in a binary, lengths and offsets differ as a consequence of the text
    if a == b:
        a, b = expected, found
    for change in explain(path, a, b):
        yield _finding(path, change)

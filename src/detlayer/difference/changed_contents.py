"""The second pass: read differing contents from both sides in parallel, compare and explain them.

If the two sides have them in different orders, those of one side are spooled to disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO

from detlayer.checks.compare import Difference, first_difference
from detlayer.checks.content import MAX_KEPT_BYTES
from detlayer.checks.content_diff import explain
from detlayer.difference.sides import Pieces, Side

_PIECE_BYTES = 1 << 18


def explain_contents(
    a: Side, b: Side, differences: Sequence[Difference], old: Mapping[int, bytes], new: Mapping[int, bytes]
) -> Iterator[Difference]:
    """Yield the differences with offset and causes; `old` and `new` are the positions of the contents."""
    common = set(old.values()) & set(new.values())
    old = {position: path for position, path in sorted(old.items()) if path in common}
    new = {position: path for position, path in sorted(new.items()) if path in common}
    if not common:
        return
    by_path = {one.raw_path: one for one in differences}
    pairs = _side_by_side(a, b, old, new) if list(old.values()) == list(new.values()) else _spooled(a, b, old, new)
    for path, left, right in pairs:
        offset, whole = _read_both(left, right)
        causes = explain(path, *whole) if whole is not None else []
        yield by_path[path].explained(offset, causes)


def first_offset(a: Iterable[bytes | memoryview], b: Iterable[bytes | memoryview]) -> int | None:
    """Find the first offset where two streams differ; None if they are equal. Passes on their errors."""
    left, right = iter(a), iter(b)
    one: bytes = b""
    other: bytes = b""
    at = 0
    while True:
        one = one or bytes(next(left, b""))
        other = other or bytes(next(right, b""))
        length = min(len(one), len(other))
        if not length:
            return at if one or other else None
        found = first_difference(one[:length], other[:length])
        if found is not None:
            return at + found
        at += length
        one, other = one[length:], other[length:]


def _side_by_side(
    a: Side, b: Side, old: Mapping[int, bytes], new: Mapping[int, bytes]
) -> Iterator[tuple[bytes, Pieces, Pieces]]:
    for (path, left), (other, right) in zip(a.contents(old), b.contents(new), strict=False):
        if path != other:  # a tree changed since the first pass, whose result is kept
            return
        yield path, left, right


def _spooled(
    a: Side, b: Side, old: Mapping[int, bytes], new: Mapping[int, bytes]
) -> Iterator[tuple[bytes, Pieces, Pieces]]:
    with tempfile.TemporaryFile(prefix="detlayer-diff-") as spool:
        places: dict[bytes, tuple[int, int]] = {}
        for path, pieces in a.contents(old):
            start = spool.tell()
            for piece in pieces:
                spool.write(piece)
            places[path] = (start, spool.tell())
        for path, pieces in b.contents(new):
            yield path, _stretch(spool, *places[path]), pieces


def _stretch(file: IO[bytes], start: int, end: int) -> Pieces:
    file.seek(start)
    while start < end and (piece := file.read(min(_PIECE_BYTES, end - start))):
        start += len(piece)
        yield piece


def _read_both(a: Pieces, b: Pieces) -> tuple[int | None, tuple[bytes, bytes] | None]:
    """Read two contents: whole if both are short enough to be explained, else up to the first difference."""
    left, left_whole = _start(a)
    right, right_whole = _start(b)
    if left_whole and right_whole:
        return first_difference(left, right), (left, right)
    offset = first_offset(_chain(left, a), _chain(right, b))
    return offset, None


def _start(pieces: Pieces) -> tuple[bytes, bool]:
    kept = []
    size = 0
    for piece in pieces:
        kept.append(bytes(piece))
        size += len(piece)
        if size > MAX_KEPT_BYTES:
            return b"".join(kept), False
    return b"".join(kept), True


def _chain(start: bytes, rest: Pieces) -> Pieces:
    for at in range(0, len(start), _PIECE_BYTES):
        yield start[at : at + _PIECE_BYTES]
    yield from rest

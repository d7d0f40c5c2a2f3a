"""Maps of sparse members: which ranges of a file are stored, in the four forms of GNU tar and libarchive.

A map is checked before any content is read: ranges ascend, do not overlap, end within the file, and add up to the
stored size. Anything else is a LayerError, since readers disagree on the content of the file.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from detlayer.errors import LayerError
from detlayer.layer.reader.records import NOBODY, number
from detlayer.layer.tar import BLOCK_BYTES

PREFIX = b"GNU.sparse."
MAX_SPANS = 1 << 18  # per file: a GiB with a hole at every second page has half as many
_MAX_SIZE = 1 << 63
_SLOT_BYTES = 24
# PAX 0.0 repeats offset and numbytes, 0.1 has them as a list, 1.0 before the content. The first two may omit `major`
# and `minor`.
_LISTED = frozenset(PREFIX + key for key in (b"size", b"numblocks", b"map", b"offset", b"numbytes", b"name"))
_STORED = frozenset(PREFIX + key for key in (b"realsize", b"name"))
_VERSION = (PREFIX + b"major", PREFIX + b"minor")

Records = Iterable[tuple[bytes, bytes]]
Take = Callable[[int], bytes]


class SparseMap(NamedTuple):
    """The size of a file, and the offset and length of each stored range, in sequence."""

    size_bytes: int
    flat: array[int]

    def spans(self) -> Iterator[tuple[int, int]]:
        return zip(self.flat[::2], self.flat[1::2], strict=True)


def read_header_map(block: bytes, take: Take) -> tuple[SparseMap, bytes]:
    """Parse the map of a GNU header of type `S`, and the blocks after it that belong to it; raises LayerError."""
    flat = array("q")
    size_bytes = number(block[483:495], "real size")
    blocks: list[bytes] = []
    is_ended = _add_slots(flat, block[386:482])
    more = block[482:483]
    while more != b"\0":
        if is_ended or len(flat) > 2 * MAX_SPANS:
            raise _invalid("continues after its end" if is_ended else f"has over {MAX_SPANS} ranges")
        extended = take(BLOCK_BYTES)
        blocks.append(extended)
        is_ended = _add_slots(flat, extended[:504])
        more = extended[504:505]
    return SparseMap(size_bytes, flat), b"".join(blocks)


def read_pax_map(
    records: Mapping[bytes, bytes], own: Records, stored_bytes: int, take: Take
) -> tuple[SparseMap, bytes]:
    """Parse the map of a member with `GNU.sparse` records; also returns the bytes of its content that it uses.

    `own` are the records of its own header, in order: version 0.0 repeats them. Raises LayerError.
    """
    keys = {key for key in records if key.startswith(PREFIX)}
    version = tuple(records.get(key) for key in _VERSION)
    keys -= {*_VERSION}
    if not keys <= {key for key, _ in own}:
        raise _invalid("is in a global header")
    if version == (b"1", b"0"):
        if not keys <= _STORED:
            raise _invalid("has records of two versions")
        size_bytes = _decimal(records.get(PREFIX + b"realsize", b""))
        flat, raw = _read_stored(stored_bytes, take)
        return SparseMap(size_bytes, flat), raw
    if version not in ((None, None), (b"0", b"0"), (b"0", b"1")):
        raise _invalid("has an unknown version")
    if not keys <= _LISTED:
        raise _invalid("has records of two versions")
    return SparseMap(_decimal(records.get(PREFIX + b"size", b"")), _read_listed(records, own)), b""


def check(found: SparseMap, stored_bytes: int) -> None:
    """Check that a map is consistent and matches the stored size; raises LayerError."""
    if not 0 <= found.size_bytes < _MAX_SIZE:
        raise _invalid(f"has the invalid file size {found.size_bytes}")
    end = total = 0
    for offset, length in found.spans():
        if offset < end or length < 0:
            raise _invalid("has overlapping or descending ranges")
        end = offset + length
        total += length
        if end > found.size_bytes:
            raise _invalid("exceeds the end of the file")
    if total != stored_bytes:
        raise _invalid(f"covers {total} bytes, but {stored_bytes} are stored")


def _add_slots(flat: array[int], raw: bytes) -> bool:
    """Parse the slots of a header; tells whether the map ends among them."""
    for at in range(0, len(raw), _SLOT_BYTES):
        slot = raw[at : at + _SLOT_BYTES]
        if not slot[0] or not slot[12]:
            if raw[at:].strip(b"\0"):
                raise _invalid("has gaps")
            return True
        flat.append(number(slot[:12], "offset"))
        flat.append(number(slot[12:], "length"))
    return False


def _read_listed(records: Mapping[bytes, bytes], own: Records) -> array[int]:
    flat = array("q")
    listed = records.get(PREFIX + b"map")
    pairs = [(key, value) for key, value in own if key in (PREFIX + b"offset", PREFIX + b"numbytes")]
    if listed is not None:
        if pairs:
            raise _invalid("occurs twice")
        if listed.count(b",") > 2 * MAX_SPANS:
            raise _invalid(f"has over {MAX_SPANS} ranges")
        flat.extend(_decimal(one) for one in listed.split(b",") if listed)
    else:
        for place, (key, value) in enumerate(pairs):
            if key != PREFIX + (b"numbytes" if place % 2 else b"offset"):
                raise _invalid("has an offset without a length")
            flat.append(_decimal(value))
    count = records.get(PREFIX + b"numblocks")
    if count is None and listed is None:
        raise _invalid("is missing")
    if len(flat) % 2 or (count is not None and len(flat) != 2 * _decimal(count)):
        raise _invalid("does not have the number of ranges that it declares")
    return flat


def _read_stored(stored_bytes: int, take: Take) -> tuple[array[int], bytes]:
    """Parse the decimal lines before a content, in whole blocks: their number, then offset and length of each."""
    blocks: list[bytes] = []
    text = b""

    def line() -> int:
        nonlocal text
        found, newline, rest = text.partition(b"\n")
        while not newline:
            if len(found) > 19 or (len(blocks) + 1) * BLOCK_BYTES > stored_bytes:
                raise _invalid("does not end")
            blocks.append(take(BLOCK_BYTES))
            found, newline, rest = (found + blocks[-1]).partition(b"\n")
        text = rest
        return _decimal(found)

    count = line()
    if count > MAX_SPANS:
        raise _invalid(f"has over {MAX_SPANS} ranges")
    return array("q", (line() for _ in range(2 * count))), b"".join(blocks)


def _decimal(value: bytes) -> int:
    if not value.isdigit() or len(value) > 19 or int(value) >= _MAX_SIZE:
        raise _invalid("has a number that is malformed or exceeds 64 bits")
    return int(value)


class SparseMapError(LayerError):
    """A map of a sparse file is malformed, or does not match the stored data."""


def _invalid(what: str) -> SparseMapError:
    return SparseMapError("sparse-map", f"the map of a sparse file {what}", NOBODY)

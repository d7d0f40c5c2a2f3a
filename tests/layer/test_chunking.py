"""Where the tar is cut (SPEC 6.1), by the rule and by an independent model over entry lists."""

from __future__ import annotations

from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detlayer.layer.chunking import CHUNK_MAX_BYTES, CHUNK_MIN_BYTES, cut_before
from detlayer.layer.entry import Entry
from detlayer.layer.order import order_key
from detlayer.layer.tar import encode_header
from detlayer.layer.writer import BytesContent
from tests.layers import layer_of

MIB = 1 << 20
CUTTING = next(b"f%d" % i for i in range(1000) if not crc32(b"f%d" % i) & 0xF)
PLAIN = next(b"f%d" % i for i in range(1000) if crc32(b"f%d" % i) & 0xF)


def test_limits() -> None:
    assert (CHUNK_MIN_BYTES, CHUNK_MAX_BYTES) == (1048576, 4194304)


@pytest.mark.parametrize(
    ("path", "size", "chunk", "previous", "cut"),
    [
        (CUTTING, 4 * MIB, 0, 4 * MIB, False),  # never an empty chunk
        (PLAIN, 0, 512, 0, False),
        (CUTTING, 0, MIB - 1, 0, False),
        (CUTTING, 0, MIB, 0, True),
        (PLAIN, 0, MIB, 0, False),
        (PLAIN, 0, 4 * MIB - 1, 0, False),
        (PLAIN, 0, 4 * MIB, 0, True),
        (PLAIN, 4 * MIB - 1, 512, 0, False),
        (PLAIN, 4 * MIB, 512, 0, True),
        (PLAIN, 0, 512, 4 * MIB - 1, False),
        (PLAIN, 0, 512, 4 * MIB, True),
    ],
)
def test_where_a_chunk_ends(path: bytes, size: int, chunk: int, previous: int, cut: bool) -> None:
    """SPEC 6.1."""
    assert cut_before(path, size, chunk, previous) is cut


def model(entries: list[Entry]) -> list[int]:
    """SPEC 6.1 once more, with lists of pieces instead of buffers."""
    chunks: list[int] = []
    current, previous = 0, 0
    for entry in entries:
        size = entry.size_bytes
        low_bits = crc32(entry.written_path) % 16 == 0
        big = size >= 4 * MIB or previous >= 4 * MIB or current >= 4 * MIB
        if current and (big or (current >= MIB and low_bits)):
            chunks.append(current)
            current = 0
        current += len(encode_header(entry))
        left = size
        while left > 4 * MIB:
            chunks.append(current + 4 * MIB)
            current = 0
            left -= 4 * MIB
        current += left + -size % 512
        previous = size
    if previous >= 4 * MIB:
        return [*chunks, current, 1024]
    return [*chunks, current + 1024]


ZEROS = bytes(9 * MIB)
SIZES = st.one_of(
    st.integers(0, 2000),
    st.integers(MIB // 2, 2 * MIB),
    st.sampled_from((4 * MIB - 512, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 8 * MIB, 8 * MIB + 1)),
)


@given(st.lists(SIZES, max_size=8), st.integers(0, 10**6))
@settings(max_examples=40)
def test_chunks_of_whole_layers(sizes: list[int], seed: int) -> None:
    """SPEC 6.1: chunks of whole layers follow the rule, and add up to the tar."""
    entries = []
    for i, size in enumerate(sizes):
        entries.append(Entry(b"%d-%d" % (seed + i, i), "file", size_bytes=size, content=BytesContent(ZEROS[:size])))
    entries.sort(key=lambda entry: order_key(entry.path))
    made, blob = layer_of(entries)
    assert list(made.chunks) == model(entries)
    assert sum(made.chunks) == len(blob) == made.tar_bytes


def test_a_directory_counts_with_its_slash() -> None:
    """SPEC 6.1: the CRC is of the written path."""
    fill = Entry(b"0", "file", size_bytes=MIB, content=BytesContent(ZEROS[:MIB]))
    with_slash = next(b"d%d" % i for i in range(1000) if not crc32(b"d%d/" % i) & 0xF and crc32(b"d%d" % i) & 0xF)
    without = next(b"d%d" % i for i in range(1000) if crc32(b"d%d/" % i) & 0xF and not crc32(b"d%d" % i) & 0xF)
    assert len(layer_of([fill, Entry(with_slash, "dir")])[0].chunks) == 2
    assert len(layer_of([fill, Entry(without, "dir")])[0].chunks) == 1

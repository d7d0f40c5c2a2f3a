"""The pass: order, contents, failures, workers (SPEC 3.3, 3.4, 5 to 8)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import accumulate, pairwise

import pytest
from blake3 import blake3
from hypothesis import given, settings

from detlayer.errors import LayerError, OutputError, TreeError
from detlayer.layer.chunking import CHUNK_MAX_BYTES
from detlayer.layer.codec import Codec
from detlayer.layer.entry import Entry
from detlayer.layer.pipeline import ChunkPipeline, Processor
from detlayer.layer.ports import Bytes
from detlayer.layer.tar import encode_header
from detlayer.layer.writer import BytesContent, Layer, fingerprint
from detlayer.layer.writer import pack as pack_layer
from tests import strategies
from tests.layers import MemorySink, Words, dir_entry, file_entry, layer_of
from tests.tar_headers import read_headers, read_members
from tests.vectors import counter_bytes

MIB = 1 << 20
CODECS = ("none", "gzip-libdeflate-1", "gzip-stored", "zstd-1")


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("detlayer")}


def key_of(entries: list[Entry], contents: dict[bytes, bytes]) -> str:
    """SPEC 8, in one expression."""
    parts = [encode_header(e) + (blake3(contents[e.path]).digest() if e.kind == "file" else b"") for e in entries]
    return "blake3:" + blake3(b"detlayer-key/1\n" + b"".join(parts)).hexdigest()


class FailingSink:
    """A sink that is full after some writes."""

    def __init__(self, after: int) -> None:
        self.left = after

    def write(self, data: Bytes, /) -> None:
        if not self.left:
            raise OutputError("disk-full", "no space is left", "")
        self.left -= 1


class OddContent:
    """Content whose length differs from its entry, or whose opening fails."""

    def __init__(self, data: bytes, *, error: Exception | None = None, finish_error: Exception | None = None) -> None:
        self.data = data
        self.error = error
        self.finish_error = finish_error
        self.closed = 0

    def open(self) -> OddContent:
        if self.error is not None:
            raise self.error
        return self

    def read_into(self, buffer: memoryview) -> int:
        piece, self.data = self.data[: len(buffer)], self.data[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)

    def finish(self) -> bool:
        if self.finish_error is not None:
            raise self.finish_error
        return True

    def close(self) -> None:
        self.closed += 1


@given(strategies.entry_lists())
def test_any_entries_read_back(entries: list[Entry]) -> None:
    """SPEC 5: paths and contents come back in order; the key follows SPEC 8."""
    made, tar = layer_of(entries)
    headers = read_headers(tar)
    assert [header.path for header in headers] == [entry.written_path for entry in entries]
    assert [header.size for header in headers] == [entry.size_bytes for entry in entries]
    assert [member.name.encode() for member in read_members(tar)] == [entry.path for entry in entries]
    assert made.key == key_of(entries, {header.path: header.content for header in headers})
    assert (made.entries, made.files) == (len(entries), sum(entry.kind == "file" for entry in entries))


@given(strategies.entry_lists())
@settings(max_examples=15)
def test_jobs_never_show(entries: list[Entry]) -> None:
    """SPEC 6.1."""
    for codec in CODECS:
        assert len({layer_of(entries, codec, jobs)[1] for jobs in (1, 3, 8)}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
def test_jobs_never_show_over_many_chunks(codec: str) -> None:
    """SPEC 6.1: chunks of very different cost, so that workers overtake each other."""
    entries = []
    for i in range(24):
        data = bytes(2 * MIB) if i % 2 else counter_bytes(str(i), 1 << 18) * 5
        entries.append(file_entry(f"{i:02}", data))
    results = [layer_of(entries, codec, jobs) for jobs in range(1, 9)]
    assert len({blob for _, blob in results}) == 1
    assert len({made for made, _ in results}) == 1
    assert len(results[0][0].chunks) == 8


@given(strategies.entry_lists())
@settings(max_examples=30)
def test_fingerprint_is_of_the_chunks(entries: list[Entry]) -> None:
    """SPEC 10.4: the same cuts as a pack, and no key of contents."""
    made, tar = layer_of(entries)
    at, expected = 0, blake3()
    for size in made.chunks:
        expected.update(blake3(tar[at : at + size]).digest())
        at += size
    assert {fingerprint(entries, jobs=jobs) for jobs in (1, 3)} == {expected.digest()}


def test_fingerprint_of_large_contents() -> None:
    entries = [file_entry("a", bytes(9 * MIB)), file_entry("b", counter_bytes("b", CHUNK_MAX_BYTES)), file_entry("c")]
    made, tar = layer_of(entries)
    cuts = list(accumulate(made.chunks, initial=0))
    assert len(cuts) > 4
    prints = [blake3(tar[start:end]).digest() for start, end in pairwise(cuts)]
    assert fingerprint(entries, jobs=2) == blake3(b"".join(prints)).digest()
    assert not threads()


def test_nobody_waits_for_a_thread_that_writes() -> None:
    """A chunk that is slow to write must not keep other threads from the next ones."""
    others = threading.Event()
    seen: list[int] = []

    class Slow(ChunkPipeline[int]):
        def processor(self) -> Processor[int]:
            def process(chunk: memoryview) -> int:
                if chunk[0] == 3:
                    others.set()
                return chunk[0]

            return process

        def finish(self, chunk: memoryview, made: int) -> None:
            if made == 0:
                assert others.wait(20)
            seen.append(made)

    with Slow(2) as line:
        for number in range(6):
            buffer = line.take_buffer()
            buffer[0] = number
            line.put_chunk(buffer, 1)
        line.drain()
    assert seen == list(range(6))
    assert not threads()


@pytest.mark.parametrize(
    ("paths", "code"),
    [
        (["b", "a"], "entry-order"),
        (["a", "a"], "duplicate-path"),
        (["a.b", "a/b"], "entry-order"),
        (["a", ".wh.b"], "entry-order"),
        (["a", "a/b"], "file-as-parent"),
    ],
)
def test_order_errors(paths: list[str], code: str) -> None:
    """SPEC 3.3, 3.4: and no thread stays alive."""
    with pytest.raises(LayerError) as caught:
        layer_of([file_entry(path) for path in paths])
    assert caught.value.code == code
    assert not threads()


def test_directory_children_then_sibling() -> None:
    """SPEC 3.4."""
    entries = [dir_entry("a"), file_entry("a/z"), file_entry("a-b"), file_entry("a.d")]
    assert layer_of(entries)[0].entries == 4


@pytest.mark.parametrize("size", [1, 512, CHUNK_MAX_BYTES - 1, CHUNK_MAX_BYTES, CHUNK_MAX_BYTES + 1, 9 * MIB])
def test_content_that_ends_early(size: int) -> None:
    """A short content is an error that names it, small or large; its reader is closed."""
    for missing in (1, size):
        content = OddContent(bytes(size - missing))
        with pytest.raises(TreeError, match=rf"^short became shorter than {size} bytes") as caught:
            layer_of([Entry(b"short", "file", size_bytes=size, content=content)])
        assert caught.value.code == "changed-while-read"
        assert content.closed


def test_content_longer_than_said() -> None:
    with pytest.raises(LayerError) as caught:
        layer_of([Entry(b"a", "file", size_bytes=2, content=BytesContent(b"abc"))])
    assert caught.value.code == "entry-size"


def test_content_missing() -> None:
    with pytest.raises(LayerError) as caught:
        layer_of([Entry(b"a", "file", size_bytes=2)])
    assert caught.value.code == "entry-content"


@pytest.mark.parametrize("when", ["error", "finish_error"])
def test_content_error_comes_out(when: str) -> None:
    error = TreeError("unreadable", "no", "")
    content = OddContent(b"ab", error=error if when == "error" else None, finish_error=error)
    with pytest.raises(TreeError) as caught:
        layer_of([file_entry("0", bytes(5 * MIB)), Entry(b"a", "file", size_bytes=2, content=content)])
    assert caught.value is error
    assert content.closed == (when == "finish_error")
    assert not threads()


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize("chunks", [1, 40])
def test_sink_error_comes_out(after: int, jobs: int, chunks: int) -> None:
    """Errors of the sink are raised, whichever thread was waiting, and nothing hangs."""
    entries = (file_entry(f"{i:03}", bytes(CHUNK_MAX_BYTES - 512)) for i in range(chunks))
    if chunks == 1 and after:
        assert isinstance(pack_layer(entries, FailingSink(after), codec=Codec("none"), jobs=jobs), Layer)
        return
    with pytest.raises(OutputError) as caught:
        pack_layer(entries, FailingSink(after), codec=Codec("none"), jobs=jobs)
    assert caught.value.code == "disk-full"
    assert not threads()


def test_sink_error_stops_the_reading() -> None:
    """A full disk is an error at once, not after the whole tree was read."""
    asked = 0

    def entries() -> Iterator[Entry]:
        nonlocal asked
        for i in range(500):
            asked = i
            yield file_entry(f"{i:03}", bytes(MIB))

    with pytest.raises(OutputError):
        pack_layer(entries(), FailingSink(1), codec=Codec("none"), jobs=2)
    assert asked < 100


def test_source_error_comes_out_while_the_line_works() -> None:
    def entries() -> Iterator[Entry]:
        for i in range(10):
            yield file_entry(f"{i}", counter_bytes("x", MIB * 2))
        raise TreeError("vanished", "gone", "")

    with pytest.raises(TreeError, match="gone"):
        layer_of(entries(), "zstd-19")
    assert not threads()


def test_keyboard_interrupt_in_a_sink_comes_out() -> None:
    class Stopping:
        def write(self, data: Bytes, /) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_layer([file_entry("a")], Stopping(), codec=Codec("none"))


@pytest.mark.parametrize("attribute_bytes", [5 * MIB, 11 * MIB, 25 * MIB])
def test_header_larger_than_a_buffer(attribute_bytes: int) -> None:
    """SPEC 5.4: a header that makes the buffer grow, with content before, in and after its chunk."""
    value = counter_bytes("attribute", 65536) * (attribute_bytes // 65536)
    huge = Entry(b"b", "file", size_bytes=3, xattrs=((b"user.huge", value),), content=BytesContent(b"abc"))
    entries = [file_entry("a", counter_bytes("a", CHUNK_MAX_BYTES - 1)), huge, file_entry("c", b"after")]
    made, tar = layer_of(entries)
    first, middle, last = read_headers(tar)
    assert first.content == counter_bytes("a", CHUNK_MAX_BYTES - 1)
    assert middle.pax == ((b"SCHILY.xattr.user.huge", value),)
    assert (middle.content, last.content) == (b"abc", b"after")
    assert sum(made.chunks) == len(tar)
    assert made == layer_of(entries, jobs=8)[0]


def test_many_headers_larger_than_a_buffer() -> None:
    """SPEC 5.4: growing again and again, more often than there are buffers."""
    value = counter_bytes("attribute", 65536) * 160
    entries = [
        Entry(
            b"%02d" % i, "file", size_bytes=5 * MIB, xattrs=((b"user.a", value),), content=BytesContent(bytes(5 * MIB))
        )
        for i in range(9)
    ]
    made, tar = layer_of(entries, jobs=1)
    assert made.entries == 9
    assert [header.size for header in read_headers(tar)] == [5 * MIB] * 9


@pytest.mark.parametrize(
    "size", [CHUNK_MAX_BYTES + d for d in (-513, -512, -1, 0, 1, 512)] + [8 * MIB - 1, 8 * MIB, 8 * MIB + 1]
)
def test_content_around_chunk_edges(size: int) -> None:
    """SPEC 6.1: alone, and after a chunk of the maximum length."""
    data = counter_bytes("edge", size)
    for before in ([], [file_entry("0", bytes(CHUNK_MAX_BYTES - 1024))]):
        made, tar = layer_of([*before, file_entry("a", data), file_entry("b", b"z")])
        assert [header.content for header in read_headers(tar)][-2:] == [data, b"z"]
        assert sum(made.chunks) == len(tar)


def test_empty() -> None:
    """SPEC 5.6: no entries are 1024 zeros."""
    made, tar = layer_of([])
    assert tar == bytes(1024)
    assert (made.entries, made.files, made.chunks) == (0, 0, (1024,))


def test_key_tells_apart_what_the_tar_tells_apart() -> None:
    """SPEC 8: content, mode and the boundary between content and header all count."""
    variants = [
        [file_entry("a", b"x")],
        [file_entry("a", b"y")],
        [file_entry("a", b"x", mode=0o755)],
        [file_entry("a")],
        [dir_entry("a")],
        [],
    ]
    assert len({layer_of(entries)[0].key for entries in variants}) == len(variants)


def test_key_does_not_know_the_codec() -> None:
    """SPEC 8."""
    entries = [file_entry("a", b"x" * 1000)]
    assert len({layer_of(entries, codec)[0].key for codec in CODECS}) == 1


def test_descriptor() -> None:
    """SPEC 7.2: the fields of a manifest, and those that a later check compares."""
    made, blob = layer_of([file_entry("a", b"x" * 1000), dir_entry("b")], "zstd-3")
    document = made.descriptor().to_document()
    assert document["mediaType"] == "application/vnd.oci.image.layer.v1.tar+zstd"
    assert (document["digest"], document["size"]) == (str(made.digest), len(blob))
    assert document["annotations"] == {
        "dev.detlayer.diff-id": str(made.diff_id),
        "dev.detlayer.key": made.key,
        "dev.detlayer.tar-format": "detlayer-tar/1",
        "dev.detlayer.chunk-format": "detlayer-chunk/1",
        "dev.detlayer.codec-format": "detlayer-codec/1",
        "dev.detlayer.key-format": "detlayer-key/1",
        "dev.detlayer.codec": "zstd-3",
        "dev.detlayer.codec-class": Codec("zstd-3").codec_class,
        "dev.detlayer.entries": "2",
        "dev.detlayer.files": "1",
        "dev.detlayer.tar-bytes": "3072",
        "dev.detlayer.chunks": "1",
    }


def test_descriptor_has_one_spelling() -> None:
    """SPEC 7.1: keys sorted, no blanks, no newline."""
    text = layer_of([], "none")[0].descriptor().to_bytes()
    assert text.startswith(b'{"annotations":{"dev.detlayer.chunk-format":"detlayer-chunk/1","dev.detlayer.chunks":"1",')
    assert b" " not in text
    assert not text.endswith(b"\n")


def test_progress_reaches_the_total() -> None:
    words = Words()
    entries = [file_entry(str(i), bytes(CHUNK_MAX_BYTES)) for i in range(3)]
    made = pack_layer(entries, MemorySink(), codec=Codec("none"), reporter=words)
    assert words.seen == sorted(words.seen)
    assert words.seen[-1] == (3, made.tar_bytes)

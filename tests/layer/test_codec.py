"""Codecs: members and frames that every reader accepts, names, classes (SPEC 6.2, 6.3)."""

from __future__ import annotations

import gzip
import io
import subprocess
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from detlayer.errors import ConfigError
from detlayer.layer.codec import DEFAULT_CODEC, KNOWN_CLASSES, Codec, parse_compression
from tests.layers import file_entry, layer_of
from tests.privileges import program
from tests.vectors import counter_bytes

GZIP = [*(f"gzip-libdeflate-{level}" for level in range(1, 13)), "gzip-stored"]
ZSTD = [f"zstd-{level}" for level in range(1, 20)]
MIB = 1 << 20
MIXED = b"some text that repeats " * 400 + counter_bytes("codec", 70000) + bytes(5000)


def compress(codec: str, data: bytes) -> bytes:
    return bytes(Codec(codec).compressor()(memoryview(data)))


def several_chunks(codec: str) -> tuple[tuple[int, ...], bytes, bytes]:
    """A layer of several chunks: their lengths, the blob and the tar."""
    entries = [file_entry("a", counter_bytes("a", 3000)), file_entry("b", bytes(5 * MIB)), file_entry("c", b"end")]
    made, blob = layer_of(entries, codec)
    return made.chunks, blob, layer_of(entries)[1]


@pytest.mark.parametrize("codec", GZIP)
@pytest.mark.parametrize("data", [b"", b"x", MIXED], ids=["empty", "one", "mixed"])
def test_gzip_member_reads_back(codec: str, data: bytes) -> None:
    """SPEC 6.2: one member, no name, no time."""
    member = compress(codec, data)
    assert gzip.decompress(member) == data
    reader = zlib.decompressobj(31)
    assert reader.decompress(member) == data
    assert reader.eof
    assert reader.unused_data == b""
    assert member[:4] == bytes.fromhex("1f8b0800")
    assert member[4:8] == bytes(4)


@pytest.mark.parametrize("codec", ZSTD)
@pytest.mark.parametrize("data", [b"", b"x", MIXED], ids=["empty", "one", "mixed"])
def test_zstd_frame_reads_back(codec: str, data: bytes) -> None:
    """SPEC 6.2: content size on, checksum and dictionary id off."""
    frame = compress(codec, data)
    assert zstandard.ZstdDecompressor().decompress(frame) == data
    parameters = zstandard.get_frame_parameters(frame)
    assert parameters.content_size == len(data)
    assert not parameters.has_checksum
    assert parameters.dict_id == 0


@pytest.mark.parametrize("codec", ["gzip-libdeflate-1", "gzip-libdeflate-6", "gzip-stored"])
def test_gzip_layer_is_one_member_a_chunk(codec: str) -> None:
    """SPEC 6.2."""
    chunks, blob, tar = several_chunks(codec)
    assert gzip.decompress(blob) == tar
    lengths, rest = [], blob
    while rest:
        reader = zlib.decompressobj(31)
        lengths.append(len(reader.decompress(rest)))
        rest = reader.unused_data
    assert tuple(lengths) == chunks
    assert len(chunks) == 4


@pytest.mark.parametrize("codec", ["zstd-1", "zstd-3"])
def test_zstd_layer_is_one_frame_a_chunk(codec: str) -> None:
    """SPEC 6.2."""
    chunks, blob, tar = several_chunks(codec)
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(blob), read_across_frames=True) as reader:
        assert reader.read() == tar
    lengths, rest = [], blob
    while rest:
        one = zstandard.ZstdDecompressor().decompressobj()
        lengths.append(len(one.decompress(rest)))
        rest = one.unused_data
    assert tuple(lengths) == chunks


@pytest.mark.parametrize(
    ("codec", "name"), [("gzip-libdeflate-6", "gzip"), ("gzip-stored", "gzip"), ("zstd-3", "zstd")]
)
def test_programs_read_it(codec: str, name: str) -> None:
    """SPEC 6.2: concatenated members and frames are one valid stream."""
    _, blob, tar = several_chunks(codec)
    done = subprocess.run([program(name), "-dc"], input=blob, capture_output=True, check=True)
    assert done.stdout == tar


def test_none_is_the_tar() -> None:
    """SPEC 6.2."""
    assert compress("none", MIXED) == MIXED


@pytest.mark.parametrize("size", [0, 1, 65534, 65535, 65536, 131070, 131071])
def test_stored_bytes(size: int) -> None:
    """SPEC 6.2: header, blocks of at most 65535 bytes, the last one marked, CRC and size, independently computed."""
    data = counter_bytes("stored", size)
    blocks = [data[at : at + 65535] for at in range(0, size, 65535)] or [b""]
    wanted = bytes.fromhex("1f8b0800 00000000 00ff")
    for i, block in enumerate(blocks):
        wanted += bytes([i == len(blocks) - 1])
        wanted += len(block).to_bytes(2, "little") + (65535 - len(block)).to_bytes(2, "little") + block
    wanted += zlib.crc32(data).to_bytes(4, "little") + size.to_bytes(4, "little")
    assert compress("gzip-stored", data) == wanted


@given(st.binary(max_size=3000), st.sampled_from(["gzip-libdeflate-6", "gzip-stored"]))
def test_any_bytes_read_back(data: bytes, codec: str) -> None:
    """SPEC 6.2."""
    assert gzip.decompress(compress(codec, data)) == data


def test_compressor_leaves_nothing_behind() -> None:
    """SPEC 6.2: a chunk's bytes do not depend on earlier chunks of the same compressor."""
    for codec in ("gzip-libdeflate-6", "gzip-stored", "zstd-3"):
        used = Codec(codec).compressor()
        used(memoryview(MIXED))
        assert bytes(used(memoryview(b"same"))) == compress(codec, b"same")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("none", "none"),
        ("gzip", "gzip-libdeflate-6"),
        ("gzip:1", "gzip-libdeflate-1"),
        ("gzip:12", "gzip-libdeflate-12"),
        ("gzip-stored", "gzip-stored"),
        ("zstd", "zstd-3"),
        ("zstd:1", "zstd-1"),
        ("zstd:19", "zstd-19"),
    ],
)
def test_parse_compression(text: str, name: str) -> None:
    """SPEC 6.2."""
    assert parse_compression(text) == Codec(name)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("gzip:0", "compression-level"),
        ("gzip:13", "compression-level"),
        ("gzip:", "compression-level"),
        ("gzip:06", "compression-level"),
        ("gzip:+6", "compression-level"),
        ("gzip: 6", "compression-level"),
        ("gzip:-1", "compression-level"),
        ("gzip:6:6", "compression-level"),
        ("gzip:\u0663", "compression-level"),
        ("gzip:²", "compression-level"),
        ("gzip:" + "9" * 5000, "compression-level"),
        ("zstd:20", "compression-level"),
        ("zstd:0", "compression-level"),
        ("zstd:x", "compression-level"),
        ("none:1", "compression-unknown"),
        ("gzip-stored:1", "compression-unknown"),
        ("GZIP", "compression-unknown"),
        ("", "compression-unknown"),
        ("xz", "compression-unknown"),
        ("gzip-libdeflate-6", "compression-unknown"),
    ],
)
def test_parse_compression_errors(text: str, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_compression(text)
    assert caught.value.code == code
    assert caught.value.hint


@pytest.mark.parametrize(
    "name",
    [
        "",
        "gzip",
        "zstd",
        "gzip-libdeflate-0",
        "gzip-libdeflate-13",
        "zstd-0",
        "zstd-20",
        "none-1",
        "gzip-stored-1",
        "zstd-3\n",
        "zstd-03",
        "gzip-libdeflate-06",
        "zstd-\uff13",
        "zstd-" + "9" * 5000,
    ],
)
def test_codec_names_have_one_spelling(name: str) -> None:
    """SPEC 6.2: a name is written next to digests and compared, so a codec has only one spelling."""
    with pytest.raises(ConfigError) as caught:
        Codec(name)
    assert caught.value.code == "codec-unknown"


@pytest.mark.parametrize(
    ("name", "family", "level", "suffix"),
    [
        ("none", "none", 0, "tar"),
        ("gzip-stored", "gzip", 0, "tar+gzip"),
        ("gzip-libdeflate-12", "gzip", 12, "tar+gzip"),
        ("zstd-3", "zstd", 3, "tar+zstd"),
    ],
)
def test_codec_facts(name: str, family: str, level: int, suffix: str) -> None:
    """SPEC 6.2."""
    codec = Codec(name)
    assert (codec.family, codec.level, codec.media_type_suffix) == (family, level, suffix)


def test_default() -> None:
    """SPEC 6.2."""
    assert Codec("gzip-libdeflate-6") == DEFAULT_CODEC


def test_every_codec_has_a_known_class() -> None:
    """SPEC 6.3: all but `none`, whose bytes are the tar's."""
    assert set(KNOWN_CLASSES) == {*GZIP, *ZSTD}

"""Whatever the layer's size, the packer's memory has one bound."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import zstandard

from tests.e2e.commands import pack_measured

MAX_PEAK_BYTES = 150 << 20
HUGE_BYTES = 9 << 30  # above 8589934591, the most that eleven octal digits can say
LARGE_BYTES = 512 << 20  # several times the bound
TINY_FILES = 100_000


def test_a_9_gib_file_streams(src: Path, tmp_path: Path) -> None:
    (src / "huge").touch()
    os.truncate(src / "huge", HUGE_BYTES)
    blob = tmp_path / "layer.tar.zst"
    layer, peak_bytes = pack_measured(src, "-c", "zstd:1", "-o", blob)
    assert peak_bytes < MAX_PEAK_BYTES
    # PAX header and its block of records, header, content, end
    assert int(layer.note("tar-bytes")) == 2 * 512 + 512 + HUGE_BYTES + 1024
    with blob.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
        head = stream.read(3 * 512)
    assert head[156:157] == b"x"
    assert head[512:1024].rstrip(b"\0") == b"19 size=%d\n" % HUGE_BYTES
    assert head[1024:1029] == b"huge\0"
    assert head[1024 + 124 : 1024 + 136] == b"00000000000\0"


@pytest.mark.parametrize("codec", ["none", "gzip:6", "gzip-stored", "zstd:3"])
def test_a_large_file_streams_to_a_device(codec: str, src: Path) -> None:
    (src / "large").touch()
    os.truncate(src / "large", LARGE_BYTES)
    layer, peak_bytes = pack_measured(src, "-c", codec, "-o", "/dev/null")
    assert peak_bytes < MAX_PEAK_BYTES
    assert int(layer.note("tar-bytes")) == 512 + LARGE_BYTES + 1024


def test_100_000_tiny_files(src: Path, tmp_path: Path) -> None:
    for group in range(100):
        home = src / f"{group:02}"
        home.mkdir()
        for number in range(TINY_FILES // 100):
            (home / f"{number:03}").write_bytes(b"%d" % number)
    layer, peak_bytes = pack_measured(src, "-o", tmp_path / "layer.tar")
    assert peak_bytes < MAX_PEAK_BYTES
    assert int(layer.note("files")) == TINY_FILES
    assert int(layer.note("entries")) == TINY_FILES + 100
    assert int(layer.note("tar-bytes")) == (2 * TINY_FILES + 100) * 512 + 1024

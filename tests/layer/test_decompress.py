"""Blobs from untrusted sources: damaged, truncated, bombs, and unusual but valid formats."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
import textwrap
import threading
import zlib
from collections.abc import Callable

import pytest
from zstandard import ZstdCompressionParameters, ZstdCompressor

from detlayer.checks.audit import audit
from detlayer.errors import LayerError
from detlayer.layer import decompress as blob_module
from detlayer.layer.decompress import BlobFacts, BlobReader
from tests.layer.handmade_tars import Bytes, checked, member, tar
from tests.vectors import ROOT

TAR = tar(member(b"a", bytes(range(256)) * 1000), member(b"b"))
SKIPPABLE = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"


def read(blob: bytes, max_expansion: int = 200) -> tuple[bytes, BlobFacts]:
    reader = BlobReader(Bytes(blob), max_expansion=max_expansion)
    data = b"".join(reader)
    assert reader.facts.blob_bytes == len(blob)
    assert reader.facts.tar_bytes == len(data)
    assert str(reader.facts.digest) == "sha256:" + hashlib.sha256(blob).hexdigest()
    assert str(reader.facts.diff_id) == "sha256:" + hashlib.sha256(data).hexdigest()
    return data, reader.facts


def code_of(blob: bytes) -> str:
    """The code of the LayerError from reading and auditing, which must have a hint; empty without error."""
    codes = []
    for action in (lambda: read(blob), lambda: audit(Bytes(blob))):
        try:
            action()
            codes.append("")
        except LayerError as error:
            codes.append(checked(error))
    # An audit may report an error in the tar before one in the blob.
    assert codes[1] or not codes[0]
    return codes[0]


def zstd(data: bytes, write_checksum: bool = False) -> bytes:
    return ZstdCompressor(level=3, write_checksum=write_checksum).compress(data)


def streamed(data: bytes) -> bytes:
    """A frame without content size."""
    compressor = ZstdCompressor(level=1, write_checksum=True).compressobj()
    return compressor.compress(data) + compressor.flush()


def with_header(flags: int, extra: bytes) -> bytes:
    body = zlib.compressobj(6, zlib.DEFLATED, -15)
    head = b"\x1f\x8b\x08" + bytes((flags,)) + bytes(4) + b"\0\xff" + extra
    if flags & 2:
        head += (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little")
    tail = zlib.crc32(TAR).to_bytes(4, "little") + len(TAR).to_bytes(4, "little")
    return head + body.compress(TAR) + body.flush() + tail


SOUND: dict[str, Callable[[], bytes]] = {
    "plain": lambda: TAR,
    "gzip": lambda: gzip.compress(TAR, mtime=0),
    "gzip members": lambda: b"".join(gzip.compress(TAR[at : at + 1000]) for at in range(0, len(TAR), 1000)),
    "gzip with empty members": lambda: gzip.compress(b"") * 3 + gzip.compress(TAR) + gzip.compress(b""),
    "gzip with all header fields": lambda: with_header(0x1F, b"\4\0abcdname\0comment\0"),
    "gzip with a header crc": lambda: with_header(2, b""),
    "gzip with a long name": lambda: with_header(8, b"n" * 400_000 + b"\0"),
    "zstd": lambda: zstd(TAR),
    "zstd with checksum": lambda: zstd(TAR, write_checksum=True),
    "zstd without size": lambda: streamed(TAR),
    "zstd frames": lambda: zstd(TAR[:7000]) + streamed(TAR[7000:9000]) + zstd(b"") + zstd(TAR[9000:]),
    "zstd with skippable frames": lambda: SKIPPABLE + zstd(TAR[:700]) + SKIPPABLE * 2 + zstd(TAR[700:]) + SKIPPABLE,
    "zstd of several levels": lambda: ZstdCompressor(level=19).compress(TAR[:900]) + zstd(TAR[900:]),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_blobs(name: str) -> None:
    """RFC 1952, RFC 8878: members, frames and headers of every kind."""
    blob = SOUND[name]()
    data, facts = read(blob)
    assert data == TAR
    assert facts.compression == name.split(" ")[0].replace("plain", "none")
    assert sum(facts.members) == (0 if name == "plain" else len(TAR))


@pytest.mark.parametrize("size", [0, 1, 2, 1 << 17, (1 << 17) + 1, 9 << 20, (9 << 20) + 1, 20 << 20])
def test_zstd_of_every_length(size: int) -> None:
    """Frames that are decompressed in one call, and those that are streamed by blocks."""
    data = (b"0123456789abcdef" * 5 + bytes(300) + hashlib.sha256(b"x").digest()) * (size // 400 + 1)
    data = data[:size]
    for blob in (zstd(data), streamed(data), zstd(data, write_checksum=True) + zstd(b"x")):
        assert read(blob)[0].removesuffix(b"x") == data.removesuffix(b"x")


@pytest.mark.parametrize("name", [name for name in SOUND if name != "plain"])
def test_truncated_anywhere(name: str) -> None:
    """An error wherever the blob is cut inside a member or frame."""
    blob = SOUND[name]()
    seen = set()
    for cut in sorted({*range(1, min(len(blob), 60)), *range(1, len(blob), len(blob) // 50 + 1), len(blob) - 1}):
        seen.add(code_of(blob[:cut]))
    assert seen <= {"", "blob-truncated", "tar-truncated", "header-checksum", "blob-garbage", "blob-corrupt"}
    assert "blob-truncated" in seen


@pytest.mark.parametrize("name", ["gzip", "zstd with checksum"])
def test_damaged_anywhere(name: str) -> None:
    """A checksum detects every flipped bit of the data it covers."""
    blob = SOUND[name]()
    for at in range(20, len(blob), len(blob) // 60 + 1):
        broken = blob[:at] + bytes((blob[at] ^ 0x55,)) + blob[at + 1 :]
        assert code_of(broken) in ("blob-corrupt", "blob-truncated", "blob-garbage"), at


BROKEN: dict[str, tuple[str, Callable[[], bytes]]] = {
    "garbage behind gzip": ("blob-garbage", lambda: gzip.compress(TAR) + b"garbage"),
    "zeros behind gzip": ("blob-garbage", lambda: gzip.compress(TAR) + bytes(100)),
    "garbage behind zstd": ("blob-garbage", lambda: zstd(TAR) + b"garbage garbage garbage"),
    "zeros behind zstd": ("blob-garbage", lambda: zstd(TAR) + bytes(100)),
    "gzip behind zstd": ("blob-garbage", lambda: zstd(TAR) + gzip.compress(b"")),
    "gzip of no method": ("blob-corrupt", lambda: b"\x1f\x8b\x09" + gzip.compress(TAR)[3:]),
    "gzip's magic alone": ("blob-truncated", lambda: b"\x1f\x8b"),
    "gzip's header crc wrong": (
        "blob-corrupt",
        lambda: b"\x1f\x8b\x08\x02" + bytes(6) + b"xx" + with_header(2, b"")[12:],
    ),
    "gzip's length wrong": ("blob-corrupt", lambda: gzip.compress(TAR)[:-4] + bytes(4)),
    "zstd's magic alone": ("blob-corrupt", lambda: b"\x28\xb5\x2f\xfd"),
    "zstd wants a window of 2 GiB": ("blob-window", lambda: b"\x28\xb5\x2f\xfd\x00" + bytes((21 << 3,)) + b"\1\0\0"),
    "zstd wants a window of 3.75 TiB": ("blob-corrupt", lambda: b"\x28\xb5\x2f\xfd\x00\xff\1\0\0"),
    "zstd wants a dictionary": ("blob-corrupt", lambda: b"\x28\xb5\x2f\xfd\x21\x07\x05\x29\0\0hello"),
    "zstd's size is a lie": ("blob-corrupt", lambda: b"\x28\xb5\x2f\xfd\x20\x06\x29\0\0hello"),
    "zstd's giant size is a lie": (
        "blob-corrupt",
        lambda: b"\x28\xb5\x2f\xfd\xc0\x58" + b"\xff" * 7 + b"\x0f" + b"\x29\0\0hello",
    ),
    "zstd's block of a reserved type": ("blob-corrupt", lambda: b"\x28\xb5\x2f\xfd\x20\x05\x2f\0\0hello"),
    "zstd's block too long": ("blob-corrupt", lambda: b"\x28\xb5\x2f\xfd\x00\x58\xf9\xff\xff" + bytes(1 << 21)),
    "zstd's skippable frame has no end": ("blob-truncated", lambda: b"\x50\x2a\x4d\x18\xff\xff\xff\xff" + bytes(1000)),
    "zstd's skippable frame has no size": ("blob-truncated", lambda: b"\x50\x2a\x4d\x18\xff"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_blobs(name: str) -> None:
    wanted, make = BROKEN[name]
    assert code_of(make()) == wanted


@pytest.mark.parametrize("blob", [b"", gzip.compress(b""), zstd(b""), SKIPPABLE, bytes(512), bytes(10240)])
def test_layers_of_nothing(blob: bytes) -> None:
    """SPEC 5.6: no entries, and an invalid end."""
    report = audit(Bytes(blob))
    assert report.entries == 0
    assert report.findings.counts["trailer"] == 1


def test_facts_of_gzip_headers() -> None:
    _, facts = read(with_header(8, b"layer.tar\0") + gzip.compress(b"", mtime=7))
    assert list(facts.gzip_headers.values()) == [0, 1]
    assert facts.gzip_name == b"layer.tar"


def test_headers_that_all_differ_are_not_all_kept() -> None:
    _, facts = read(b"".join(gzip.compress(b"", mtime=n) for n in range(1000)))
    assert len(facts.gzip_headers) < 100
    assert len(facts.members) == 1000


@pytest.mark.parametrize("empty", [gzip.compress(b"", mtime=0), zstd(b"")])
def test_members_are_bounded(empty: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_module, "_MAX_MEMBERS", 1000)
    assert code_of(empty * 1000) == ""
    assert code_of(empty * 1001) == "blob-members"


def test_expansion_is_bounded_and_the_bound_can_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_module, "_FREE_BYTES", 1 << 20)
    zeros = bytes(30 << 20)
    for blob in (gzip.compress(zeros), zstd(zeros), streamed(zeros)):
        with pytest.raises(LayerError) as caught:
            read(blob)
        assert caught.value.code == "expansion-limit"
        assert "--max-expansion" in caught.value.hint
        assert read(blob, max_expansion=100_000)[0] == zeros


_BOMB = """
    import gzip, resource, sys, zlib
    from zstandard import ZstdCompressionParameters, ZstdCompressor
    from detlayer.checks.audit import audit
    from detlayer.errors import LayerError
    from detlayer.layer.tar import END, encode_header
    from detlayer.layer.entry import Entry
    from detlayer.layer.writer import BytesContent

    kind = sys.argv[1]
    size = 3 << 29
    head = encode_header(Entry(b"zeros", "file", size_bytes=size))
    zeros = bytes(1 << 20)
    parts = []
    if kind.startswith("gzip"):
        squeeze = zlib.compressobj(1, zlib.DEFLATED, 31)
    else:
        log = 27 if kind.endswith("window") else 17
        parameters = ZstdCompressionParameters(compression_level=1, window_log=log)
        squeeze = ZstdCompressor(compression_params=parameters).compressobj()
    parts.append(squeeze.compress(head))
    for _ in range(size >> 20):
        parts.append(squeeze.compress(zeros))
    parts.append(squeeze.compress(END))
    parts.append(squeeze.flush())
    data = b"".join(parts)
    del parts, squeeze, zeros

    class Source:
        at = 0
        def read(self, count):
            piece = data[self.at : self.at + count]
            self.at += len(piece)
            return piece

    # The current mappings and little more: no space for the expanded bomb.
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    allowed = mapped + (int(sys.argv[2]) << 20)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    try:
        report = audit(Source(), max_expansion=int(sys.argv[3]))
        print("read", report.facts.tar_bytes, dict(report.findings.counts))
    except LayerError as error:
        print(error.code)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "room"), [("gzip", 100), ("zstd", 100), ("zstd with a large window", 320)], ids=("gzip", "zstd", "window")
)
def test_bombs_take_little_memory(kind: str, room: int) -> None:
    """1.5 GiB of zeros: stopped by the limit; without it, read to the end in little memory.

    `room` is address space: two thread arenas of 64 MiB, and for the last kind the window of the frame.
    """
    for expansion, wanted in (("10", "expansion-limit"), ("100000000", "read 1610614272")):
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(_BOMB), kind.replace(" ", "-"), str(room + 128), expansion],
            capture_output=True,
            text=True,
            check=False,
            env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"},
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith(wanted), run.stdout


def test_long_windows_that_engines_take() -> None:
    """`zstd --ultra -22`: 128 MiB, and no more."""
    parameters = ZstdCompressionParameters(compression_level=1, window_log=27)
    squeeze = ZstdCompressor(compression_params=parameters).compressobj()
    assert read(squeeze.compress(TAR) + squeeze.flush())[0] == TAR


def test_no_thread_is_left_behind_by_an_error() -> None:
    """While the error, and with it every stack frame, is still referenced."""
    with pytest.raises(LayerError) as caught:
        audit(Bytes(gzip.compress(b"no tar at all" + bytes(8 << 20))))
    assert caught.value.code == "header-checksum"
    assert [thread.name for thread in threading.enumerate() if thread.name == "detlayer-blob"] == []

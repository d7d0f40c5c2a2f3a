"""Real layers, damaged at random: an audit always ends with a report or a LayerError (SPEC 9)."""

from __future__ import annotations

import io
import itertools
import tarfile
import tracemalloc
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detlayer.checks.audit import audit
from detlayer.checks.findings import TRAPS
from detlayer.errors import LayerError
from detlayer.layer.codec import Codec
from tests.layer.handmade_tars import (
    LONG,
    SPARSE_FORMS,
    Bytes,
    checked,
    entry,
    extension,
    header,
    member,
    record,
    sparse,
    tar,
)
from tests.layers import layer_of

# Memory limit of a report or an error beyond the blob itself: pieces, a PAX header, the kept findings.
_MEMORY_BYTES = 64 << 20


@cache
def tars() -> tuple[bytes, ...]:
    """Small layers with something of everything that a reader supports."""
    made = [
        layer_of(
            [
                entry(b"d", kind="dir"),
                entry(b"d/a.pyc", b"\xcb\r\r\n" + bytes(40)),
                entry(b"d/" + LONG, b"content" * 100),
                entry(b"d/x", xattrs=((b"user.a", b"1"),)),
                entry(b"l", kind="symlink", target=b"d/x"),
            ]
        )[1],
        tar(
            extension(b"g", record(b"comment", b"x")),
            extension(b"L", LONG + b"\0"),
            member(b"short", b"data", at=257, raw=b"ustar  \0"),
            *(
                sparse(form, b"s" + form.encode(), 5000, [(1000 * n, 90) for n in range(5)], b"d" * 450)
                for form in SPARSE_FORMS
            ),
            header(b"h", kind="hardlink", target=b"short"),
        ),
    ]
    for style in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=style) as archive:
            for name in ("./r", "a", "é", "d/" * 30 + "deep", "x.whl"):
                info = tarfile.TarInfo(name)
                info.size, info.uid, info.mtime = 3, 3_000_000 if style != tarfile.USTAR_FORMAT else 5, 1.5
                info.mtime = int(info.mtime) if style == tarfile.USTAR_FORMAT else info.mtime
                archive.addfile(info, io.BytesIO(b"PK\3"))
        made.append(stream.getvalue()[: stream.tell()].rstrip(b"\0") + bytes(2048))
    return tuple(made)


@cache
def blobs() -> tuple[bytes, ...]:
    codecs = [Codec(name).compressor() for name in ("gzip-libdeflate-1", "gzip-stored", "zstd-1")]
    return tuple(
        bytes(press(memoryview(data[:1024]))) + bytes(press(memoryview(data[1024:])))
        for press, data in itertools.product(codecs, tars())
    )


@st.composite
def damaged(draw: st.DrawFn, sound: tuple[bytes, ...]) -> bytes:
    """One of `sound` after a few flips, cuts, insertions, repetitions and splices."""
    data = bytearray(draw(st.sampled_from(sound)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from((1, 2, 8, 12, 100, 512, 1024)))
        match draw(st.sampled_from(("flip", "set", "cut", "end", "insert", "repeat", "splice", "digits"))):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if at < len(data):
                data[at] = draw(st.sampled_from((0, 0x20, 0x2F, 0x2E, 0x37, 0x78, 0x80, 0xFF)))
            case "cut":
                del data[at : at + length]
            case "end":
                del data[at:]
            case "insert":
                data[at:at] = draw(st.binary(max_size=40))
            case "repeat":
                data[at:at] = data[at : at + length]
            case "splice":
                other = draw(st.sampled_from(sound))
                start = draw(st.integers(0, len(other)))
                data[at : at + length] = other[start : start + length]
            case "digits":
                data[at : at + 12] = draw(st.sampled_from((b"77777777777\0", b"\xff" * 12, b"\x80" + b"\x7f" * 11)))
    return bytes(data)


def sealed_again(data: bytes) -> bytes:
    """Correct the checksum of every block that looks like a header, so that damage gets past that check."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            total = sum(out[at : at + 148]) + sum(out[at + 156 : at + 512]) + 256
            out[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(out)


def survives(data: bytes) -> None:
    tracemalloc.start()
    try:
        report = audit(Bytes(data), max_expansion=200)
        assert set(report.findings.counts) <= set(TRAPS)
        assert report.facts.blob_bytes == len(data)
        for finding in report.findings.kept:
            assert all(isinstance(text, str) and text.isprintable() for text in finding)
    except LayerError as error:
        checked(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < _MEMORY_BYTES


def test_the_sound_ones_are_sound() -> None:
    """The fuzzing starts from valid layers."""
    for data in (*tars(), *blobs()):
        assert audit(Bytes(data)).entries >= 3
    assert all(sealed_again(data) == data for data in tars()[:1])


@given(data=st.data())
def test_damaged_tars(data: st.DataObject) -> None:
    survives(data.draw(damaged(tars())))


@given(data=st.data())
def test_damaged_tars_with_right_checksums(data: st.DataObject) -> None:
    survives(sealed_again(data.draw(damaged(tars()))))


@given(data=st.data())
def test_damaged_blobs(data: st.DataObject) -> None:
    survives(data.draw(damaged(blobs())))


@given(data=st.data())
def test_damaged_tars_in_sound_blobs(data: st.DataObject) -> None:
    inner = sealed_again(data.draw(damaged(tars())))
    press = Codec(data.draw(st.sampled_from(("gzip-libdeflate-1", "gzip-stored", "zstd-1")))).compressor()
    survives(bytes(press(memoryview(inner))))


@given(st.binary(max_size=3000))
@pytest.mark.parametrize("magic", [b"", b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"])
def test_noise_behind_a_magic_number_is_refused(magic: bytes, data: bytes) -> None:
    survives(magic + data)

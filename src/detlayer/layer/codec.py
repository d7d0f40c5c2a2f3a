"""Chunk to compressed bytes, and the codec class that identifies those bytes: `detlayer-codec/1` (SPEC 6.2).

Compressors change between versions and machines. So a codec's bytes are measured on a probe, recorded next to every
digest and compared; version numbers are not relied on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import cache
from zlib import crc32

import msgspec

from detlayer.errors import ConfigError

FORMAT = "detlayer-codec/1"
PROBE_BYTES = 131072

Compressor = Callable[[memoryview], bytes | bytearray | memoryview]

_STORED_HEADER = bytes.fromhex("1f8b08 00 00000000 00 ff".replace(" ", ""))
_STORED_MAX_BYTES = 0xFFFF
_NAME = re.compile(r"(none|gzip-stored)|gzip-libdeflate-([1-9][0-9]?)|zstd-([1-9][0-9]?)")


class Codec(msgspec.Struct, frozen=True):
    """A codec by its SPEC name (`none`, `gzip-libdeflate-6`, `gzip-stored`, `zstd-3`)."""

    name: str

    def __post_init__(self) -> None:
        match = _NAME.fullmatch(self.name)
        low_high = (1, 12) if match and match[2] else (1, 19)
        if match is None or not (match[1] or low_high[0] <= self.level <= low_high[1]):
            raise ConfigError(
                "codec-unknown", f"unknown codec {self.name!r}", "use none, gzip-stored, gzip-libdeflate-6 or zstd-3"
            )

    @property
    def level(self) -> int:
        tail = self.name.rpartition("-")[2]
        return int(tail) if tail.isdecimal() else 0

    @property
    def family(self) -> str:
        """`none`, `gzip` or `zstd`: the format for a reader."""
        return self.name.partition("-")[0]

    @property
    def media_type_suffix(self) -> str:
        return "tar" if self.name == "none" else f"tar+{self.family}"

    def compressor(self) -> Compressor:
        """Return a function from one chunk to one member or frame, which releases the GIL. One per thread."""
        if self.name == "none":
            return lambda chunk: chunk
        if self.name == "gzip-stored":
            return _stored
        level = self.level
        if self.family == "gzip":
            from deflate import gzip_compress

            return lambda chunk: gzip_compress(chunk, level)
        from zstandard import ZstdCompressor

        # Explicit, because the frame header's bytes depend on these.
        return ZstdCompressor(
            level=level, write_content_size=True, write_checksum=False, write_dict_id=False, threads=0
        ).compress

    @property
    def codec_class(self) -> str:
        """Measure the output of this codec here: 16 hex digits over the probe's compressed bytes."""
        return _codec_class(self.name)


DEFAULT_CODEC = Codec("gzip-libdeflate-6")

# Measured on the machines that produced the golden vectors (libdeflate of deflate 0.8 and 0.9, libzstd 1.5.7). Another
# class is no error: digests then differ from theirs, and diff_ids do not.
KNOWN_CLASSES: dict[str, str] = {
    "gzip-libdeflate-1": "271f8552494c9c19",
    "gzip-libdeflate-2": "006ef1fd88336230",
    "gzip-libdeflate-3": "970641e09761f77b",
    "gzip-libdeflate-4": "2b7515bc59ba25f3",
    "gzip-libdeflate-5": "b9e39cb4ab27f306",
    "gzip-libdeflate-6": "3d1ee2ac1ba3c82a",
    "gzip-libdeflate-7": "72df91a09d01f6ef",
    "gzip-libdeflate-8": "bded9fba61f3c260",
    "gzip-libdeflate-9": "bded9fba61f3c260",
    "gzip-libdeflate-10": "344e17247840ee8f",
    "gzip-libdeflate-11": "0b0eb5aa503eacc0",
    "gzip-libdeflate-12": "36f6b7ba5867f568",
    "zstd-1": "b4a4452c12e25e30",
    "zstd-2": "ccf5f910324031db",
    "zstd-3": "2162211261849ac5",
    "zstd-4": "88063d67189c6abf",
    "zstd-5": "56366408172666bd",
    "zstd-6": "985fddd1a7bb8a46",
    "zstd-7": "bbaefc1fdd414499",
    "zstd-8": "7ea485af7a99f069",
    "zstd-9": "20f356e4e4172179",
    "zstd-10": "65cb5c7c8f1953c6",
    "zstd-11": "eb1d4df18a4f397e",
    "zstd-12": "6021e68c14269458",
    "zstd-13": "a3aa37775ea4e91c",
    "zstd-14": "698b3e3b710a61d9",
    "zstd-15": "5c2c02641f221c45",
    "zstd-16": "9faaf68e1ae78e13",
    "zstd-17": "9faaf68e1ae78e13",
    "zstd-18": "9faaf68e1ae78e13",
    "zstd-19": "914ec8da2063421f",
    "gzip-stored": "a4d2dc5d8a92e806",
}


def parse_compression(text: str) -> Codec:
    """Parse a compression: `none`, `gzip`, `gzip:9`, `gzip-stored`, `zstd`, `zstd:19`. Raises ConfigError."""
    name, colon, level = text.partition(":")
    if (name in ("none", "gzip-stored") and not colon) or name in ("gzip", "zstd"):
        top = 12 if name == "gzip" else 19
        if not colon:
            return {
                "none": Codec("none"),
                "gzip-stored": Codec("gzip-stored"),
                "gzip": DEFAULT_CODEC,
                "zstd": Codec("zstd-3"),
            }[name]
        if re.fullmatch(r"[1-9][0-9]?", level) and int(level) <= top:
            return Codec(f"gzip-libdeflate-{level}" if name == "gzip" else f"zstd-{level}")
        raise ConfigError("compression-level", f"invalid {name} level {level!r}", f"use {name}:1 to {name}:{top}")
    raise ConfigError(
        "compression-unknown",
        f"invalid compression {text!r}",
        "use none, gzip, gzip:1 to gzip:12, gzip-stored, zstd, or zstd:1 to zstd:19",
    )


def _stored(chunk: memoryview) -> bytes:
    """Return one gzip member of stored blocks (RFC 1951 3.2.4, RFC 1952): the codec without a library."""
    out = bytearray(_STORED_HEADER)
    total = len(chunk)
    for start in range(0, total, _STORED_MAX_BYTES) or (0,):
        piece = chunk[start : start + _STORED_MAX_BYTES]
        length = len(piece)
        out += b"\x01" if start + length >= total else b"\x00"
        out += length.to_bytes(2, "little") + (length ^ 0xFFFF).to_bytes(2, "little")
        out += piece
    out += crc32(chunk).to_bytes(4, "little") + (total & 0xFFFFFFFF).to_bytes(4, "little")
    return bytes(out)


@cache
def probe() -> bytes:
    """Return the fixed input on which codec classes are measured (SPEC 6.3)."""
    lines = bytearray()
    i = 0
    while len(lines) < PROBE_BYTES:
        lines += b"%d:%x\n" % (i * i, i * i * 7919)
        i += 1
    return bytes(lines[:PROBE_BYTES])


@cache
def _codec_class(name: str) -> str:
    return hashlib.sha256(Codec(name).compressor()(memoryview(probe()))).hexdigest()[:16]

"""Find the codec that wrote a blob, by its first chunk (SPEC 6.2, 6.3)."""

from __future__ import annotations

from detlayer.layer.codec import Codec
from detlayer.layer.decompress import BlobFacts, BlobReader

_GZIP_LEVELS = (6, 1, 9, 2, 3, 4, 5, 7, 8, 10, 11, 12)
_ZSTD_LEVELS = (3, *(level for level in range(1, 20) if level != 3))


def recognise(facts: BlobFacts) -> Codec | None:
    """Find the codec that reproduces the first chunk, trying likely ones first; None if no codec does.

    A gzip member's header is ignored: it is checked separately.
    """
    if facts.compression == "none":
        return Codec("none")
    if not facts.first_member:
        return None
    if facts.compression == "gzip":
        levels = [f"gzip-libdeflate-{level}" for level in _GZIP_LEVELS]
        names = [levels[0], "gzip-stored", *levels[1:]]
    else:
        names = [f"zstd-{level}" for level in _ZSTD_LEVELS]
    chunk = b"".join(BlobReader(_Bytes(facts.first_member)))
    found = memoryview(facts.first_member)
    start = _gzip_body(facts.first_member) if facts.compression == "gzip" else 0
    own_start = 10 if facts.compression == "gzip" else 0
    for name in names:
        codec = Codec(name)
        made = memoryview(codec.compressor()(memoryview(chunk)))
        if made[own_start:] == found[start:] and (not start or made[_XFL] == found[_XFL]):
            return codec
    return None


_XFL = 8  # offset of a gzip member's level: the only byte of the header that the compressor decides


def _gzip_body(member: bytes) -> int:
    """Find where a member's deflate stream begins (RFC 1952 2.3); the member must be complete."""
    flags, at = member[3], 10
    if flags & 0x04:
        at += 2 + int.from_bytes(member[at : at + 2], "little")
    for flag in (0x08, 0x10):
        if flags & flag:
            at = member.index(b"\0", at) + 1
    return at + (2 if flags & 0x02 else 0)


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int, /) -> bytes:
        data, self._data = self._data[:size], self._data[size:]
        return data

"""Which codec of ours wrote a blob: tried on its first chunk (SPEC 6.2, 6.3). Knows no tar fields and no disk."""

from __future__ import annotations

from detlayer.blob import BlobFacts, BlobReader
from detlayer.codec import Codec

_GZIP_LEVELS = (6, 1, 9, 2, 3, 4, 5, 7, 8, 10, 11, 12)
_ZSTD_LEVELS = (3, *(level for level in range(1, 20) if level != 3))


def recognise(facts: BlobFacts) -> Codec | None:
    """Find the codec that writes the first chunk as it stands, the likely ones first; None if it is none of ours."""
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
    for name in names:
        codec = Codec(name)
        if bytes(codec.compressor()(memoryview(chunk))) == facts.first_member:
            return codec
    return None


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int, /) -> bytes:
        data, self._data = self._data[:size], self._data[size:]
        return data

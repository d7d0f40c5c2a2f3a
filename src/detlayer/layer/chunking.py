"""Where to cut the tar stream: `detlayer-chunk/1` (SPEC 6.1). Depends only on the entries, not on content.

Chunks are compressed in parallel without the number of workers affecting the bytes, and most chunks stay unchanged
when a few files change.
"""

from __future__ import annotations

from zlib import crc32

FORMAT = "detlayer-chunk/1"
CHUNK_MIN_BYTES = 1 << 20
CHUNK_MAX_BYTES = 4 << 20


def cut_before(written_path: bytes, size_bytes: int, chunk_bytes: int, previous_size_bytes: int) -> bool:
    """Tell whether a new chunk starts before an entry.

    `size_bytes` is its content, `chunk_bytes` the current chunk so far, `previous_size_bytes` the content of the
    previous entry.
    """
    if not chunk_bytes:
        return False
    if size_bytes >= CHUNK_MAX_BYTES or previous_size_bytes >= CHUNK_MAX_BYTES or chunk_bytes >= CHUNK_MAX_BYTES:
        return True
    return chunk_bytes >= CHUNK_MIN_BYTES and not crc32(written_path) & 0xF

"""The key of entries without their tar: `detlayer-key/1` (SPEC 8), and how long that tar would be. Never disk.

A key needs headers and the fingerprints of contents. Where those are known, no content is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from mmap import mmap

from blake3 import blake3

from detlayer import tar
from detlayer.entry import Entry, check_follows
from detlayer.errors import LayerError, TreeError, printable
from detlayer.ports import ContentMemory
from detlayer.tar import encode_header, padding

KEY_FORMAT = "detlayer-key/1"
EMPTY_FINGERPRINT = blake3().digest()

_PIECE_BYTES = 4 << 20
_KEY_PARTS = 4096


@dataclass(frozen=True, slots=True)
class Outline:
    """What is known of a layer before its tar is made. `key` is empty if contents had to be read and were not."""

    key: str
    entries: int
    tar_bytes: int


def outline(entries: Iterable[Entry], memory: ContentMemory, *, read_all: bool = False) -> Outline:
    """Compute the key of `entries`, which must come in order, reading only contents that `memory` does not know.

    Unless `read_all`, reading stops at the first content that can't be what it was: then there is no key, and the rest
    says whether a layer like this was ever made. Raises what a pack of the same entries raises.
    """
    key = blake3(KEY_FORMAT.encode() + b"\n")
    parts: list[bytes] = []
    buffer = memoryview(mmap(-1, _PIECE_BYTES))
    is_known = True
    count = 0
    tar_bytes = len(tar.END)
    previous: Entry | None = None
    for entry in entries:
        if previous is not None:
            check_follows(entry, previous)
        previous = entry
        header = encode_header(entry)
        parts.append(header)
        count += 1
        tar_bytes += len(header)
        if entry.kind != "file":
            continue
        size = entry.size_bytes
        if not size:
            parts.append(EMPTY_FINGERPRINT)
            continue
        tar_bytes += size + padding(size)
        fingerprint = memory.recall(entry)
        if fingerprint is None and is_known:
            expected = memory.expect(entry)
            if expected is not None or read_all:
                fingerprint = _read(entry, memory, buffer)
            is_known = read_all or (fingerprint is not None and fingerprint == expected)
        if fingerprint is not None:
            parts.append(fingerprint)
        if len(parts) > _KEY_PARTS:
            key.update(b"".join(parts))
            parts.clear()
    key.update(b"".join(parts))
    return Outline(f"blake3:{key.hexdigest()}" if is_known else "", count, tar_bytes)


def _read(entry: Entry, memory: ContentMemory, buffer: memoryview) -> bytes:
    content = entry.content
    if content is None:
        raise LayerError("entry-content", f"{printable(entry.path)} has a size but no content", "")
    digest = blake3()
    left = entry.size_bytes
    reader = content.open()
    try:
        while left:
            piece = buffer[: min(left, len(buffer))]
            if reader.read_into(piece) != len(piece):
                raise shrunk(entry)
            digest.update(piece)
            left -= len(piece)
        reader.finish()
        fingerprint = digest.digest()
        memory.learn(entry, fingerprint)
    finally:
        reader.close()
    return fingerprint


def shrunk(entry: Entry) -> TreeError:
    """Say that a content ended before its entry's size."""
    return TreeError(
        "changed-while-read",
        f"{printable(entry.path)} became shorter than {entry.size_bytes} bytes while it was read",
        "pack a tree that nothing writes to",
    )

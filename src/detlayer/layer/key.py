"""The key of entries without their tar: `detlayer-key/1` (SPEC 8).

A key depends on headers and the fingerprints of contents. If those are known, no content is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from mmap import mmap

from blake3 import blake3

from detlayer.errors import LayerError, TreeError, printable
from detlayer.layer.entry import ContentReader, Entry
from detlayer.layer.ports import ContentMemory
from detlayer.layer.tar import encode_header

KEY_FORMAT = "detlayer-key/1"
EMPTY_FINGERPRINT = blake3().digest()

_PIECE_BYTES = 4 << 20
_MAX_PARTS = 512
_LONG_BYTES = 1 << 14  # longer headers are hashed at once to bound memory


class LayerKey:
    """The key of a layer, built from its entries: the header of each, and the fingerprint of each file."""

    __slots__ = ("_hash", "_parts")

    def __init__(self) -> None:
        self._hash = blake3(KEY_FORMAT.encode() + b"\n")
        self._parts: list[bytes] = []

    def add(self, header: bytes, fingerprint: bytes = b"") -> None:
        """Add an entry: its header blocks as in the tar, and the blake3 of its content if it is a file."""
        parts = self._parts
        parts.append(header)
        parts.append(fingerprint)
        if len(parts) > _MAX_PARTS or len(header) > _LONG_BYTES:
            self._hash.update(b"".join(parts))
            parts.clear()

    def __str__(self) -> str:
        self._hash.update(b"".join(self._parts))
        self._parts.clear()
        return f"blake3:{self._hash.hexdigest()}"


def key_of(entries: Iterable[Entry], memory: ContentMemory) -> str:
    """Compute the key of `entries`, reading only contents that `memory` does not know.

    The order is not checked: no layer has the key of unsorted entries. Raises TreeError and LayerError.
    """
    key = LayerKey()
    buffer = memoryview(mmap(-1, _PIECE_BYTES))
    for entry in entries:
        header = encode_header(entry)
        if entry.kind != "file":
            key.add(header)
        elif entry.size_bytes:
            key.add(header, memory.recall(entry) or _read(entry, memory, buffer))
        else:
            key.add(header, EMPTY_FINGERPRINT)
    return str(key)


def _read(entry: Entry, memory: ContentMemory, buffer: memoryview) -> bytes:
    content = entry.content
    if content is None:
        raise LayerError("entry-content", f"{printable(entry.path)} has a size but no content", "")
    reader = content.open()
    try:
        fingerprint = hash_content(entry, reader, buffer).digest()
        memory.learn(entry, fingerprint)
    finally:
        reader.close()
    return fingerprint


def hash_content(
    entry: Entry, reader: ContentReader, buffer: memoryview, progress: Callable[[int], None] | None = None
) -> blake3:
    """Hash an open content, again from the start if it may have changed meanwhile; raises TreeError.

    `progress` gets the length of each piece.
    """
    while True:
        digest = blake3()
        for piece in pieces(entry, reader, buffer):
            digest.update(piece)
            if progress is not None:
                progress(len(piece))
        if reader.finish():
            return digest


def pieces(entry: Entry, reader: ContentReader, buffer: memoryview) -> Iterator[memoryview]:
    """Yield an open content in `buffer`; raises TreeError if it is shorter than its entry says."""
    left = entry.size_bytes
    while left:
        piece = buffer[:left]
        if reader.read_into(piece) != len(piece):
            raise shrunk(entry)
        left -= len(piece)
        yield piece


def confirm(entry: Entry, reader: ContentReader, digest: blake3) -> None:
    """Read a doubtful content a second time; raises TreeError unless the hash is that of the first read."""
    if hash_content(entry, reader, memoryview(mmap(-1, _PIECE_BYTES))).digest() != digest.digest():
        raise TreeError(
            "changed-while-read",
            f"{printable(entry.path)} was written to while it was read",
            "stop the process that writes to it, or retry",
        )


def shrunk(entry: Entry) -> TreeError:
    """Make the error for a content that is shorter than its entry says."""
    return TreeError(
        "changed-while-read",
        f"{printable(entry.path)} became shorter than {entry.size_bytes} bytes while it was read",
        "stop the process that writes to it, or retry",
    )

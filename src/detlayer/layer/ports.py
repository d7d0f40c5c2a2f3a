"""Interfaces of a pass over entries: sink, reporter, and memory of contents and chunks."""

from __future__ import annotations

from typing import Protocol

from detlayer.layer.entry import Entry

Bytes = bytes | bytearray | memoryview


class Sink(Protocol):
    """The destination of a blob's bytes, in order."""

    def write(self, data: Bytes, /) -> None:
        """Write all of `data`; raises OutputError. `data` may be reused after the call."""


class Reporter(Protocol):
    """Receives progress and warnings, from one thread."""

    def progress(self, entries: int, tar_bytes: int) -> None:
        """Report the totals of the pass so far; called about once per chunk."""

    def warning(self, code: str, message: str) -> None:
        """Report a problem that is not an error."""


class Silence:
    """A reporter that ignores everything."""

    def progress(self, entries: int, tar_bytes: int) -> None:
        return

    def warning(self, code: str, message: str) -> None:
        return


class ContentMemory(Protocol):
    """Known contents, by file. A fingerprint is the blake3 of a content. Used by one thread."""

    def recall(self, entry: Entry) -> bytes | None:
        """Return the fingerprint of a content that is unchanged since it was read; None if it has to be read.

        After the content was read, None if it changed meanwhile.
        """

    def learn(self, entry: Entry, fingerprint: bytes) -> None:
        """Store the fingerprint of the content that was just read and is still open."""


class ChunkMemory(Protocol):
    """Chunks that the same codec compressed before. Used by several threads; `learn` by one at a time."""

    def recall(self, fingerprint: bytes) -> bytes | None:
        """Return the compressed bytes of the chunk with this blake3; None if it has to be compressed."""

    def learn(self, fingerprint: bytes, offset_bytes: int, data: Bytes) -> None:
        """Store the position of a chunk's compressed bytes in the new blob, in order."""

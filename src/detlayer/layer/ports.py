"""What a pass over entries writes to, reports to and remembers by."""

from __future__ import annotations

from typing import Protocol

from detlayer.layer.entry import Entry

Bytes = bytes | bytearray | memoryview


class Sink(Protocol):
    """Where a blob's bytes go, in order."""

    def write(self, data: Bytes, /) -> None:
        """Take all of `data`; raises OutputError. `data` may be reused after the call."""


class Reporter(Protocol):
    """Is told progress and warnings, by one thread."""

    def progress(self, entries: int, tar_bytes: int) -> None:
        """Report the totals of the pass so far; called about once per chunk."""

    def warning(self, code: str, message: str) -> None:
        """Report a problem that is not an error."""


class Silence:
    """A reporter that says nothing."""

    def progress(self, entries: int, tar_bytes: int) -> None:
        return

    def warning(self, code: str, message: str) -> None:
        return


class ContentMemory(Protocol):
    """What is known of contents without reading them. A fingerprint is the blake3 of a content. Used by one thread."""

    def recall(self, entry: Entry) -> bytes | None:
        """Return the fingerprint of a content that has not changed since it was read; None if it has to be read.

        Asked of a content that has been read, None if it changed meanwhile.
        """

    def learn(self, entry: Entry, fingerprint: bytes) -> None:
        """Take the fingerprint of what was just read; the content is still open."""


class ChunkMemory(Protocol):
    """Chunks that the same codec compressed before. Used by several threads; `learn` by one at a time."""

    def recall(self, fingerprint: bytes) -> bytes | None:
        """Return the compressed bytes of the chunk with this blake3; None if it has to be compressed."""

    def learn(self, fingerprint: bytes, offset_bytes: int, data: Bytes) -> None:
        """Take where a chunk's compressed bytes are in the new blob, in order."""

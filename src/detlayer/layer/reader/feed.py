"""The bytes of a tar, as blocks and as contents that are read once, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from detlayer.errors import LayerError
from detlayer.layer.entry import ContentReader
from detlayer.layer.reader.records import AGAIN
from detlayer.layer.reader.sparse import SparseMap
from detlayer.layer.tar import BLOCK_BYTES

_ZEROS = memoryview(bytes(1 << 18))


class Feed:
    """A stream of pieces, read in other sizes."""

    __slots__ = ("_at", "_piece", "_pieces", "_skip")

    def __init__(self, pieces: Iterator[bytes], skip: Callable[[int], None] | None = None) -> None:
        self._pieces = pieces
        self._skip = skip
        self._piece = b""
        self._at = 0

    def take_block(self) -> bytes | None:
        """Read 512 bytes; None at the end."""
        at = self._at
        if at + BLOCK_BYTES <= len(self._piece):
            self._at = at + BLOCK_BYTES
            return self._piece[at : at + BLOCK_BYTES]
        while self._at == len(self._piece):
            if not self._next():
                return None
        return self.take(BLOCK_BYTES)

    def take(self, size: int) -> bytes:
        parts = []
        while size:
            part = self.some(size)
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def some(self, size: int) -> memoryview:
        """Read between 1 and `size` bytes."""
        while self._at == len(self._piece):
            if not self._next():
                raise LayerError("tar-truncated", "the tar ends in the middle of an entry", AGAIN)
        part = memoryview(self._piece)[self._at : self._at + size]
        self._at += len(part)
        return part

    def skip(self, size: int) -> None:
        if self._skip is not None and (beyond := size - (len(self._piece) - self._at)) > 0:
            self._skip(beyond)
            self._at = len(self._piece)
            return
        while size:
            size -= len(self.some(size))

    def take_rest(self) -> bytes | None:
        """Return the rest of this piece, or the next one; None at the end."""
        while self._at == len(self._piece):
            if not self._next():
                return None
        rest = self._piece[self._at :]
        self._at = len(self._piece)
        return rest

    def _next(self) -> bool:
        piece = next(self._pieces, None)
        if piece is None:
            return False
        self._piece, self._at = piece, 0
        return True


class MemberContent:
    """A member's content: read once, in order. `stored_bytes` of it are in the tar."""

    __slots__ = ("_feed", "_left", "_opened")

    def __init__(self, feed: Feed, stored_bytes: int) -> None:
        self._feed = feed
        self._left = stored_bytes
        self._opened = False

    def open(self) -> ContentReader:
        if self._opened:
            raise RuntimeError("a member's content can be read only once")
        self._opened = True
        return self

    def read_into(self, buffer: memoryview) -> int:
        done = 0
        while self._left and done < len(buffer):
            part = self._feed.some(min(self._left, len(buffer) - done))
            buffer[done : done + len(part)] = part
            done += len(part)
            self._left -= len(part)
        return done

    def views(self) -> Iterator[memoryview]:
        """Yield the content in pieces, without copying."""
        self._opened = True
        while self._left:
            part = self._feed.some(self._left)
            self._left -= len(part)
            yield part

    def finish(self) -> bool:
        return True

    def close(self) -> None:
        return

    def skip_rest(self) -> None:
        self._feed.skip(self._left)
        self._left = 0


class SparseContent(MemberContent):
    """A sparse member's content as in the file: the stored data at their offsets, and zeros between.

    `grow` is called with the size of the holes before any of them is returned; it raises if that is too much.
    """

    __slots__ = ("_grow", "_map", "_pieces", "_rest")

    def __init__(self, feed: Feed, stored_bytes: int, sparse_map: SparseMap, grow: Callable[[int], None]) -> None:
        super().__init__(feed, stored_bytes)
        self._map = sparse_map
        self._grow = grow
        self._pieces: Iterator[memoryview] | None = None
        self._rest = memoryview(b"")

    def views(self) -> Iterator[memoryview]:
        self._opened = True
        self._grow(self._map.size_bytes - self._left)
        at = 0
        for offset, length in self._map.spans():
            yield from _zeros(offset - at)
            at = offset + length
            while length:
                part = self._feed.some(length)
                length -= len(part)
                self._left -= len(part)
                yield part
        yield from _zeros(self._map.size_bytes - at)

    def read_into(self, buffer: memoryview) -> int:
        self._pieces = self._pieces or self.views()
        done = 0
        while done < len(buffer):
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._rest = piece
            part = self._rest[: len(buffer) - done]
            buffer[done : done + len(part)] = part
            self._rest = self._rest[len(part) :]
            done += len(part)
        return done


def _zeros(count: int) -> Iterator[memoryview]:
    while count:
        piece = _ZEROS[:count]
        count -= len(piece)
        yield piece

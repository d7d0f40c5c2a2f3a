"""Read a layer blob: plain, gzip or zstd bytes become tar bytes, piece by piece, with both digests.

Blobs are untrusted: pieces and total expansion are bounded. Does not interpret tar fields (`reader` does); the bytes
come from a `read`.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from zstandard import FrameParameters, ZstdDecompressor, ZstdError, frame_header_size, get_frame_parameters

from detlayer.errors import LayerError
from detlayer.layer.formats import HEAD_BYTES, check_format, format_of
from detlayer.oci.ports import Readable
from detlayer.oci.types import Digest

PIECE_BYTES = 1 << 20
_READ_BYTES = 1 << 18
_ZSTD_HEADER_BYTES = 18  # RFC 8878 3.1.1.1: magic, descriptor, window, dictionary, content size
_ZSTD_BLOCK_BYTES = 1 << 17
_ZSTD_RLE = 1
# Frames up to the maximum chunk (SPEC 6.1) are decompressed in one call, which is faster; others as a stream.
_WHOLE_BYTES = 9 << 20
_WHOLE_BLOCKS = 1 << 10
_MAX_MEMBERS = 1 << 22  # one per file of the largest layers (eStargz); bounds memory for a blob of empty members
_KEPT_HEADERS = 16
_ZSTD_MAX_WINDOW_BYTES = 1 << 27  # the limit of `zstd -d` without --long
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = (b"\x2a\x4d\x18", range(0x50, 0x60))  # RFC 8878 3.1.2, the last three bytes and the first
_FREE_BYTES = 1 << 30

Compression = Literal["none", "gzip", "zstd"]


@dataclass(slots=True)
class BlobFacts:
    """Facts of a blob; complete when all its pieces were read."""

    compression: Compression = "none"
    blob_bytes: int = 0
    tar_bytes: int = 0
    members: list[int] = field(default_factory=list)
    """Decompressed length of each gzip member or zstd frame; empty for a plain tar."""
    gzip_headers: dict[bytes, int] = field(default_factory=dict)
    """Each distinct member header (its ten fixed bytes), and the first member that has it."""
    gzip_name: bytes = b""
    first_member: bytes = b""
    """The compressed bytes of the first member or frame, if it is no longer than a chunk."""
    digest: Digest | None = None
    diff_id: Digest | None = None


class BlobReader:
    """Iterate to get the tar bytes, in pieces of at most a chunk (SPEC 6.1); then `facts` is complete.

    `max_expansion` bounds tar bytes per blob byte beyond the first GiB, holes of sparse files included. Raises
    LayerError.
    """

    def __init__(self, source: Readable, *, max_expansion: int = 200) -> None:
        self._source = source
        self._max_expansion = max_expansion
        self._blob_sha = hashlib.sha256()
        self._tar_sha = hashlib.sha256()
        self._holes_bytes = 0
        self.facts = BlobFacts()

    def __iter__(self) -> Iterator[bytes]:
        facts = self.facts
        head = self._read(_READ_BYTES)
        while len(head) < HEAD_BYTES and (more := self._read(_READ_BYTES)):
            head += more
        match format_of(head):
            case "gzip":
                facts.compression, pieces = "gzip", self._gunzip(head)
            case "zstd":
                facts.compression, pieces = "zstd", self._unzstd(head)
            case _:
                check_format(head)
                pieces = self._plain(head)
        for piece in pieces:
            facts.tar_bytes += len(piece)
            self._check_expansion()
            self._tar_sha.update(piece)
            yield piece
        facts.digest = Digest(self._blob_sha.hexdigest())
        facts.diff_id = Digest(self._tar_sha.hexdigest())

    def grow(self, holes_bytes: int) -> None:
        """Count the bytes of holes in sparse files; raises LayerError above the limit."""
        self._holes_bytes += holes_bytes
        self._check_expansion()

    def _check_expansion(self) -> None:
        facts = self.facts
        if facts.tar_bytes + self._holes_bytes > _FREE_BYTES + self._max_expansion * facts.blob_bytes:
            raise LayerError(
                "expansion-limit",
                f"the layer expands to over {self._max_expansion} times its size",
                "if you trust it, increase --max-expansion",
            )

    def _read(self, size: int) -> bytes:
        data = self._source.read(size)
        self.facts.blob_bytes += len(data)
        self._blob_sha.update(data)
        return data

    def _plain(self, head: bytes) -> Iterator[bytes]:
        while head:
            yield head
            head = self._read(PIECE_BYTES)

    def _gunzip(self, data: bytes) -> Iterator[bytes]:
        facts = self.facts
        kept = _Kept()
        while data:
            while len(data) < 10 and (more := self._read(_READ_BYTES)):
                data += more
            if not data.startswith(_GZIP_MAGIC):
                raise _garbage("gzip member")
            if len(data) < 10:
                raise LayerError("blob-truncated", "the gzip stream ends in the middle of a member", _AGAIN)
            self._note_gzip_header(data)
            member = zlib.decompressobj(wbits=31)
            length = 0
            while not member.eof:
                if not data:
                    data = self._read(_READ_BYTES)
                    if not data:
                        raise LayerError("blob-truncated", "the gzip stream ends in the middle of a member", _AGAIN)
                try:
                    piece = member.decompress(data, PIECE_BYTES)
                except zlib.error as error:
                    raise LayerError("blob-corrupt", f"the gzip stream is damaged: {error}", _AGAIN) from error
                rest = member.unused_data if member.eof else member.unconsumed_tail
                kept.take(data, len(data) - len(rest))
                data = rest
                length += len(piece)
                if piece:
                    yield piece
            self._note_member(length)
            if len(facts.members) == 1:
                facts.first_member = kept.close()
            if not data:
                data = self._read(_READ_BYTES)

    def _note_gzip_header(self, data: bytes) -> None:
        if len(self.facts.gzip_headers) < _KEPT_HEADERS:
            self.facts.gzip_headers.setdefault(data[:10], len(self.facts.members))
        if data[3] & 0x0C == 0x08 and not self.facts.gzip_name:
            self.facts.gzip_name = data[10:266].split(b"\0")[0]

    def _unzstd(self, data: bytes) -> Iterator[bytes]:
        ahead = _ReadAhead(self._read, data)
        decompressor = ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW_BYTES)
        while head := ahead.peek(_ZSTD_HEADER_BYTES):
            if _is_skippable(head):
                ahead.skip(8 + int.from_bytes(ahead.need(8)[4:8], "little"))
                continue
            if not head.startswith(_ZSTD_MAGIC):
                raise _garbage("zstd frame")
            length = 0
            try:
                _check_frame(get_frame_parameters(head))
                for piece in self._frame(ahead, decompressor, head):
                    length += len(piece)
                    yield piece
            except ZstdError as error:
                raise LayerError("blob-corrupt", f"the zstd stream is damaged: {error}", _AGAIN) from error
            self._note_member(length)

    def _frame(self, ahead: _ReadAhead, decompressor: ZstdDecompressor, head: bytes) -> Iterator[bytes]:
        """Decompress one frame by whole blocks (RFC 8878 3.1.1.2): a block expands to at most 128 KiB."""
        parameters = get_frame_parameters(head)
        compressed = [ahead.take(frame_header_size(head))]
        compressed_bytes = blocks = 0
        stream = None
        last = False
        while not last:
            block = int.from_bytes(ahead.need(3)[:3], "little")
            last = bool(block & 1)
            size = 3 + (1 if block >> 1 & 3 == _ZSTD_RLE else block >> 3)
            if size > 3 + _ZSTD_BLOCK_BYTES:
                raise LayerError("blob-corrupt", "the zstd stream is damaged: a block is too long", _AGAIN)
            compressed.append(ahead.take(size))
            compressed_bytes += size
            blocks += 1
            if last and parameters.has_checksum:
                compressed.append(ahead.take(4))
            if stream is None and (
                parameters.content_size > _WHOLE_BYTES or compressed_bytes > _WHOLE_BYTES or blocks > _WHOLE_BLOCKS
            ):
                stream = decompressor.decompressobj()
            if stream is not None and (last or len(compressed) >= 4):
                piece = stream.decompress(b"".join(compressed))
                compressed.clear()
                if piece:
                    yield piece
        if stream is None:
            whole = b"".join(compressed)
            if not self.facts.members:
                self.facts.first_member = whole
            if piece := decompressor.decompress(whole):
                yield piece
        elif not stream.eof:
            raise LayerError("blob-corrupt", "the zstd stream is damaged: a frame does not end", _AGAIN)

    def _note_member(self, length: int) -> None:
        self.facts.members.append(length)
        if len(self.facts.members) > _MAX_MEMBERS:
            raise LayerError(
                "blob-members", f"the layer has over {_MAX_MEMBERS} gzip members or zstd frames", "compress it again"
            )


class _ReadAhead:
    """Compressed bytes that were read but not yet used."""

    def __init__(self, read: Callable[[int], bytes], data: bytes) -> None:
        self._read = read
        self._data = data
        self._at = 0

    def peek(self, size: int) -> bytes:
        """Peek at the next `size` bytes, or fewer at the end."""
        while len(self._data) - self._at < size and (more := self._read(_READ_BYTES)):
            self._data, self._at = self._data[self._at :] + more, 0
        return self._data[self._at : self._at + size]

    def need(self, size: int) -> bytes:
        """Peek at the next `size` bytes; raises LayerError if there are fewer."""
        shown = self.peek(size)
        if len(shown) < size:
            raise LayerError("blob-truncated", "the zstd stream ends in the middle of a frame", _AGAIN)
        return shown

    def take(self, size: int) -> bytes:
        taken = self.need(size)
        self._at += size
        return taken

    def skip(self, size: int) -> None:
        while size > (ready := len(self._data) - self._at):
            size -= ready
            self._data, self._at = self._read(_READ_BYTES), 0
            if not self._data:
                raise LayerError("blob-truncated", "the zstd stream ends in a skippable frame", _AGAIN)
        self._at += size


class _Kept:
    """Keeps the compressed bytes of the first member, while it may be a chunk."""

    _MAX_BYTES = 9 << 20

    def __init__(self) -> None:
        self._parts: list[bytes] | None = []
        self._bytes = 0

    def take(self, data: bytes, used: int) -> None:
        if self._parts is not None:
            self._bytes += used
            if self._bytes > self._MAX_BYTES:
                self._parts = None
            else:
                self._parts.append(data[:used])

    def close(self) -> bytes:
        found = b"".join(self._parts or ())
        self._parts = None
        return found


_AGAIN = "fetch or pack it again"


def _is_skippable(data: bytes) -> bool:
    return data[1:4] == _SKIPPABLE[0] and data[0] in _SKIPPABLE[1]


def _check_frame(parameters: FrameParameters) -> None:
    if parameters.window_size > _ZSTD_MAX_WINDOW_BYTES:
        raise LayerError(
            "blob-window",
            f"the zstd stream requires a window of {parameters.window_size} bytes",
            f"engines support at most {_ZSTD_MAX_WINDOW_BYTES}; compress it without --long",
        )


def _garbage(what: str) -> LayerError:
    return LayerError("blob-garbage", f"unexpected bytes after the last {what}", "remove them, or pack the layer again")

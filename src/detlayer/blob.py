"""A layer blob read back: plain, gzip or zstd bytes become tar bytes, piece by piece, with both digests on the way.

Blobs come from anywhere, so nothing they say of themselves is believed: pieces are bounded, and so is how far a blob
may expand. Knows no tar fields (`untar` does) and no disk: the bytes come from a `read`.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from zstandard import FrameParameters, ZstdDecompressor, ZstdError, get_frame_parameters

from detlayer.errors import LayerError
from detlayer.oci import Digest

PIECE_BYTES = 1 << 20
_READ_BYTES = 1 << 18
# A zstd block of four bytes may stand for 128 KiB, and the decoder returns all that its input holds: fed this much at a
# time, a hostile frame gets to 64 MiB before it is counted.
_ZSTD_READ_BYTES = 1 << 11
_ZSTD_MAX_WINDOW_BYTES = 1 << 27  # what `zstd -d` takes without --long
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = (b"\x2a\x4d\x18", range(0x50, 0x60))  # RFC 8878 3.1.2, the last three bytes and the first
_FREE_BYTES = 1 << 30

Compression = Literal["none", "gzip", "zstd"]


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(slots=True)
class BlobFacts:
    """What reading a blob told; complete when its pieces are used up."""

    compression: Compression = "none"
    blob_bytes: int = 0
    tar_bytes: int = 0
    members: list[int] = field(default_factory=list)
    """Decompressed length of each gzip member or zstd frame; empty for a plain tar."""
    gzip_headers: dict[bytes, int] = field(default_factory=dict)
    """The ten fixed bytes of each different member header, and the first member that has it."""
    gzip_name: bytes = b""
    first_member: bytes = b""
    """The first member or frame as it stands in the blob, if it is no longer than a chunk may be."""
    digest: Digest | None = None
    diff_id: Digest | None = None


class BlobReader:
    """Iterate to get the tar bytes, in pieces of at most about a megabyte; then `facts` is complete.

    `max_expansion` bounds tar bytes per blob byte beyond the first GiB. Raises LayerError.
    """

    def __init__(self, source: Readable, *, max_expansion: int = 200) -> None:
        self._source = source
        self._max_expansion = max_expansion
        self._blob_sha = hashlib.sha256()
        self._tar_sha = hashlib.sha256()
        self.facts = BlobFacts()

    def __iter__(self) -> Iterator[bytes]:
        facts = self.facts
        head = self._read(_READ_BYTES)
        if head.startswith(_GZIP_MAGIC):
            facts.compression, pieces = "gzip", self._gunzip(head)
        elif head.startswith(_ZSTD_MAGIC) or _is_skippable(head):
            facts.compression, pieces = "zstd", self._unzstd(head)
        else:
            pieces = self._plain(head)
        for piece in pieces:
            facts.tar_bytes += len(piece)
            if facts.tar_bytes > _FREE_BYTES + self._max_expansion * facts.blob_bytes:
                raise LayerError(
                    "expansion-limit",
                    f"the layer grows to over {self._max_expansion} times its size",
                    "if you trust it, raise --max-expansion",
                )
            self._tar_sha.update(piece)
            yield piece
        facts.digest = Digest(self._blob_sha.hexdigest())
        facts.diff_id = Digest(self._tar_sha.hexdigest())

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
                raise _garbage()
            if len(data) < 10:
                raise LayerError("blob-truncated", "the gzip stream ends in the header of a member", _AGAIN)
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
            facts.members.append(length)
            if len(facts.members) == 1:
                facts.first_member = kept.close()
            if not data:
                data = self._read(_READ_BYTES)

    def _note_gzip_header(self, data: bytes) -> None:
        self.facts.gzip_headers.setdefault(data[:10], len(self.facts.members))
        if data[3] & 0x0C == 0x08 and not self.facts.gzip_name:
            self.facts.gzip_name = data[10:266].split(b"\0")[0]

    def _unzstd(self, data: bytes) -> Iterator[bytes]:
        facts = self.facts
        kept = _Kept()
        decompressor = ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW_BYTES)
        while data:
            while len(data) < 18 and (more := self._read(_READ_BYTES)):
                data += more
            if _is_skippable(data):
                data = self._skip_frame(data)
                continue
            try:
                _check_frame(get_frame_parameters(data))
                frame = decompressor.decompressobj()
                length = 0
                gathered: list[bytes] = []
                pending = 0
                while not frame.eof:
                    if not data:
                        data = self._read(_READ_BYTES)
                        if not data:
                            raise LayerError("blob-truncated", "the zstd stream ends in the middle of a frame", _AGAIN)
                    at = 0
                    while at < len(data) and not frame.eof:
                        piece = frame.decompress(data[at : at + _ZSTD_READ_BYTES])
                        used = min(_ZSTD_READ_BYTES, len(data) - at) - len(frame.unused_data)
                        kept.take(data[at : at + used], used)
                        at += used
                        if piece:
                            gathered.append(piece)
                            pending += len(piece)
                            if pending >= PIECE_BYTES:
                                yield b"".join(gathered)
                                length += pending
                                gathered.clear()
                                pending = 0
                    data = data[at:]
            except ZstdError as error:
                raise LayerError("blob-corrupt", f"the zstd stream is damaged: {error}", _AGAIN) from error
            if pending:
                yield b"".join(gathered)
                length += pending
            facts.members.append(length)
            if len(facts.members) == 1:
                facts.first_member = kept.close()
            if not data:
                data = self._read(_READ_BYTES)

    def _skip_frame(self, data: bytes) -> bytes:
        left = 8 + int.from_bytes(data[4:8], "little")
        while left > len(data):
            left -= len(data)
            data = self._read(_READ_BYTES)
            if not data:
                raise LayerError("blob-truncated", "the zstd stream ends in a skippable frame", _AGAIN)
        return data[left:] or self._read(_READ_BYTES)


class _Kept:
    """Keeps the compressed bytes of the first member, as long as they could be those of a chunk."""

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
            f"the zstd stream wants a window of {parameters.window_size} bytes",
            f"no engine takes more than {_ZSTD_MAX_WINDOW_BYTES}; compress it without --long",
        )


def _garbage() -> LayerError:
    return LayerError("blob-garbage", "something that is no gzip member follows the last one", "cut it off")

"""One pass from entries to a layer: tar bytes, chunks, codec, both digests and the key (SPEC 5 to 8).

Does not access registries or disks: entries come from an iterator whose contents open on demand, bytes go to a sink.
Memory is bounded by the number of chunk buffers, whatever the layer's size.

    entries ─ header + content ─> chunk buffer ─┬─> codec, or memory ─> tar sha256, blob sha256, sink, in order
              (calling thread)                  ┊   (a pipeline of workers, and the calling thread if no buffer is free)

Nearly all of it happens in C without the GIL; the Python code per entry in the calling thread is the hot path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from mmap import mmap

import msgspec
from blake3 import blake3

from detlayer.errors import LayerError, printable
from detlayer.layer import chunking, codec, tar
from detlayer.layer.chunking import CHUNK_MAX_BYTES, cut_before
from detlayer.layer.codec import Codec
from detlayer.layer.entry import Content, ContentReader, Entry
from detlayer.layer.key import EMPTY_FINGERPRINT, KEY_FORMAT, LayerKey, confirm, shrunk
from detlayer.layer.order import OrderChecker
from detlayer.layer.pipeline import BUFFER_BYTES, ChunkPipeline, Processor
from detlayer.layer.ports import Bytes, ChunkMemory, ContentMemory, Reporter, Silence, Sink
from detlayer.layer.tar import encode_header, padding
from detlayer.oci.types import MEDIA_TYPE_LAYER, Descriptor, Digest

ANNOTATION_PREFIX = "dev.detlayer."

_ZEROS = bytes(tar.BLOCK_BYTES)


class Layer(msgspec.Struct, frozen=True):
    """The result of a pass. `digest` is of the blob, `diff_id` of the tar, `key` of the entries."""

    codec: Codec
    codec_class: str
    digest: Digest
    size_bytes: int
    diff_id: Digest
    key: str
    entries: int
    files: int
    tar_bytes: int
    chunks: tuple[int, ...]

    @property
    def media_type(self) -> str:
        return MEDIA_TYPE_LAYER + self.codec.media_type_suffix

    def descriptor(self) -> Descriptor:
        """Return the blob's descriptor for a manifest, with values that a later check compares (SPEC 7.2)."""
        about = {
            "diff-id": str(self.diff_id),
            "key": self.key,
            "tar-format": tar.FORMAT,
            "chunk-format": chunking.FORMAT,
            "codec-format": codec.FORMAT,
            "key-format": KEY_FORMAT,
            "codec": self.codec.name,
            "codec-class": self.codec_class,
            "entries": str(self.entries),
            "files": str(self.files),
            "tar-bytes": str(self.tar_bytes),
            "chunks": str(len(self.chunks)),
        }
        annotations = {ANNOTATION_PREFIX + name: value for name, value in about.items()}
        return Descriptor(self.media_type, self.digest, self.size_bytes, annotations)


def pack(
    entries: Iterable[Entry],
    sink: Sink,
    *,
    codec: Codec = codec.DEFAULT_CODEC,
    jobs: int = 1,
    reporter: Reporter | None = None,
    contents: ContentMemory | None = None,
    chunks: ChunkMemory | None = None,
) -> Layer:
    """Write `entries`, which must be sorted, to `sink` as one layer blob.

    `jobs` threads compress; their number never changes the bytes. Every content is read. Its fingerprint comes from
    `contents`, which stores unknown ones; chunks that `chunks` has already compressed are reused. Raises LayerError
    when the entries violate SPEC 3, TreeError when a content does not match its entry, and the errors of the sink. The
    sink must then undo what was written.
    """
    with _PackPipeline(sink, codec, jobs, chunks) as pipeline:
        writer = _EntryWriter(pipeline, reporter or Silence(), contents)
        writer.write(entries)
        pipeline.drain()
        return Layer(
            codec=codec,
            codec_class=codec.codec_class,
            digest=Digest(pipeline.blob_sha.hexdigest()),
            size_bytes=pipeline.blob_bytes,
            diff_id=Digest(pipeline.tar_sha.hexdigest()),
            key=str(writer.key),
            entries=writer.entries,
            files=writer.files,
            tar_bytes=writer.tar_bytes,
            chunks=tuple(pipeline.chunks),
        )


def fingerprint(entries: Iterable[Entry], *, jobs: int = 1) -> bytes | None:
    """Compute the blake3 of the blake3s of the chunks that `pack` makes of `entries`.

    Takes two thirds of the time of a key if no content is known: one call per chunk, in other threads. None if a large
    content may have changed while it was read: only `pack` can tell. Raises the errors of `pack` for its entries.
    """
    with _FingerprintPipeline(jobs) as pipeline:
        writer = _EntryWriter(pipeline, Silence(), None, has_key=False)
        writer.write(entries)
        pipeline.drain()
        return pipeline.found.digest() if writer.is_sure else None


class _PackPipeline(ChunkPipeline[tuple[Bytes, bytes]]):
    """Compresses chunks; hashes tar and blob, and writes."""

    def __init__(self, sink: Sink, codec: Codec, jobs: int, memory: ChunkMemory | None) -> None:
        self._sink = sink
        self._memory = memory
        self._codec = codec
        self._is_plain = codec.name == "none"
        self.tar_sha = hashlib.sha256()
        self.blob_sha = self.tar_sha if self._is_plain else hashlib.sha256()
        self.blob_bytes = 0
        super().__init__(jobs)

    def processor(self) -> Processor[tuple[Bytes, bytes]]:
        compress = self._codec.compressor()
        memory = self._memory

        def process(chunk: memoryview) -> tuple[Bytes, bytes]:
            if memory is None:
                return compress(chunk), b""
            fingerprint = blake3(chunk).digest()
            data = memory.recall(fingerprint)
            return compress(chunk) if data is None else data, fingerprint

        return process

    def finish(self, chunk: memoryview, made: tuple[Bytes, bytes]) -> None:
        data, fingerprint = made
        self.tar_sha.update(chunk)
        if not self._is_plain:
            self.blob_sha.update(data)
        self._sink.write(data)
        if self._memory is not None:
            self._memory.learn(fingerprint, self.blob_bytes, data)
        self.blob_bytes += len(data)


class _FingerprintPipeline(ChunkPipeline[bytes]):
    """Computes fingerprints of chunks, and one over all of them."""

    def __init__(self, jobs: int) -> None:
        self.found = blake3()
        super().__init__(jobs)

    def processor(self) -> Processor[bytes]:
        return lambda chunk: blake3(chunk).digest()

    def finish(self, chunk: memoryview, made: bytes) -> None:
        self.found.update(made)


class _EntryWriter:
    """The calling thread's part: entries into chunk buffers, and the optional key over headers and contents."""

    def __init__(
        self,
        pipeline: _PackPipeline | _FingerprintPipeline,
        reporter: Reporter,
        memory: ContentMemory | None,
        *,
        has_key: bool = True,
    ) -> None:
        self._pipeline = pipeline
        self._memory = memory
        self._has_key = has_key
        self._buffer = pipeline.take_buffer()
        self._view = memoryview(self._buffer)
        self._reporter = reporter
        self._used = 0
        self.key = LayerKey()
        self.is_sure = True
        """False if, without a key, a doubtful content was too large to be read a second time."""
        self.entries = 0
        self.files = 0
        self.tar_bytes = 0

    def write(self, entries: Iterable[Entry]) -> None:
        add_to_key = self.key.add
        order = OrderChecker()
        before = 0
        for entry in entries:
            order.check(entry)
            header = encode_header(entry)
            size = entry.size_bytes
            if cut_before(entry.path if entry.kind != "dir" else entry.written_path, size, self._used, before):
                self._put_chunk()
            used = self._used
            end = used + len(header)
            room = end + min(size, CHUNK_MAX_BYTES) + tar.BLOCK_BYTES
            if room > len(self._view):
                self._grow(room)
            self._view[used:end] = header
            self._used = end
            if entry.kind == "file":
                self.files += 1
                add_to_key(header, self._write_content(entry, size) if size else EMPTY_FINGERPRINT)
            else:
                add_to_key(header)
            self.entries += 1
            before = size
        if before >= CHUNK_MAX_BYTES:
            self._put_chunk()
        self._append(tar.END)
        self._put_chunk(last=True)

    def _write_content(self, entry: Entry, size: int) -> bytes:
        """Write a file's content and padding; returns its fingerprint, which is empty without a key."""
        content = entry.content
        if content is None:
            raise LayerError("entry-content", f"{printable(entry.path)} has a size but no content", "")
        reader = content.open()
        try:
            if size < CHUNK_MAX_BYTES:
                start = self._used
                end = start + size
                piece = self._view[start:end]
                while reader.read_into(piece) == size:
                    if reader.finish():
                        break
                else:
                    raise shrunk(entry)
                fill = end + padding(size)
                self._view[end:fill] = _ZEROS[: fill - end]
                self._used = fill
                if not self._has_key:
                    return b""
                # Only now: a content that changed while it was read is unknown.
                known = self._memory.recall(entry) if self._memory is not None else None
                if known is not None:
                    return known
                fingerprint = blake3(piece).digest()
            else:
                digest = self._write_large(entry, reader, size)
                is_confirmed = reader.finish()
                self._append(bytes(padding(size)))
                if digest is None:
                    self.is_sure = self.is_sure and is_confirmed
                    return b""
                if not is_confirmed:  # its chunks were already submitted
                    confirm(entry, reader, digest)
                fingerprint = digest.digest()
            if self._memory is not None:
                self._memory.learn(entry, fingerprint)
            return fingerprint
        finally:
            reader.close()

    def _write_large(self, entry: Entry, reader: ContentReader, size: int) -> blake3 | None:
        """Write content in pieces of CHUNK_MAX, one chunk each (SPEC 6.1); the last stays open for its padding."""
        digest = blake3() if self._has_key else None
        left = size
        while True:
            length = min(left, CHUNK_MAX_BYTES)
            piece = self._view[self._used : self._used + length]
            if reader.read_into(piece) != length:
                raise shrunk(entry)
            if digest is not None:
                digest.update(piece)
            self._used += length
            left -= length
            if not left:
                return digest
            self._put_chunk()

    def _append(self, data: bytes) -> None:
        end = self._used + len(data)
        if end > len(self._view):
            self._grow(end)
        self._view[self._used : end] = data
        self._used = end

    def _grow(self, size_bytes: int) -> None:
        """Make room for unusually long headers (a megabyte of extended attributes)."""
        grown = mmap(-1, size_bytes + BUFFER_BYTES)
        grown[: self._used] = self._view[: self._used]
        self._buffer, self._view = grown, memoryview(grown)

    def _put_chunk(self, *, last: bool = False) -> None:
        self.tar_bytes += self._used
        self._pipeline.put_chunk(self._buffer, self._used)
        self._reporter.progress(self.entries, self.tar_bytes)
        if not last:
            self._next_chunk()

    def _next_chunk(self) -> None:
        self._buffer = self._pipeline.take_buffer()
        self._view = memoryview(self._buffer)
        self._used = 0


class BytesContent:
    """Content in memory."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def open(self) -> ContentReader:
        return _BytesReader(self._data)


class _BytesReader:
    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def read_into(self, buffer: memoryview) -> int:
        piece = self._data[self._at : self._at + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def finish(self) -> bool:
        if self._at != len(self._data):
            raise LayerError("entry-size", f"an entry has size {self._at}, its content {len(self._data)} bytes", "")
        return True

    def close(self) -> None:
        return


_: type[Content] = BytesContent

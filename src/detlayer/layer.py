"""One pass from entries to a layer: tar bytes, chunks, codec, both digests and the key (SPEC 5 to 8).

Knows no registry and no disk: entries come in by an iterator whose contents open on demand, bytes go out through a
sink. Memory is bounded by the number of chunk buffers, whatever the layer's size.

    entries ─ header + content ─> chunk buffer ─┬─> codec, or memory ─> tar sha256, blob sha256, sink, in order
              (calling thread)                  ┊   (workers, and the calling thread when it has to wait)

Nearly all of it happens in C without the GIL; the calling thread's Python per entry is the hot path.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from mmap import mmap
from threading import Condition, Lock, Thread

from blake3 import blake3

from detlayer import chunk, codec, tar
from detlayer.chunk import CHUNK_MAX_BYTES, cut_before
from detlayer.codec import Codec, Compressor
from detlayer.entry import Content, ContentReader, Entry, check_follows
from detlayer.errors import LayerError, printable
from detlayer.key import EMPTY_FINGERPRINT, KEY_FORMAT, shrunk
from detlayer.oci import MEDIA_TYPE_LAYER, Descriptor, Digest
from detlayer.ports import Bytes, ChunkMemory, ContentMemory, Reporter, Silence, Sink
from detlayer.tar import encode_header, padding

ANNOTATION_PREFIX = "dev.detlayer."

# The longest chunk of small entries: just under CHUNK_MAX, and then one more of just under CHUNK_MAX with its headers.
# As anonymous maps: pages that no chunk reaches are never touched, so the size costs address space, not memory.
_BUFFER_BYTES = 2 * CHUNK_MAX_BYTES + (1 << 20)

# Beyond one per worker: one being filled, and some for chunks that wait for their turn at the tar hash or the sink.
_SPARE_BUFFERS = 4


@dataclass(frozen=True, slots=True)
class Layer:
    """What a pass made. `digest` is of the blob, `diff_id` of the tar, `key` of the entries."""

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
        """Describe the blob for a manifest, with all that a later check compares as annotations (SPEC 7.2)."""
        about = {
            "diff-id": str(self.diff_id),
            "key": self.key,
            "tar-format": tar.FORMAT,
            "chunk-format": chunk.FORMAT,
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
    """Write `entries`, which must come in order, to `sink` as one layer blob.

    `jobs` workers compress; it never shows in the bytes. Every content is read; its fingerprint comes from `contents`,
    which else hears it, and what `chunks` has compressed already is taken from there. Raises LayerError when the
    entries break SPEC 3, TreeError when a content is not what its entry says, and whatever the sink raises. What the
    sink holds then is the sink's to undo.
    """
    with _Line(sink, codec, jobs, chunks) as line:
        source = _Source(line, reporter or Silence(), contents)
        source.write(entries)
        line.drain()
        return Layer(
            codec=codec,
            codec_class=codec.codec_class,
            digest=Digest(line.blob_sha.hexdigest()),
            size_bytes=line.blob_bytes,
            diff_id=Digest(line.tar_sha.hexdigest()),
            key="blake3:" + source.key.hexdigest(),
            entries=source.entries,
            files=source.files,
            tar_bytes=source.tar_bytes,
            chunks=tuple(line.chunks),
        )


class _Line:
    """Behind the calling thread: compresses, hashes tar and blob, writes.

    There are as many threads as jobs, the calling one among them: when no buffer is free it compresses a chunk instead
    of waiting. More threads than processors cost a tenth of the time in caches alone (measured with zstd).
    """

    def __init__(self, sink: Sink, codec: Codec, jobs: int, memory: ChunkMemory | None) -> None:
        self._sink = sink
        self._memory = memory
        self._codec = codec
        self._compress = codec.compressor()
        self._pending: deque[tuple[int, mmap, memoryview]] = deque()
        self._done: dict[int, tuple[mmap, memoryview, Bytes, bytes]] = {}
        self._written = 0
        self._stopped = False
        self._failure: BaseException | None = None
        # Last in, first out: the buffer that was just done is the one whose memory is still near the processor.
        self._free = [mmap(-1, _BUFFER_BYTES) for _ in range(jobs + _SPARE_BUFFERS)]
        self._lock = Lock()
        self._chunk_there = Condition(self._lock)
        self._buffer_free = Condition(self._lock)
        self._writing = Lock()
        self._workers = [Thread(target=self._work, name="detlayer-codec", daemon=True) for _ in range(jobs - 1)]
        self._is_plain = codec.name == "none"
        self.tar_sha = hashlib.sha256()
        self.blob_sha = self.tar_sha if self._is_plain else hashlib.sha256()
        self.blob_bytes = 0
        self.chunks: list[int] = []

    def __enter__(self) -> _Line:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *failed: object) -> None:
        with self._lock:
            self._stopped = True
            self._pending.clear()
            self._chunk_there.notify_all()
        # A worker may be stuck in a write that nobody reads; whoever interrupts does not want to wait for it.
        patience_s = None if kind is None or issubclass(kind, Exception) else 5.0
        for worker in self._workers:
            worker.join(patience_s)

    def take_buffer(self) -> mmap:
        """Return a free chunk buffer, doing a chunk's work meanwhile if there is none; raises what failed behind."""
        while True:
            with self._lock:
                while not self._free and not self._pending and self._failure is None:
                    self._buffer_free.wait()
                if self._failure is not None:
                    raise self._failure
                if self._free:
                    return self._free.pop()
                item = self._pending.popleft()
            self._process(self._compress, *item)

    def put_chunk(self, buffer: mmap, size_bytes: int) -> None:
        """Hand over a full chunk, in order."""
        view = memoryview(buffer)[:size_bytes]
        with self._lock:
            self._pending.append((len(self.chunks), buffer, view))
            self._chunk_there.notify()
        self.chunks.append(size_bytes)

    def drain(self) -> None:
        """Work until everything is written; raises what failed."""
        while True:
            with self._lock:
                while not self._pending and self._written < len(self.chunks) and self._failure is None:
                    self._buffer_free.wait()
                if self._failure is not None:
                    raise self._failure
                if not self._pending:
                    return
                item = self._pending.popleft()
            self._process(self._compress, *item)

    def _work(self) -> None:
        compress = self._codec.compressor()
        while True:
            with self._lock:
                while not self._pending and not self._stopped:
                    self._chunk_there.wait()
                if self._stopped:
                    return
                item = self._pending.popleft()
            self._process(compress, *item)

    def _process(self, compress: Compressor, number: int, buffer: mmap, view: memoryview) -> None:
        """Compress a chunk, and hash and write it and those behind it that are done, once its turn has come."""
        try:
            fingerprint = b""
            data: Bytes | None = None
            if self._memory is not None:
                fingerprint = blake3(view).digest()
                data = self._memory.recall(fingerprint)
            self._done[number] = (buffer, view, compress(view) if data is None else data, fingerprint)
            # Nobody waits for the thread that writes: it looks again before it turns to something else.
            while self._written in self._done and self._writing.acquire(blocking=False):
                try:
                    self._write_done()
                finally:
                    self._writing.release()
        except BaseException as error:
            with self._lock:
                self._failure = self._failure or error
                self._buffer_free.notify()

    def _write_done(self) -> None:
        """Hash and write the chunks whose turn it is; one thread at a time."""
        while (done := self._done.pop(self._written, None)) is not None and self._failure is None:
            buffer, view, data, fingerprint = done
            self.tar_sha.update(view)
            if not self._is_plain:
                self.blob_sha.update(data)
            self._sink.write(data)
            if self._memory is not None:
                self._memory.learn(fingerprint, self.blob_bytes, data)
            self.blob_bytes += len(data)
            with self._lock:
                self._written += 1
                self._free.append(buffer)
                self._buffer_free.notify()


class _Source:
    """The calling thread's part: entries into chunk buffers, and the key over headers and contents."""

    def __init__(self, line: _Line, reporter: Reporter, memory: ContentMemory | None) -> None:
        self._line = line
        self._memory = memory
        self._buffer = line.take_buffer()
        self._view = memoryview(self._buffer)
        self._reporter = reporter
        self._key_parts: list[bytes] = []
        self._used = 0
        self.key = blake3(KEY_FORMAT.encode() + b"\n")
        self.entries = 0
        self.files = 0
        self.tar_bytes = 0

    def write(self, entries: Iterable[Entry]) -> None:
        key_parts = self._key_parts
        previous: Entry | None = None
        for entry in entries:
            if previous is not None:
                check_follows(entry, previous)
            header = encode_header(entry)
            size = entry.size_bytes
            if cut_before(
                entry.path if entry.kind != "dir" else entry.written_path,
                size,
                self._used,
                previous.size_bytes if previous is not None else 0,
            ):
                self._put_chunk()
            key_parts.append(header)
            used = self._used
            end = used + len(header)
            room = end + min(size, CHUNK_MAX_BYTES) + tar.BLOCK_BYTES
            if room > len(self._view):
                self._grow(room)
            self._view[used:end] = header
            self._used = end
            if entry.kind == "file":
                self.files += 1
                if size:
                    self._write_content(entry, size)
                else:
                    key_parts.append(EMPTY_FINGERPRINT)
            self.entries += 1
            previous = entry
        if previous is not None and previous.size_bytes >= CHUNK_MAX_BYTES:
            self._put_chunk()
        self._append(tar.END)
        self._put_chunk(last=True)

    def _write_content(self, entry: Entry, size: int) -> None:
        content = entry.content
        if content is None:
            raise LayerError("entry-content", f"{printable(entry.path)} has a size but no content", "")
        reader = content.open()
        try:
            if size < CHUNK_MAX_BYTES:
                start = self._used
                end = start + size
                piece = self._view[start:end]
                if reader.read_into(piece) != size:
                    raise shrunk(entry)
                self._used = end
                reader.finish()
                # Asked only now: what changed while it was read is not known.
                fingerprint = self._memory.recall(entry) if self._memory is not None else None
                if fingerprint is None:
                    fingerprint = blake3(piece).digest()
                    if self._memory is not None:
                        self._memory.learn(entry, fingerprint)
            else:
                fingerprint = self._write_large(entry, reader, size)
                reader.finish()
                if self._memory is not None:
                    self._memory.learn(entry, fingerprint)
            self._key_parts.append(fingerprint)
        finally:
            reader.close()
        fill = padding(size)
        if fill:
            self._append(bytes(fill))

    def _write_large(self, entry: Entry, reader: ContentReader, size: int) -> bytes:
        """Write content in pieces of CHUNK_MAX, a chunk each (SPEC 6.1); the last stays open for its padding."""
        digest = blake3()
        left = size
        while True:
            length = min(left, CHUNK_MAX_BYTES)
            piece = self._view[self._used : self._used + length]
            if reader.read_into(piece) != length:
                raise shrunk(entry)
            digest.update(piece)
            self._used += length
            left -= length
            if not left:
                break
            self._put_chunk()
        return digest.digest()

    def _append(self, data: bytes) -> None:
        end = self._used + len(data)
        if end > len(self._view):
            self._grow(end)
        self._view[self._used : end] = data
        self._used = end

    def _grow(self, size_bytes: int) -> None:
        """Make room for headers longer than any that a sane tree has (a megabyte of extended attributes)."""
        grown = mmap(-1, size_bytes + _BUFFER_BYTES)
        grown[: self._used] = self._view[: self._used]
        self._buffer, self._view = grown, memoryview(grown)

    def _put_chunk(self, *, last: bool = False) -> None:
        self.key.update(b"".join(self._key_parts))
        self._key_parts.clear()
        self.tar_bytes += self._used
        self._line.put_chunk(self._buffer, self._used)
        self._reporter.progress(self.entries, self.tar_bytes)
        if not last:
            self._next_chunk()

    def _next_chunk(self) -> None:
        self._buffer = self._line.take_buffer()
        self._view = memoryview(self._buffer)
        self._used = 0


class BytesContent:
    """Content that is in memory."""

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

    def finish(self) -> None:
        if self._at != len(self._data):
            raise LayerError("entry-size", f"an entry says {self._at} bytes of a content of {len(self._data)}", "")

    def close(self) -> None:
        return


_: type[Content] = BytesContent

"""What one pack asks of the store, and tells it: traces by key, contents by stat record, chunks by their blake3.

What it gives is what a cold pack gives, byte by byte: a trace is found by the key of the entries, which names the tar
(SPEC 8), and the codec class, which names what the compressor makes of it; a chunk by its blake3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import msgspec
from blake3 import blake3

from detlayer.errors import printable
from detlayer.layer import chunking, codec, tar
from detlayer.layer.codec import Codec
from detlayer.layer.entry import Entry
from detlayer.layer.key import KEY_FORMAT, key_of
from detlayer.layer.ports import Bytes, ChunkMemory, Reporter, Sink
from detlayer.layer.writer import Layer, fingerprint
from detlayer.oci.types import Digest, parse_digest
from detlayer.packing.explanation import Explanation
from detlayer.packing.known_chunks import Chunks
from detlayer.packing.known_contents import Contents
from detlayer.packing.sources import Sources
from detlayer.store import Incoming, LostBlobError, Store
from detlayer.store.keeping import MAX_BYTES, make_room

_PIECE_BYTES = 1 << 20
_CHECK_BYTES = 32 << 20  # how often it is asked whether there is room
_LEFT_FREE_BYTES = 256 << 20
_SCAN_STEP = "scan/1"
_CHUNKS_STEP = "chunks/1"
_STRANGE_FILES = 64  # so many that are not known, and none that is: nor will the others be
# All that a step depends on besides the entries and the codec.
_STEP = " ".join(("pack/1", tar.FORMAT, chunking.FORMAT, codec.FORMAT, KEY_FORMAT))


class _Results(msgspec.Struct):
    digest: str
    size: int
    diff_id: str
    key: str
    entries: int
    files: int
    tar_bytes: int
    chunks: tuple[int, ...]


class Reuse:
    """What one pack asks of the store, and tells it: `find` first; if it gives nothing, a pack through the rest.

    That pack hands its entries' contents to `contents`, its chunks to `chunks`, its blob to `blob`, and then the layer
    to `keep`.
    """

    def __init__(
        self,
        store: Store,
        codec: Codec,
        sources: Sources,
        *,
        jobs: int,
        reporter: Reporter,
        is_paranoid: bool = False,
    ) -> None:
        self._store = store
        self._sources = sources
        self._codec = codec
        self._step = f"{_STEP} {codec.name} {codec.codec_class}"
        self._jobs = jobs
        self._reporter = reporter
        self._is_paranoid = is_paranoid
        self._liars: list[bytes] = []
        self._started_ns = int(store.clock() * 1e9)
        self._chunks = Chunks(store, codec, recalls=not is_paranoid)
        self._blob = _SpareBlob(store)
        self.explanation = Explanation()
        self.contents = Contents(store, self._started_ns, self.explanation, self._liars.append if is_paranoid else None)

    def __enter__(self) -> Reuse:
        return self

    def __exit__(self, *failed: object) -> None:
        self._blob.discard()
        self._chunks.close()

    @property
    def blob(self) -> Sink:
        """Takes the new blob, and never fails: a store that is full goes without."""
        return self._blob

    @property
    def chunks(self) -> ChunkMemory:
        return self._chunks

    # -- before a pack

    def find(self) -> Layer | None:
        """Look for the layer of these sources among the traces; None if it has to be packed.

        Contents are read only where stat records don't know them, and where there is a trace that they could lead to.
        Raises what a pack of the same sources raises.
        """
        explanation = self.explanation
        if self._is_paranoid:
            explanation.reason = "everything was read and compressed, as was asked for"
            return None
        if not self._store.traces.resembles(self._step):
            explanation.reason = f"no layer of {self._codec.name} is known"
            return None
        glance = self._sources.scan()
        if glance is None:
            explanation.reason = "the tree has something that only a walk can judge"
            return None
        key = self._store.traces.get(glance.key, self._now()) if glance.key else None
        if key is not None:
            layer = self._recall(_text(key))
            explanation.is_scanned = layer is not None
            return layer
        if not self._store.traces.resembles(self._step, glance.about):
            explanation.reason = "the tree has changed"
            return None
        # As many entries of as many bytes: unless a file changed and kept its size, only stat records are others.
        memory = Contents(self._store, self._started_ns, explanation)
        try:
            found = key_of(self._unless_strange(), memory)
        except _StrangeError:
            return self._find_strange()
        memory.close()
        layer = self._recall(found)
        if layer is not None:
            self._keep_scan(found)
        else:  # what was found of the files has been said
            self.contents = Contents(self._store, self._started_ns, Explanation())
        return layer

    def _unless_strange(self) -> Iterator[Entry]:
        """Walk, up to where it shows that no stat record is known, as in a fresh checkout."""
        for entry in self._sources.entries():
            yield entry
            if self.explanation.read >= _STRANGE_FILES and not self.explanation.known:
                raise _StrangeError

    def _find_strange(self) -> Layer | None:
        """Look for the layer by its chunks: where all has to be read, that takes less time than file by file."""
        explanation = self.explanation = Explanation()
        found = fingerprint(self._sources.entries(), jobs=self._jobs)
        key = self._store.traces.get(self._trace_key(found.hex()), self._now()) if found is not None else None
        layer = self._recall(_text(key)) if key is not None else None
        if layer is not None:
            explanation.is_strange = True
            self._keep_scan(layer.key)
        else:
            explanation.reason = explanation.reason or "no layer of the same chunks is known"
            self.contents = Contents(self._store, self._started_ns, explanation)
        return layer

    def _keep_scan(self, key: str) -> None:
        """Remember to which key the walk that just ended has led, if a scan can be trusted to tell it again."""
        glance = self._sources.witnessed(self._started_ns)
        if glance.key:
            self._store.traces.put(glance.key, _SCAN_STEP, key.encode(), self._now(), local=True)

    def _recall(self, key: str) -> Layer | None:
        data = self._store.traces.get(self._trace_key(key), self._now())
        if data is None:
            self.explanation.reason = "no layer of such a tree is known"
            return None
        try:
            results = msgspec.json.decode(data, type=_Results)
            # Who wrote what was imported is not known, and a digest names a file.
            digest = parse_digest(f"sha256:{results.digest}")
            diff_id = parse_digest(f"sha256:{results.diff_id}")
        except (msgspec.MsgspecError, ValueError):
            self.explanation.reason = "what is known of such a tree is damaged"
            return None
        if not self._store.blobs.is_intact(digest):
            self.explanation.reason = f"{digest} is not in the cache any more"
            return None
        self.explanation.outcome = "whole"
        return Layer(
            codec=self._codec,
            codec_class=self._codec.codec_class,
            digest=digest,
            size_bytes=results.size,
            diff_id=diff_id,
            key=key,
            entries=results.entries,
            files=results.files,
            tar_bytes=results.tar_bytes,
            chunks=results.chunks,
        )

    def copy(self, layer: Layer, sink: Sink, *, is_final: bool) -> bool:
        """Write the blob of a layer that was found; False if it is corrupt, and the layer has to be packed.

        What was written to the sink is then wrong. Where that is final, the blob is read before anything is written;
        raises LostBlobError if it is lost between the two.
        """
        blobs = self._store.blobs
        body = blobs.body(layer.digest)
        if body is not None and is_final and blobs.judge(layer.digest, sync=False)[0] != "intact":
            blobs.reject(layer.digest)
            body = None
        if body is not None:
            try:
                with body.open() as file:
                    while piece := file.read(_PIECE_BYTES):
                        sink.write(piece)
                return True
            except LostBlobError:
                if is_final:
                    raise
        self.explanation = Explanation(reason=f"{layer.digest} in the cache is corrupt")
        self.contents = Contents(self._store, self._started_ns, self.explanation)
        return False

    # -- after a pack

    def keep(self, layer: Layer) -> bool:
        """Keep what was made and learned; tells whether the store has the blob now."""
        key = self._trace_key(layer.key)
        if self._is_paranoid:
            self._compare(key, layer)
        self.explanation.copied, self.explanation.compressed = self._chunks.copied, self._chunks.compressed
        if self._chunks.copied:
            self.explanation.outcome = "chunks"
        self.contents.close()
        self._keep_scan(layer.key)
        is_kept = self._blob.commit(layer.digest)
        if is_kept:
            results = _Results(
                layer.digest.hex,
                layer.size_bytes,
                layer.diff_id.hex,
                layer.key,
                layer.entries,
                layer.files,
                layer.tar_bytes,
                layer.chunks,
            )
            self._store.traces.put(
                key,
                self._step,
                msgspec.json.encode(results),
                self._now(),
                about=self._sources.witnessed(self._started_ns).about,
                blobs=[layer.digest],
                chunks=[(chunk, layer.digest, spot) for chunk, spot in self._chunks.spots],
            )
            by_chunks = self._trace_key(self._chunks.fingerprint().hex())
            self._store.traces.put(by_chunks, _CHUNKS_STEP, layer.key.encode(), self._now(), blobs=[layer.digest])
            make_room(self._store)
        return is_kept

    def _compare(self, key: bytes, layer: Layer) -> None:
        """Say where what was remembered is not what was read and made."""
        if self._liars:
            self._reporter.warning(
                "cache-wrong",
                f"{printable(self._liars[0])} changed without a trace in its stat record, as did "
                f"{len(self._liars) - 1:,} others: pack this tree with --paranoid or --no-cache",
            )
        data = self._store.traces.get(key, self._now())
        with suppress(msgspec.MsgspecError):
            if data is not None and msgspec.json.decode(data, type=_Results).digest != layer.digest.hex:
                self._reporter.warning(
                    "cache-wrong", f"the cache had another blob for this tree than {layer.digest}: it is replaced"
                )

    def _trace_key(self, key: str) -> bytes:
        return blake3(f"{self._step}\n{key}\n".encode()).digest()

    def _now(self) -> int:
        return self._started_ns // 1_000_000_000


def _text(key: bytes) -> str:
    """Read the key of a layer that a trace has; one that is none leads nowhere."""
    return key.decode("ascii", "replace")


class _StrangeError(Exception):
    """No stat record of the tree is known."""


class _SpareBlob:
    """The store's copy of a new blob. What goes wrong with it is a warning, and no copy.

    Nor is there one of a blob that would fill half the store, or the disk: the output may need that room.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._incoming: Incoming | None = None
        self._is_over = False
        self._size_bytes = 0
        self._checked_bytes = 0

    def write(self, data: Bytes, /) -> None:
        if self._is_over:
            return
        try:
            if self._incoming is None:
                self._incoming = self._store.blobs.incoming()
            self._size_bytes += len(data)
            if self._size_bytes - self._checked_bytes > _CHECK_BYTES:
                self._checked_bytes = self._size_bytes
                if self._size_bytes > MAX_BYTES // 2 or self._incoming.free_bytes() < _LEFT_FREE_BYTES:
                    self._give_up()
                    return
            self._incoming.write(data)
        except OSError as error:
            self._fail(error)

    def commit(self, digest: Digest) -> bool:
        """Put it under its digest; tells whether it is there."""
        try:
            if self._incoming is not None and not self._is_over:
                self._incoming.commit(digest)
                return True
        except OSError as error:
            self._fail(error)
        return False

    def discard(self) -> None:
        if self._incoming is not None:
            self._incoming.discard()

    def _give_up(self) -> None:
        self._is_over = True
        self.discard()

    def _fail(self, error: OSError) -> None:
        self._give_up()
        self._store.index.warn(
            "cache-unusable", f"{printable(self._store.directory)}: {error.strerror}: the layer is not kept"
        )

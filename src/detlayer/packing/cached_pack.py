"""A pack with a cache: find the layer, or else pack it with cached chunks and keep it.

The result is byte for byte that of a pack without a cache. A trace is found by the key of the entries, which names the
tar (SPEC 8), and the codec class, which names the compressor's output; a chunk is found by its blake3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import msgspec
from blake3 import blake3

from detlayer.errors import printable
from detlayer.layer import chunking, codec, tar, writer
from detlayer.layer.codec import Codec
from detlayer.layer.entry import Entry
from detlayer.layer.key import KEY_FORMAT, key_of
from detlayer.layer.ports import Reporter, Sink
from detlayer.layer.writer import Layer
from detlayer.oci.types import parse_digest
from detlayer.output.files import Outputs, Tee
from detlayer.packing.cache_copy import SpareBlob
from detlayer.packing.chunk_cache import ChunkCache
from detlayer.packing.content_cache import ContentCache
from detlayer.packing.explanation import Explanation
from detlayer.packing.pack_input import PackInput
from detlayer.store import LostBlobError, Store
from detlayer.store.maintenance import make_room
from detlayer.store.traces import Trace
from detlayer.tree import Scan, Walk

_PIECE_BYTES = 1 << 20
_SCAN_STEP = "scan/1"
_CHUNKS_STEP = "chunks/1"
_MANY_FILES = 64  # if the first this many files are unknown, the others most likely are, too
# Everything that a step depends on besides the entries and the codec.
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


class Lookup(msgspec.Struct, frozen=True):
    """The result of a search for the layer: the layer, or what the pack can use."""

    explanation: Explanation
    layer: Layer | None = None
    scanned: Scan | None = None
    """What the search saw of the tree, for a walk right after it."""
    warnings: Sequence[tuple[str, str]] = ()
    """The warnings of its walk."""
    paths: Sequence[bytes] = ()
    """The paths that its walk looked at, if the input keeps paths."""
    is_counted: bool = False
    """Whether the explanation already counts the files."""


class Packed(msgspec.Struct, frozen=True):
    """A layer, and information about the pack that made it."""

    layer: Layer
    explanation: Explanation
    paths: Sequence[bytes] = ()
    """All files and directories that were looked at, if the input keeps paths."""
    is_kept: bool = True
    """Whether the cache has the blob."""


class CachedPack:
    """One pack with a cache: call `find` first; if it finds no layer, `pack` makes it."""

    def __init__(
        self,
        store: Store,
        codec: Codec,
        source: PackInput,
        *,
        jobs: int,
        is_paranoid: bool = False,
    ) -> None:
        self._store = store
        self._input = source
        self._codec = codec
        self._step = f"{_STEP} {codec.name} {codec.codec_class}"
        self._jobs = jobs
        self._is_paranoid = is_paranoid
        self._started_ns = int(store.clock() * 1e9)

    def write(self, outputs: Outputs, reporter: Reporter) -> Packed:
        """Write the layer to outputs with as little work as possible; raises the errors of `layer.writer.pack`."""
        lookup = self.find()
        if lookup.layer is not None:
            packed = Packed(lookup.layer, lookup.explanation, lookup.paths)
            if self._copy(packed, outputs):
                for code, message in lookup.warnings:
                    reporter.warning(code, message)
                return packed
            outputs.restart()
            reason = f"{lookup.layer.digest} in the cache is corrupt"
            lookup = Lookup(Explanation(reason=reason), scanned=lookup.scanned)
        return self.pack(lookup, outputs.sinks, reporter)

    # -- before a pack

    def find(self) -> Lookup:
        """Look for the layer of these sources among the traces.

        Reads contents only if their stat records are unknown and there is a trace that they may lead to. Raises the
        errors of a pack of the same sources.
        """
        traces = self._store.traces
        if self._is_paranoid:
            return Lookup(Explanation(reason="--paranoid: everything was read and compressed"))
        if not traces.resembles(self._step):
            return Lookup(Explanation(reason=f"the cache has no {self._codec.name} layer"))
        scanned = self._input.scan()
        if scanned is None:
            return Lookup(Explanation(reason="the tree needs a full walk"))
        state = self._input.state_of_scan(scanned)
        key = traces.get(state.key, self._now()) if state.key else None
        if key is not None:
            explanation = Explanation()
            layer = self._recall(_text(key), explanation)
            explanation.is_scanned = layer is not None
            return Lookup(explanation, layer, scanned)
        if not traces.resembles(self._step, state.about):
            return Lookup(Explanation(reason="the tree has changed"), scanned=scanned)
        # The number and size of files match a trace: unless a file changed and kept its size, only stat records differ.
        return self._find_by_contents(scanned)

    def _find_by_contents(self, scanned: Scan) -> Lookup:
        explanation = Explanation()
        contents = ContentCache(self._store, self._started_ns, explanation)
        walk = self._input.walk(scanned)

        def is_fresh() -> bool:
            """Tell whether no stat record is known, as in a fresh checkout."""
            return explanation.read >= _MANY_FILES and not explanation.known

        def entries() -> Iterator[Entry]:
            for entry in walk:
                yield entry
                if is_fresh():
                    return

        key = key_of(entries(), contents)
        if is_fresh():
            return self._find_by_chunks(scanned)
        contents.close()
        layer = self._recall(key, explanation)
        if layer is not None:
            self._keep_scan(key, walk)
        return Lookup(explanation, layer, scanned, walk.warnings, walk.paths, is_counted=True)

    def _find_by_chunks(self, scanned: Scan) -> Lookup:
        """Find the layer by its chunks: if everything must be read, that is faster than file by file."""
        explanation = Explanation()
        walk = self._input.walk(scanned)
        found = writer.fingerprint(walk, jobs=self._jobs)
        key = self._store.traces.get(self._trace_key(found.hex()), self._now()) if found is not None else None
        layer = self._recall(_text(key), explanation) if key is not None else None
        if layer is not None:
            explanation.is_fresh_checkout = True
            self._keep_scan(layer.key, walk)
        else:
            explanation.reason = explanation.reason or "the cache has no layer with the same chunks"
        return Lookup(explanation, layer, scanned, walk.warnings, walk.paths)

    def explain_files(self, lookup: Lookup, each: Callable[[Entry], None]) -> Explanation:
        """Report which files changed, without a pack; `each` gets every entry."""
        explanation = Explanation()

        def entries() -> Iterator[Entry]:
            for entry in self._input.walk(lookup.scanned):
                each(entry)
                yield entry

        key_of(entries(), ContentCache(self._store, self._started_ns, explanation))
        return lookup.explanation if lookup.is_counted else explanation

    def _keep_scan(self, key: str, walk: Walk) -> None:
        """Record the key of the walk that just ended, if a later scan can recognise the same tree."""
        state = self._input.state_after(walk, self._started_ns)
        if state.key:
            self._store.traces.put(Trace(state.key, _SCAN_STEP, key.encode(), is_local=True), self._now())

    def _recall(self, key: str, explanation: Explanation) -> Layer | None:
        """Return the layer that the trace of a key names; otherwise set the reason in the explanation."""
        data = self._store.traces.get(self._trace_key(key), self._now())
        if data is None:
            explanation.reason = "the cache has no layer of this tree"
            return None
        try:
            results = msgspec.json.decode(data, type=_Results)
            # Imported traces are unverified, and a digest names a file.
            digest = parse_digest(f"sha256:{results.digest}")
            diff_id = parse_digest(f"sha256:{results.diff_id}")
        except (msgspec.MsgspecError, ValueError):
            explanation.reason = "the cached trace of this tree is damaged"
            return None
        if not self._store.blobs.is_intact(digest):
            explanation.reason = f"{digest} is no longer in the cache"
            return None
        explanation.outcome = "whole"
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

    def _copy(self, packed: Packed, outputs: Outputs) -> bool:
        """Write the blob of a cached layer to the outputs that do not have it yet; False if it is corrupt.

        What was written is then wrong. If it cannot be undone, the blob is read in full before anything is written;
        raises LostBlobError if it is lost after that.
        """
        layer, blobs = packed.layer, self._store.blobs
        sink = outputs.keep(layer.digest, lambda path: self._store.outputs.holds(path, layer.digest, layer.size_bytes))
        packed.explanation.kept_outputs = outputs.kept
        if sink is None:
            return True
        body, is_final = blobs.body(layer.digest), not outputs.can_restart
        if body is not None and is_final and blobs.judge(layer.digest, sync=False)[0] != "intact":
            blobs.reject(layer.digest)
            body = None
        if body is None:
            return False
        try:
            with body.open() as file:
                while piece := file.read(_PIECE_BYTES):
                    sink.write(piece)
        except LostBlobError:
            if is_final:
                raise
            return False
        return True

    # -- the pack

    def pack(
        self,
        lookup: Lookup,
        sinks: Sequence[Sink],
        reporter: Reporter,
        *,
        check: Callable[[Layer], None] | None = None,
    ) -> Packed:
        """Pack the layer, write it to sinks, and cache it unless `check` raises."""
        explanation = lookup.explanation
        counts = Explanation() if lookup.is_counted else explanation
        contents = ContentCache(self._store, self._started_ns, counts, is_paranoid=self._is_paranoid)
        chunks = ChunkCache(self._store, self._codec, is_read=not self._is_paranoid)
        spare = SpareBlob(self._store)
        walk = self._input.walk(lookup.scanned, reporter)
        try:
            layer = writer.pack(
                walk,
                Tee((*sinks, spare)),
                codec=self._codec,
                jobs=self._jobs,
                reporter=reporter,
                contents=contents,
                chunks=chunks,
            )
            if check is not None:
                check(layer)
            if self._is_paranoid:
                self._compare(layer, contents.contradicted, reporter)
            explanation.copied, explanation.compressed = chunks.copied, chunks.compressed
            if chunks.copied:
                explanation.outcome = "chunks"
            contents.close()
            self._keep_scan(layer.key, walk)
            is_kept = spare.commit(layer.digest)
            if is_kept:
                self._keep(layer, chunks, self._input.state_after(walk, self._started_ns).about)
        finally:
            spare.discard()
            chunks.close()
        return Packed(layer, explanation, walk.paths, is_kept)

    def _keep(self, layer: Layer, chunks: ChunkCache, about: str) -> None:
        """Record how to find the layer again."""
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
        trace = Trace(
            self._trace_key(layer.key),
            self._step,
            msgspec.json.encode(results),
            about=about,
            blobs=(layer.digest,),
            chunks=[(chunk, layer.digest, spot) for chunk, spot in chunks.spots],
        )
        self._store.traces.put(trace, self._now())
        by_chunks = self._trace_key(chunks.fingerprint().hex())
        self._store.traces.put(Trace(by_chunks, _CHUNKS_STEP, layer.key.encode(), blobs=(layer.digest,)), self._now())
        make_room(self._store)

    def _compare(self, layer: Layer, contradicted: Sequence[bytes], reporter: Reporter) -> None:
        """Report where the cache contradicts what was read and packed."""
        if contradicted:
            reporter.warning(
                "cache-wrong",
                f"files that changed with unchanged stat records: {len(contradicted):,}, such as "
                f"{printable(contradicted[0])}: pack this tree with --paranoid or --no-cache",
            )
        data = self._store.traces.get(self._trace_key(layer.key), self._now())
        with suppress(msgspec.MsgspecError):
            if data is not None and msgspec.json.decode(data, type=_Results).digest != layer.digest.hex:
                reporter.warning(
                    "cache-wrong", f"replaced the wrong blob that the cache had for this tree with {layer.digest}"
                )

    def _trace_key(self, key: str) -> bytes:
        return blake3(f"{self._step}\n{key}\n".encode()).digest()

    def _now(self) -> int:
        return self._started_ns // 1_000_000_000


def _text(key: bytes) -> str:
    """Parse the key of a layer in a trace; an invalid key never matches."""
    return key.decode("ascii", "replace")

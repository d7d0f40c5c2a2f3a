"""A cache in one file, for CI: an uncompressed tar with an OCI layout and the traces of its blobs.

Deterministic: an equal cache gives equal bytes, so that nothing is uploaded twice. Stat records and facts about
registries are valid only for one machine and a short time, and are left out. The author of such a file controls the
results of packs: blobs are checked against their digests, but that a trace belongs to its key is trusted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from detlayer.errors import LayerError, OutputError, UnreadableError, printable
from detlayer.layer.codec import Codec
from detlayer.layer.entry import Content, ContentReader, Entry
from detlayer.layer.ports import Sink
from detlayer.layer.reader import Member, TarReader
from detlayer.layer.writer import BytesContent, pack
from detlayer.oci.ports import Body, Readable
from detlayer.oci.types import MEDIA_TYPE_INDEX, OCI_LAYOUT_VERSION, Digest, canonical_json, parse_digest
from detlayer.store.blobs import LostBlobError
from detlayer.store.index import unseal
from detlayer.store.traces import Spot, Trace

if TYPE_CHECKING:
    from detlayer.store import Store

FORMAT = "detlayer-cache/1"
_BLOBS = b"blobs/sha256"
_NAME = b"detlayer-cache.json"
_MAX_DOCUMENT_BYTES = 256 << 20
_PIECE_BYTES = 1 << 20


class _Trace(msgspec.Struct):
    key: bytes
    step: str
    about: str
    results: bytes
    blobs: list[str]


class _Chunk(msgspec.Struct):
    key: bytes
    blob: str
    offset: int
    size: int
    fingerprint: bytes


class _Document(msgspec.Struct):
    format: str
    traces: list[_Trace]
    chunks: list[_Chunk]


def export(store: Store, sink: Sink, *, only: Collection[Digest] | None = None) -> int:
    """Write the contents of the store to `sink`; `only` those of these blobs. Returns the number of blobs.

    Every blob is read before anything is written, to skip corrupt ones. Raises OutputError, also if a blob of `only`
    is missing, and LostBlobError if one is lost while it is written.
    """
    wanted = {one.hex for one in only} if only is not None else None
    blobs = sorted(digest.hex for digest, _ in store.blobs.all() if wanted is None or digest.hex in wanted)
    blobs = [one for one in blobs if store.blobs.pin(Digest(one)) and store.blobs.check(Digest(one))]
    missing = sorted(wanted - set(blobs)) if wanted is not None else []
    if missing:
        raise OutputError("cache-lacks", f"sha256:{missing[0]} is not in the cache", "pack or build it first")
    document = msgspec.json.encode(_Document(FORMAT, _traces(store, set(blobs), wanted), _chunks(store, set(blobs))))
    pack(_entries(store, blobs, document), sink, codec=Codec("none"))
    return len(blobs)


def take_in(store: Store, source: BinaryIO) -> int:
    """Import an exported file; returns the number of new blobs. Raises LayerError or OutputError."""
    present: set[str] = set()
    document: _Document | None = None
    came = 0
    for member in TarReader(_pieces(source)):
        above, _, name = member.entry.path.rpartition(b"/")
        if above == _BLOBS and member.entry.kind == "file":
            digest = _digest(name)
            came += _take_blob(store, digest, member)
            present.add(digest.hex)
        elif member.entry.path == _NAME:
            document = _read_document(member)
    if document is None:
        raise LayerError("cache-archive", "not an exported cache", "create one with `detlayer cache export`")
    now = int(store.clock())
    chunks: dict[str, list[tuple[bytes, Digest, Spot]]] = {}
    for one in document.chunks:
        if one.blob in present:
            spot = Spot(one.offset, one.size, one.fingerprint)
            chunks.setdefault(one.blob, []).append((one.key, Digest(one.blob), spot))
    for trace in document.traces:
        if present.issuperset(trace.blobs):
            blobs = [Digest(one) for one in trace.blobs]
            spots = [spot for one in trace.blobs for spot in chunks.pop(one, [])]
            kept = Trace(trace.key, trace.step, trace.results, trace.about, blobs=blobs, chunks=spots)
            store.traces.put(kept, now)
    return came


def _pieces(source: BinaryIO) -> Iterator[bytes]:
    try:
        while piece := source.read(_PIECE_BYTES):
            yield piece
    except OSError as error:
        raise UnreadableError(
            "input-unreadable", f"the exported cache cannot be read: {error.strerror}", "check the file"
        ) from error


def _traces(store: Store, blobs: set[str], wanted: set[str] | None) -> list[_Trace]:
    named: dict[bytes, list[str]] = {}
    for key, digest in store.index.rows("SELECT key, digest FROM trace_blob ORDER BY key, digest", (), (bytes, str)):
        named.setdefault(key, []).append(digest)
    found = []
    rows = store.index.rows(
        "SELECT key, step, about, results FROM trace WHERE local=0 ORDER BY key", (), (bytes, str, str, bytes)
    )
    for key, step, about, sealed in rows:
        results = unseal(key, sealed)
        needs = named.get(key, [])
        if results is None or not blobs.issuperset(needs) or (wanted is not None and not needs):
            continue
        found.append(_Trace(key, step, about, results, needs))
    return found


def _chunks(store: Store, blobs: set[str]) -> list[_Chunk]:
    found = []
    for (key,) in store.index.rows("SELECT key FROM chunk ORDER BY key", (), (bytes,)):
        known = store.traces.find_chunk(key)
        if known is not None and known[0].hex in blobs:
            digest, spot = known
            found.append(_Chunk(key, digest.hex, spot.offset_bytes, spot.size_bytes, spot.fingerprint))
    return found


def _entries(store: Store, blobs: list[str], document: bytes) -> Iterator[Entry]:
    yield Entry(b"blobs", "dir", 0o755)
    yield Entry(_BLOBS, "dir", 0o755)
    for one in blobs:
        body = store.blobs.body(Digest(one))
        if body is None:
            raise LostBlobError(
                "cache-vanished", f"sha256:{one} was removed from the cache during the export", "try again", Digest(one)
            )
        content = _BlobContent(body) if body.size_bytes else None
        yield Entry(_BLOBS + b"/" + one.encode(), "file", size_bytes=body.size_bytes, content=content)
    index = canonical_json({"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": []})
    layout = canonical_json({"imageLayoutVersion": OCI_LAYOUT_VERSION})
    for name, data in ((_NAME, document), (b"index.json", index), (b"oci-layout", layout)):
        yield Entry(name, "file", size_bytes=len(data), content=BytesContent(data))


class _BlobContent:
    """A blob as the content of an entry."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._stack = ExitStack()
        self._reader: Readable | None = None

    def open(self) -> ContentReader:
        self._reader = self._stack.enter_context(self._body.open())
        return self

    def read_into(self, buffer: memoryview) -> int:
        done = 0
        while self._reader is not None and (piece := self._reader.read(min(len(buffer) - done, _PIECE_BYTES))):
            buffer[done : done + len(piece)] = piece
            done += len(piece)
        return done

    def finish(self) -> bool:
        return True

    def close(self) -> None:
        self._stack.close()


_: type[Content] = _BlobContent


def _take_blob(store: Store, digest: Digest, member: Member) -> bool:
    """Import a blob into the store; tells whether it is new."""
    if store.blobs.is_intact(digest):
        return False
    try:
        blob = store.blobs.incoming()
        try:
            for view in member.views():
                blob.write(view)
            if blob.digest() != digest:
                raise LayerError(
                    "cache-archive",
                    f"a blob in the file does not match {digest}",
                    "the file is damaged: export it again",
                )
            blob.commit(digest)
        finally:
            blob.discard()
    except OSError as error:
        raise OutputError(
            "cache-write", f"{printable(store.directory)}: {error.strerror}", "free some space, or use --cache-dir"
        ) from error
    return True


def _read_document(member: Member) -> _Document:
    if member.entry.size_bytes > _MAX_DOCUMENT_BYTES:
        raise LayerError("cache-archive", "the list of traces is too long", "export it again")
    data = b"".join(map(bytes, member.views()))
    try:
        document = msgspec.json.decode(data, type=_Document)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise LayerError("cache-archive", f"invalid list of traces: {printable(str(error))}", "") from error
    if document.format != FORMAT:
        raise LayerError(
            "cache-archive",
            f"unsupported format {printable(document.format)}, expected {FORMAT}",
            "export it with this version of detlayer",
        )
    for one in document.chunks:
        if one.offset < 0 or not 0 <= one.size < 1 << 31:
            raise LayerError("cache-archive", "a chunk is outside of its blob", "export it again")
        _digest(one.blob.encode())
    for trace in document.traces:
        for blob in trace.blobs:
            _digest(blob.encode())
    return document


def _digest(name: bytes) -> Digest:
    with suppress(ValueError):
        return parse_digest("sha256:" + name.decode("ascii", "replace"))
    raise LayerError("cache-archive", f"invalid digest {printable(name)}", "export it again")

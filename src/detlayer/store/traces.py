"""Traces: the results of a step by key with their blobs, and positions of compressed chunks.

A key is made by the caller and covers everything that the step depends on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec

from detlayer.oci.types import Digest
from detlayer.store.index import Index, Statement, seal, unseal

_TOUCH_S = 3600  # precision of the time of last use


class Spot(NamedTuple):
    """The position of a chunk's compressed bytes in a blob, with their blake3."""

    offset_bytes: int
    size_bytes: int
    fingerprint: bytes


class Trace(msgspec.Struct, frozen=True):
    """The results of a step, with the blobs that they name and the chunks in these."""

    key: bytes
    step: str
    results: bytes
    about: str = ""
    """What is known of the results without the key."""
    is_local: bool = False
    """Whether it is valid only on this machine."""
    blobs: Collection[Digest] = ()
    chunks: Sequence[tuple[bytes, Digest, Spot]] = ()


class TraceStore:
    """Results of steps, by key."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def get(self, key: bytes, now: int) -> bytes | None:
        """Return the results of a step; None if there is no trace. The caller has to check for its blobs."""
        rows = self._index.rows("SELECT results, used FROM trace WHERE key=?", (key,), (bytes, int))
        if not rows:
            return None
        if rows[0][1] < now - _TOUCH_S:
            self._index.write(("UPDATE trace SET used=? WHERE key=?", [(now, key)]))
        return unseal(key, rows[0][0])

    def resembles(self, step: str, about: str = "") -> bool:
        """Tell whether a step has any trace, or one with this `about`."""
        if about:
            return bool(self._index.rows("SELECT 1 FROM trace WHERE step=? AND about=? LIMIT 1", (step, about)))
        return bool(self._index.rows("SELECT 1 FROM trace WHERE step=? LIMIT 1", (step,)))

    def put(self, trace: Trace, now: int) -> bool:
        """Store a trace, all or nothing; tells whether it succeeded."""
        key = trace.key
        statements: list[Statement] = [
            (
                "INSERT OR REPLACE INTO trace (key, step, about, results, local, used) VALUES (?, ?, ?, ?, ?, ?)",
                [(key, trace.step, trace.about, seal(key, trace.results), trace.is_local, now)],
            ),
            ("DELETE FROM trace_blob WHERE key=?", [(key,)]),
            ("INSERT INTO trace_blob (key, digest) VALUES (?, ?)", [(key, one.hex) for one in set(trace.blobs)]),
            (
                "INSERT OR REPLACE INTO chunk (key, digest, spot) VALUES (?, ?, ?)",
                [(chunk, blob.hex, _pack(chunk, blob, spot)) for chunk, blob, spot in trace.chunks],
            ),
        ]
        return self._index.write(*statements)

    def drop(self, key: bytes) -> None:
        """Remove a trace that proved wrong."""
        self._index.write(("DELETE FROM trace WHERE key=?", [(key,)]), ("DELETE FROM trace_blob WHERE key=?", [(key,)]))

    def find_chunk(self, chunk: bytes) -> tuple[Digest, Spot] | None:
        """Return the position of a chunk's compressed bytes, which may be outdated."""
        rows = self._index.rows("SELECT digest, spot FROM chunk WHERE key=?", (chunk,), (str, bytes))
        if not rows:
            return None
        blob = Digest(rows[0][0])
        spot = _unpack(chunk, blob, rows[0][1])
        return (blob, spot) if spot is not None else None

    def chunks_in(self, blob: Digest) -> dict[bytes, Spot]:
        """Return the chunks in a blob and their positions, which may be outdated."""
        rows = self._index.rows("SELECT key, spot FROM chunk WHERE digest=?", (blob.hex,), (bytes, bytes))
        found = {key: _unpack(key, blob, sealed) for key, sealed in rows}
        return {key: spot for key, spot in found.items() if spot is not None}


def _pack(chunk: bytes, blob: Digest, spot: Spot) -> bytes:
    return seal(chunk + blob.hex.encode(), msgspec.msgpack.encode(spot))


def _unpack(chunk: bytes, blob: Digest, sealed: bytes) -> Spot | None:
    data = unseal(chunk + blob.hex.encode(), sealed)
    try:
        return msgspec.msgpack.decode(data, type=Spot) if data is not None else None
    except msgspec.MsgspecError:
        return None

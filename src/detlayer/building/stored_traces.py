"""The traces of a build in the store (`building.graph.Traces`)."""

from __future__ import annotations

from detlayer.store import Store
from detlayer.store.traces import Trace

_STEP = "build"


class StoreTraces:
    """Traces that persist between runs if the store is writable."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, key: str) -> bytes | None:
        """Return a document; None if not found."""
        return self._store.traces.get(key.encode(), int(self._store.clock()))

    def put(self, key: str, data: bytes) -> None:
        """Store a document, replacing any with the same key."""
        self._store.traces.put(Trace(key.encode(), _STEP, data), int(self._store.clock()))

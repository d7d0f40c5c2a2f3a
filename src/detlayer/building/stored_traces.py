"""The traces of a build in the store (`building.graph.Traces`)."""

from __future__ import annotations

from detlayer.store import Store
from detlayer.store.traces import Trace

_STEP = "build"


class StoreTraces:
    """Traces that last from run to run, as far as the store can keep anything."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, key: str) -> bytes | None:
        """Recall a document; None if there is none."""
        return self._store.traces.get(key.encode(), int(self._store.clock()))

    def put(self, key: str, data: bytes) -> None:
        """Keep a document in place of what had the key."""
        self._store.traces.put(Trace(key.encode(), _STEP, data), int(self._store.clock()))

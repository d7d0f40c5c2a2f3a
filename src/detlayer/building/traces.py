"""The traces of a build in the store (`graph.Traces`)."""

from __future__ import annotations

from detlayer.store import Store


class StoreTraces:
    """Traces that last from run to run, as far as the store can keep anything."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, key: str) -> bytes | None:
        """Recall a document; None if there is none."""
        rows = self._store.index.rows("SELECT results FROM trace WHERE key=?", (key.encode(),))
        return rows[0][0] if rows else None

    def put(self, key: str, data: bytes) -> None:
        """Keep a document in place of what had the key."""
        self._store.index.write(
            (
                "INSERT OR REPLACE INTO trace (key, step, results, used) VALUES (?, ?, ?, ?)",
                [(key.encode(), "build", data, 0)],
            )
        )

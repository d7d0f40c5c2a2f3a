"""Stat records of trees: for each directory, its files with the blake3 of their contents.

One row per directory: a walk reads each once, and a change writes one.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import msgspec

from detlayer.store.index import Index, seal, unseal
from detlayer.store.stat_record import StatRecord


class FileRecord(NamedTuple):
    """A file at the time when it was read. `variant` is what else decided which bytes were packed."""

    stamp: StatRecord
    seen_ns: int
    fingerprint: bytes
    variant: bytes


DirectoryRecords = dict[bytes, FileRecord]

_READ_AHEAD = 256
_AHEAD_BYTES = 16 << 10
_DECODER = msgspec.msgpack.Decoder(DirectoryRecords)
_ENCODER = msgspec.msgpack.Encoder()


class TreeRecords:
    """The records of one tree, named by a key of the caller."""

    def __init__(self, index: Index, tree: bytes, now: int) -> None:
        self._index = index
        self._tree = tree
        rows = index.rows("SELECT id, used FROM tree WHERE path=?", (tree,), (int, int))
        self._id = rows[0][0] if rows else None
        if rows and rows[0][1] < now - 3600:
            index.write(("UPDATE tree SET used=? WHERE id=?", [(now, self._id)]))
        self._now = now
        self._ahead: dict[bytes, bytes] = {}

    def load(self, directory: bytes) -> DirectoryRecords:
        """Return the records of a directory's files, by name."""
        if self._id is None:
            return {}
        if directory not in self._ahead:
            # A walk needs nearly all, nearly in this order: one query loads several small ones.
            rows = self._index.rows(
                "SELECT path, records FROM directory WHERE tree=? AND path>=? AND (path=? OR length(records)<=?) "
                "ORDER BY path LIMIT ?",
                (self._id, directory, directory, _AHEAD_BYTES, _READ_AHEAD),
                (bytes, bytes),
            )
            self._ahead = dict(rows)
        sealed = self._ahead.get(directory)
        data = unseal(self._tree + b"\0" + directory, sealed) if sealed is not None else None
        try:
            return _DECODER.decode(data) if data is not None else {}
        except msgspec.MsgspecError:
            return {}

    def save(self, directories: Collection[tuple[bytes, DirectoryRecords]]) -> None:
        """Replace the records of directories."""
        if self._id is None:
            self._index.write(("INSERT OR IGNORE INTO tree (path, used) VALUES (?, ?)", [(self._tree, self._now)]))
            rows = self._index.rows("SELECT id FROM tree WHERE path=?", (self._tree,))
            if not rows:
                return
            self._id = rows[0][0]
        kept = [
            (self._id, directory, seal(self._tree + b"\0" + directory, _ENCODER.encode(records)))
            for directory, records in directories
        ]
        self._index.write(("INSERT OR REPLACE INTO directory (tree, path, records) VALUES (?, ?, ?)", kept))

    def prune(self, directories: Collection[bytes]) -> None:
        """Remove the records of all other directories."""
        rows = self._index.rows("SELECT path FROM directory WHERE tree=?", (self._id,))
        gone = [(self._id, path) for (path,) in rows if path not in directories]
        if gone:
            self._index.write(("DELETE FROM directory WHERE tree=? AND path=?", gone))

"""The cache: blobs by digest, and an index of known results. Does not know what a step does.

All of it may be lost at any time, which only costs time: bytes from it are always checked (SPEC 10). Opening a store
does nothing; the first query opens its files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from detlayer.layer.ports import Reporter
from detlayer.store.blobs import Blobs, Incoming, LostBlobError
from detlayer.store.directory import default_directory
from detlayer.store.file_records import DirectoryRecords, FileRecord, TreeRecords
from detlayer.store.index import Index
from detlayer.store.lease import Lease
from detlayer.store.memory import RegistryMemory
from detlayer.store.stat_record import StatRecord, is_racy, stat_record_of
from detlayer.store.traces import Spot, TraceStore
from detlayer.store.verified_files import VerifiedOutputs

__all__ = [
    "DirectoryRecords",
    "FileRecord",
    "Incoming",
    "LostBlobError",
    "Spot",
    "StatRecord",
    "Store",
    "TreeRecords",
    "default_directory",
    "is_racy",
    "stat_record_of",
]


class Store:
    """A cache in a directory, by default the user's, created at first use. A context manager.

    An unusable directory is one warning and an empty cache. `clock` returns seconds since 1970.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        reporter: Reporter | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        directory = default_directory() if directory is None else os.fspath(directory)
        self.directory = directory
        self.lease = Lease(directory)
        self.index = Index(directory, reporter=reporter)
        self.blobs = Blobs(directory, self.lease, self.index, clock)
        self.traces = TraceStore(self.index)
        self.outputs = VerifiedOutputs(self.index, clock)
        self.memory = RegistryMemory(self.index, self.blobs, clock)
        self.clock = clock

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *failed: object) -> None:
        self.close()

    def close(self) -> None:
        """Close files and release pins; a later query opens them again."""
        self.index.close()
        self.lease.close()

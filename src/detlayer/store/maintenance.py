"""Maintenance of the store: usage, garbage collection, verification.

Blobs that a running process has pinned stay (`lease`); the others are collected by time of last use, together with
their records. Other processes may use the store meanwhile.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from detlayer.errors import OutputError, printable
from detlayer.oci.types import Digest
from detlayer.store.memory import FACT_AGE_S, SESSION_AGE_S

if TYPE_CHECKING:
    from detlayer.store import Store

MAX_BYTES = 10 << 30  # packs collect garbage above this size
MAX_AGE_S = 30 * 86400
_ROOM = 0.8  # collect down to this part of the limit, so that not every pack has to


class StoreStatistics(msgspec.Struct, frozen=True):
    """The contents of a store."""

    directory: str
    blobs: int
    blob_bytes: int
    index_bytes: int
    traces: int
    chunks: int
    trees: int
    directories: int
    facts: int
    uploads: int
    in_use: int
    """Blobs that running processes have pinned."""


class Collected(msgspec.Struct, frozen=True):
    """What was removed, and what is left."""

    blobs: int
    freed_bytes: int
    left: int
    left_bytes: int
    in_use: int
    """Blobs that were kept only because they are in use."""


class StoreHealth(msgspec.Struct):
    """The result of reading every byte. Corrupt entries and those without a blob were dropped."""

    blobs: int = 0
    blob_bytes: int = 0
    corrupt: list[Digest] = []
    is_index_sound: bool = True
    orphans: int = 0
    """Traces and chunks whose blob is missing."""

    @property
    def is_sound(self) -> bool:
        return self.is_index_sound and not self.corrupt


def measure(store: Store) -> StoreStatistics:
    """Count the contents of the store."""
    sizes = [status.st_size for _, status in store.blobs.all()]
    tables = ("trace", "chunk", "tree", "directory", "place", "session")
    traces, chunks, trees, directories, facts, uploads = [
        (store.index.rows(f"SELECT count(*) FROM {name}", (), (int,)) or [(0,)])[0][0] for name in tables
    ]
    with store.lease.collecting() as survey:
        in_use = len(survey.digests) if survey is not None else 0
    return StoreStatistics(
        directory=store.directory,
        blobs=len(sizes),
        blob_bytes=sum(sizes),
        index_bytes=store.index.size_bytes(),
        traces=traces,
        chunks=chunks,
        trees=trees,
        directories=directories,
        facts=facts,
        uploads=uploads,
        in_use=in_use,
    )


def collect(store: Store, *, max_bytes: int | None = None, max_age_s: float | None = None) -> Collected:
    """Remove entries unused for `max_age_s`, and then the least recently used until the rest is within the limit.

    Raises OutputError if the store cannot be read.
    """
    now = store.clock()
    oldest = now - max_age_s if max_age_s is not None else 0
    used: dict[str, int] = dict(store.index.rows("SELECT digest, used FROM blob", (), (str, int)))
    gone: list[Digest] = []
    freed = in_use = 0
    with store.lease.collecting() as survey:
        if survey is None:
            raise OutputError(
                "cache-closed",
                f"cannot determine which blobs of {printable(store.directory)} are in use",
                "try again; if it fails again, check the disk of the cache",
            )
        found = [(used.get(one.hex, status.st_mtime), one, status.st_size) for one, status in store.blobs.all()]
        found.sort(key=lambda each: (each[0], each[1].hex))
        left, left_bytes = len(found), sum(size for _, _, size in found)
        for when, digest, size in found:
            if when >= oldest and (max_bytes is None or left_bytes <= max_bytes):
                continue
            if digest in survey.digests:
                in_use += 1
                continue
            with suppress(OSError):
                os.unlink(store.blobs.path(digest))
                gone.append(digest)
                freed += size
                left -= 1
                left_bytes -= size
    store.lease.sweep()
    if gone:
        store.blobs.forget(gone)
    store.index.write(
        ("DELETE FROM trace WHERE used < ?", [(oldest,)]),
        ("DELETE FROM trace_blob WHERE key NOT IN (SELECT key FROM trace)", [()]),
        ("DELETE FROM tree WHERE used < ?", [(oldest,)]),
        ("DELETE FROM directory WHERE tree NOT IN (SELECT id FROM tree)", [()]),
        ("DELETE FROM output WHERE used < ?", [(oldest,)]),
        ("DELETE FROM place WHERE at < ?", [(now - FACT_AGE_S,)]),
        ("DELETE FROM session WHERE at < ?", [(now - SESSION_AGE_S,)]),
    )
    if gone or max_age_s is not None:
        store.index.compact()
    return Collected(len(gone), freed, left, left_bytes, in_use)


def make_room(store: Store, max_bytes: int = MAX_BYTES) -> Collected | None:
    """Collect garbage if a store exceeds its limit; every pack that adds to it calls this."""
    rows = store.index.rows("SELECT sum(size) FROM blob", (), (int,))
    if not rows or rows[0][0] <= max_bytes:
        return None
    try:
        return collect(store, max_bytes=int(max_bytes * _ROOM))
    except OutputError as error:  # the pack itself succeeded
        store.index.warn("cache-unusable", f"{error.message}: it grows beyond {max_bytes} bytes")
        return None


def examine(store: Store) -> StoreHealth:
    """Read every blob and the whole index, and drop corrupt or unreadable entries."""
    found = StoreHealth()
    if not store.index.is_sound():
        found.is_index_sound = False
        store.index.drop()
    there: set[str] = set()
    for digest, status in store.blobs.all():
        found.blobs += 1
        found.blob_bytes += status.st_size
        match store.blobs.judge(digest)[0]:
            case "intact":
                there.add(digest.hex)
            case "corrupt":
                found.corrupt.append(digest)
                store.blobs.drop(digest)
    named = {
        digest
        for (digest,) in store.index.rows("SELECT digest FROM trace_blob UNION SELECT digest FROM chunk", (), (str,))
    }
    orphans = [Digest(one) for one in named - there]
    found.orphans = len(orphans)
    store.blobs.forget(orphans)
    found.corrupt.sort(key=lambda one: one.hex)
    return found


def clear(store: Store) -> Collected:
    """Remove everything that is not in use, and all records."""
    collected = collect(store, max_bytes=0)
    store.index.forget_all()
    return collected

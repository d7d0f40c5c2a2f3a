"""Facts about registries: the `Memory` of `oci.ports`, stored in the index and as blobs.

Only positive results are stored, with their time. Nothing here is secret: the principal is a name that the caller
made. A failure to store is not an error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from typing import cast

from detlayer.oci.ports import BlobLocation, Proof, Session
from detlayer.oci.references import RepositoryName
from detlayer.oci.types import Digest
from detlayer.store.blobs import Blobs
from detlayer.store.index import Index

FACT_AGE_S = 6 * 3600
SESSION_AGE_S = 24 * 3600  # registries drop idle uploads after at most this long
_AHEAD_S = 60  # a fact from further in the future was stored before the clock was set back
_AT_ONCE = 400  # parameters per query; SQLite's limit used to be 999
_PROOFS = ("uploaded", "mounted", "seen", "inferred")


class RegistryMemory:
    """Facts, open uploads and documents. `clock` gives seconds since 1970."""

    def __init__(self, index: Index, blobs: Blobs, clock: Callable[[], float]) -> None:
        self._index = index
        self._blobs = blobs
        self._clock = clock

    def locations(self, registry: str, principal: str, digests: Collection[Digest]) -> list[BlobLocation]:
        """Return which repositories of a registry are known to have any of these, the newest fact first."""
        now = self._clock()
        found = []
        wanted = sorted({one.hex for one in digests})
        for first in range(0, len(wanted), _AT_ONCE):
            some = wanted[first : first + _AT_ONCE]
            marks = ",".join("?" * len(some))
            found += self._index.rows(
                "SELECT at, repository, digest, proof FROM place WHERE registry=? AND principal=? "
                f"AND digest IN ({marks}) AND at BETWEEN ? AND ?",
                (registry, principal, *some, now - FACT_AGE_S, now + _AHEAD_S),
                (int, str, str, str),
            )
        found.sort(key=lambda row: (-row[0], *row[1:]))
        return [
            BlobLocation(RepositoryName(registry, repository), Digest(digest), cast(Proof, proof))
            for _, repository, digest, proof in found
            if proof in _PROOFS
        ]

    def remember(self, principal: str, locations: Collection[BlobLocation]) -> None:
        """Store facts with the current time; expired facts of all registries are removed."""
        if not locations:
            return
        now = int(self._clock())
        rows = [
            (one.name.registry, principal, one.digest.hex, one.name.repository, one.proof, now) for one in locations
        ]
        self._index.write(
            ("DELETE FROM place WHERE at NOT BETWEEN ? AND ?", [(now - FACT_AGE_S, now + _AHEAD_S)]),
            ("INSERT OR REPLACE INTO place (registry,principal,digest,repository,proof,at) VALUES (?,?,?,?,?,?)", rows),
        )

    def forget(self, principal: str, name: RepositoryName, digests: Collection[Digest] | None = None) -> None:
        """Remove facts that proved wrong; without `digests` all facts of the repository."""
        if digests is None:
            key = (name.registry, principal, name.repository)
            self._index.write(("DELETE FROM place WHERE registry=? AND principal=? AND repository=?", [key]))
            return
        rows = [(name.registry, principal, one.hex, name.repository) for one in digests]
        if rows:
            self._index.write(
                ("DELETE FROM place WHERE registry=? AND principal=? AND digest=? AND repository=?", rows)
            )

    def session(self, principal: str, name: RepositoryName, digest: Digest) -> Session | None:
        """Return the state of an unfinished upload."""
        now = self._clock()
        rows = self._index.rows(
            "SELECT location, offset FROM session WHERE registry=? AND principal=? AND digest=? AND repository=? "
            "AND at BETWEEN ? AND ?",
            (name.registry, principal, digest.hex, name.repository, now - SESSION_AGE_S, now + _AHEAD_S),
            (str, int),
        )
        return Session(*rows[0]) if rows else None

    def keep_session(self, principal: str, name: RepositoryName, digest: Digest, session: Session | None) -> None:
        """Store the newest state of an upload; None when it is finished."""
        key = (name.registry, principal, digest.hex, name.repository)
        now = int(self._clock())
        if session is None:
            self._index.write(
                ("DELETE FROM session WHERE registry=? AND principal=? AND digest=? AND repository=?", [key])
            )
            return
        self._index.write(
            ("DELETE FROM session WHERE at NOT BETWEEN ? AND ?", [(now - SESSION_AGE_S, now + _AHEAD_S)]),
            (
                "INSERT OR REPLACE INTO session (registry,principal,digest,repository,location,offset,at) "
                "VALUES (?,?,?,?,?,?,?)",
                [(*key, session.location, session.offset, now)],
            ),
        )

    def document(self, digest: Digest) -> bytes | None:
        """Return a manifest, index or config whose bytes match the digest."""
        return self._blobs.get(digest)

    def keep_document(self, data: bytes) -> None:
        """Store a document under its digest."""
        with suppress(OSError):  # a full disk: it is fetched again
            self._blobs.put(data)

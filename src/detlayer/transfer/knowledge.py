"""Facts about registries in one run: those seen, and whether the remembered ones are confirmed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from threading import Lock
from typing import TYPE_CHECKING

from detlayer.oci.ports import Amnesia, BlobLocation, Memory, Proof
from detlayer.oci.references import RepositoryName
from detlayer.oci.types import Digest

if TYPE_CHECKING:
    from detlayer.registry.client import Repository

_KEPT: tuple[Proof, ...] = ("uploaded", "mounted")


class Knowledge:
    """Facts shared by all pushes of a run. Thread-safe. `memory` outlives the run.

    A registry may have lost data since the last run, and some accept manifests without checking blobs. Remembered facts
    of a repository therefore count only after a request in this run has confirmed one of them.
    """

    def __init__(self, memory: Memory | None = None) -> None:
        self.memory = memory or Amnesia()
        self._known: defaultdict[RepositoryName, dict[Digest, Proof]] = defaultdict(dict)
        self._holds: dict[RepositoryName, bool] = {}
        self._asking: defaultdict[RepositoryName, Lock] = defaultdict(Lock)
        self._lock = Lock()

    def known(self, name: RepositoryName) -> dict[Digest, Proof]:
        """Return the facts that this run has about a repository."""
        with self._lock:
            return dict(self._known[name])

    def learn(self, repository: Repository, found: Mapping[Digest, Proof]) -> None:
        """Record facts about a repository; uploads and mounts are remembered for later runs."""
        with self._lock:
            self._known[repository.name].update(found)
        kept = [BlobLocation(repository.name, digest, proof) for digest, proof in found.items() if proof in _KEPT]
        self.memory.remember(repository.principal, kept)

    def forget(self, repository: Repository, digests: Collection[Digest]) -> None:
        """Drop wrong facts, from this run and from memory."""
        with self._lock:
            for digest in digests:
                self._known[repository.name].pop(digest, None)
        self.memory.forget(repository.principal, repository.name, digests)

    def holds(self, name: RepositoryName) -> bool | None:
        """Whether the remembered facts of a repository are confirmed; None if not checked yet."""
        return self._holds.get(name)

    def confirm(self, repository: Repository, is_there: Callable[[], bool]) -> bool:
        """Confirm or refute the remembered facts of a repository, with one request in each run."""
        with self._lock:
            asking = self._asking[repository.name]
        with asking:
            if repository.name not in self._holds:
                if is_there():
                    self._holds[repository.name] = True
                else:
                    self.refute(repository)
            return self._holds[repository.name]

    def refute(self, repository: Repository) -> None:
        """Drop all remembered facts of a repository, because one proved wrong."""
        if self._holds.get(repository.name) is not False:
            self._holds[repository.name] = False
            self.memory.forget(repository.principal, repository.name)

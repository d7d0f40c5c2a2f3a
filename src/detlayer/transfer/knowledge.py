"""What one run knows of registries: what it saw and sent itself, and whether what earlier runs remembered holds."""

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
    """Shared by all pushes of a run, and safe in threads. `memory` is what outlives the run.

    A registry may have lost everything since the last run, and some take manifests without looking at blobs. So what is
    remembered of a repository counts only once a request in this run has confirmed a part of it.
    """

    def __init__(self, memory: Memory | None = None) -> None:
        self.memory = memory or Amnesia()
        self._known: defaultdict[RepositoryName, dict[Digest, Proof]] = defaultdict(dict)
        self._holds: dict[RepositoryName, bool] = {}
        self._asking: defaultdict[RepositoryName, Lock] = defaultdict(Lock)
        self._lock = Lock()

    def known(self, name: RepositoryName) -> dict[Digest, Proof]:
        """Give what this run saw in a repository, or brought there."""
        with self._lock:
            return dict(self._known[name])

    def learn(self, repository: Repository, found: Mapping[Digest, Proof]) -> None:
        """Take note of what is in a repository; what was brought there is remembered for later runs."""
        with self._lock:
            self._known[repository.name].update(found)
        kept = [BlobLocation(repository.name, digest, proof) for digest, proof in found.items() if proof in _KEPT]
        self.memory.remember(repository.principal, kept)

    def forget(self, repository: Repository, digests: Collection[Digest]) -> None:
        """Drop what proved wrong, whoever knew it."""
        with self._lock:
            for digest in digests:
                self._known[repository.name].pop(digest, None)
        self.memory.forget(repository.principal, repository.name, digests)

    def holds(self, name: RepositoryName) -> bool | None:
        """Tell whether what is remembered of a repository holds; None if this run has not asked."""
        return self._holds.get(name)

    def confirm(self, repository: Repository, is_there: Callable[[], bool]) -> bool:
        """Ask for a thing that is remembered, once for each repository, and tell whether what is remembered holds."""
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
        """Drop all that is remembered of a repository: a part of it is gone."""
        if self._holds.get(repository.name) is not False:
            self._holds[repository.name] = False
            self.memory.forget(repository.principal, repository.name)

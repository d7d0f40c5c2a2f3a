"""Protect blobs in use from collection: each process has a lease file, locked while it lives.

Before a process relies on a blob, it writes the digest into its lease, under a shared lock of `gc.lock`. A collector
reads the leases and removes blobs under an exclusive lock. A lease that can be locked belongs to a process that has
ended.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock

import msgspec

from detlayer.filesystem import look
from detlayer.oci.types import Digest
from detlayer.store.locks import lock, try_lock

_LOCK = "gc.lock"
_HOME = "leases"


class Survey(msgspec.Struct, frozen=True):
    """The leases of running processes, by name, and what they pin."""

    leases: set[str]
    digests: set[Digest]


class Lease:
    """The pins of this process. Created on disk at the first pin; in a read-only store nothing is pinned."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.name = os.urandom(8).hex()
        self._path = os.path.join(directory, _HOME, self.name)
        self._fd = -1
        self._pinned: set[Digest] = set()
        self._lock = Lock()

    @contextmanager
    def pinning(self, digest: Digest) -> Iterator[None]:
        """Pin a blob, and block collectors while the context lasts."""
        with self._lock:
            if digest in self._pinned:
                gate = -1
            else:
                gate = self._enter(fcntl.LOCK_SH)
                with suppress(OSError):  # a full disk: the blob may be collected, which is a cache miss
                    self._note(digest)
        try:
            yield
        finally:
            if gate >= 0:
                os.close(gate)

    def hold(self) -> None:
        """Create the lease, so that files with its name are kept; raises OSError."""
        with self._lock:
            gate = self._enter(fcntl.LOCK_SH)
            try:
                self._make()
            finally:
                if gate >= 0:
                    os.close(gate)

    @contextmanager
    def collecting(self) -> Iterator[Survey | None]:
        """Block pinning and return what is pinned; None if that is impossible and nothing may be removed."""
        gate = self._enter(fcntl.LOCK_EX)
        if gate < 0:
            yield None
            return
        try:
            try:
                survey = self._survey()
            except OSError:  # a lease that can't be read may be in use
                survey = None
            yield survey
        finally:
            os.close(gate)

    def sweep(self) -> None:
        """Remove unfinished files of processes that have ended."""
        home = os.path.join(self._directory, "incoming")
        with suppress(OSError):
            if all(name.startswith(self.name) for name in os.listdir(home)):
                return
            with self.collecting() as survey:
                for name in os.listdir(home) if survey is not None else ():
                    if survey is not None and name.partition("-")[0] not in survey.leases:
                        with suppress(OSError):
                            os.unlink(os.path.join(home, name))

    def close(self) -> None:
        self.sweep()
        with self._lock:
            if self._fd >= 0:
                fd, self._fd = self._fd, -1
                with suppress(OSError):
                    os.unlink(self._path)
                os.close(fd)
            self._pinned.clear()

    def _enter(self, how: int) -> int:
        """Lock the gate; -1 if that is impossible. A pin may then come too late, which is a cache miss."""
        try:
            gate = os.open(os.path.join(self._directory, _LOCK), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            return -1
        with suppress(OSError):
            if lock(gate, how):
                return gate
        os.close(gate)
        return -1

    def _make(self) -> None:
        if self._fd < 0:
            with suppress(FileExistsError):
                os.mkdir(os.path.dirname(self._path), 0o700)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)

    def _note(self, digest: Digest) -> None:
        self._make()
        os.write(self._fd, digest.hex.encode() + b"\n")
        self._pinned.add(digest)

    def _survey(self) -> Survey:
        found = Survey(set(), set())
        home = os.path.join(self._directory, _HOME)
        for name in os.listdir(home) if look(home) is not None else ():
            path = os.path.join(home, name)
            with suppress(FileNotFoundError), open(path, "rb") as file:
                if name != self.name and try_lock(file.fileno(), fcntl.LOCK_EX):
                    os.unlink(path)
                    continue
                found.leases.add(name)
                found.digests.update(map(Digest, file.read().decode("ascii", "replace").split()))
        return found

"""Blobs by sha256, in an OCI layout that other tools can read (image-spec, image-layout.md). Never what they mean.

A blob is written beside and renamed, so what stands under a digest is whole, unless the machine lost its power before
the disk had it. It is synced and held against the digest before it is believed, and only then is its stat record enough
for the next time (SPEC 10.4): a pack does not wait for the disk for the sake of a copy that it can make anew.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from detlayer.errors import IntegrityError
from detlayer.oci import MEDIA_TYPE_INDEX, OCI_LAYOUT_VERSION, Digest, canonical_json, digest_of
from detlayer.ports import Body, Bytes
from detlayer.store.index import Index
from detlayer.store.lease import Lease
from detlayer.store.place import make_directory
from detlayer.store.proof import holds, prove, read_digest
from detlayer.store.stamp import stamp_of

_TOUCH_S = 3600  # how exactly it is known when a blob was last used


class Incoming:
    """A blob that is being written. It is a `Sink`, whose write raises OSError."""

    def __init__(self, blobs: Blobs, path: str) -> None:
        self._blobs = blobs
        self._path = path
        self._file: BinaryIO = open(path, "xb", buffering=0)  # noqa: SIM115
        self.size_bytes = 0

    def write(self, data: Bytes, /) -> None:
        view = memoryview(data)
        self.size_bytes += len(view)
        while view:
            view = view[self._file.write(view) or 0 :]

    def commit(self, digest: Digest) -> None:
        """Put it under its digest, which must be right; raises OSError."""
        self._file.close()
        self._blobs.admit(self._path, digest)

    def free_bytes(self) -> int:
        """How much room its disk has left for us; raises OSError."""
        found = os.fstatvfs(self._file.fileno())
        return found.f_bavail * found.f_frsize

    def digest(self) -> Digest:
        """Read what was written; raises OSError."""
        found = read_digest(self._path)
        if found is None:
            raise OSError(errno.EIO, "what was written can't be read")
        return found[0]

    def discard(self) -> None:
        """Leave nothing behind; does nothing after a commit."""
        self._file.close()
        with suppress(OSError):
            os.unlink(self._path)


class Blobs:
    """The blobs of a store. What is pinned or put by this process stays until its lease ends."""

    def __init__(self, directory: str, lease: Lease, index: Index, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._index = index
        self._clock = clock
        self._layout = os.path.join(directory, "oci")
        self._home = os.path.join(self._layout, "blobs", "sha256")
        self._lease = lease

    def path(self, digest: Digest) -> str:
        """Name the file of a blob, which need not be there."""
        return os.path.join(self._home, digest.hex)

    def has(self, digest: Digest) -> bool:
        return os.path.isfile(self.path(digest))

    def incoming(self) -> Incoming:
        """Begin a blob whose digest is not yet known; raises OSError."""
        self._make()
        self._lease.hold()
        home = os.path.join(self._directory, "incoming")
        os.makedirs(home, exist_ok=True)
        self._lease.sweep()
        return Incoming(self, os.path.join(home, f"{self._lease.name}-{os.urandom(6).hex()}"))

    def put(self, data: bytes) -> Digest:
        """Keep bytes; raises OSError."""
        digest = digest_of(data)
        if self.pin(digest) and self.get(digest) == data:
            return digest
        blob = self.incoming()
        try:
            blob.write(data)
            blob.commit(digest)
        finally:
            blob.discard()
        return digest

    def get(self, digest: Digest, *, most_bytes: int = 64 << 20) -> bytes | None:
        """Read a blob whole, held against its digest; one that is not what it should be is dropped."""
        try:
            with open(self.path(digest), "rb") as file:
                if os.fstat(file.fileno()).st_size > most_bytes:
                    return None
                data = file.read()
        except OSError:
            return None
        if digest_of(data) != digest:
            self._index.tell("cache-corrupt", f"{digest} in the cache is damaged: it is made anew")
            self.drop(digest)
            return None
        return data

    def pin(self, digest: Digest) -> bool:
        """Keep a blob from being collected while this process runs; tells whether it is there."""
        with self._lease.pinning(digest):
            return self.has(digest)

    def is_intact(self, digest: Digest) -> bool:
        """Pin a blob and tell whether it is what its name says: by its stat record, or by reading it.

        One that is not is dropped, with a warning.
        """
        if not self.pin(digest):
            return False
        try:
            stamp = stamp_of(os.stat(self.path(digest), follow_symlinks=False))
        except OSError:
            return False
        now = self._clock()
        rows = self._index.rows("SELECT proof, used FROM blob WHERE digest=?", (digest.hex,), (bytes, int))
        if rows and holds(rows[0][0], stamp, digest):
            if rows[0][1] < now - _TOUCH_S:
                self._index.write(("UPDATE blob SET used=? WHERE digest=?", [(int(now), digest.hex)]))
            return True
        return self.check(digest)

    def check(self, digest: Digest) -> bool:
        """Sync and read a blob, and tell whether it is what its name says; if not, drop it, with a warning."""
        now = self._clock()
        # Twice: another process may have put the same blob in its place while it was read.
        found = read_digest(self.path(digest), sync=True) or read_digest(self.path(digest), sync=True)
        if found is None or found[0] != digest:
            if found is not None:
                self._index.tell("cache-corrupt", f"{digest} in the cache is damaged: it is made anew")
            self.drop(digest)
            return False
        stamp = found[1]
        self._index.write(
            (
                "INSERT OR REPLACE INTO blob (digest, size, proof, used) VALUES (?, ?, ?, ?)",
                [(digest.hex, stamp[0], prove(stamp, int(now * 1e9), digest), int(now))],
            )
        )
        return True

    def body(self, digest: Digest) -> Body | None:
        """Give a blob's bytes for reading, pinned and intact; None if they are not here."""
        if not self.is_intact(digest):
            return None
        try:
            return _StoredBody(self.path(digest), digest, os.stat(self.path(digest)).st_size)
        except OSError:
            return None

    def drop(self, digest: Digest) -> None:
        """Remove a blob, whoever uses it: it is corrupt."""
        with suppress(OSError):
            os.unlink(self.path(digest))
        self.forget([digest])

    def forget(self, digests: list[Digest]) -> None:
        """Forget what was known of blobs that are gone: the chunks in them, and the steps that made them."""
        rows = [(one.hex,) for one in digests]
        self._index.write(
            ("DELETE FROM blob WHERE digest=?", rows),
            ("DELETE FROM chunk WHERE digest=?", rows),
            ("DELETE FROM trace WHERE key IN (SELECT key FROM trace_blob WHERE digest=?)", rows),
            ("DELETE FROM trace_blob WHERE key NOT IN (SELECT key FROM trace)", [()]),
        )

    def all(self) -> Iterator[tuple[Digest, os.stat_result]]:
        """List what is there, in no order."""
        try:
            found = os.scandir(self._home)
        except OSError:
            return
        with found:
            for item in found:
                if len(item.name) == 64:
                    with suppress(OSError):  # gone meanwhile
                        yield Digest(item.name), item.stat(follow_symlinks=False)

    def admit(self, path: str, digest: Digest) -> None:
        """Rename a finished file into place; raises OSError."""
        with self._lease.pinning(digest):
            os.replace(path, self.path(digest))
            size = os.stat(self.path(digest), follow_symlinks=False).st_size
        # Without a proof: what comes next reads it once.
        self._index.write(
            (
                "INSERT OR REPLACE INTO blob (digest, size, used) VALUES (?, ?, ?)",
                [(digest.hex, size, int(self._clock()))],
            )
        )

    def _make(self) -> None:
        if os.path.isdir(self._home):
            return
        make_directory(self._directory)
        os.makedirs(self._home, exist_ok=True)
        index = {"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": []}
        _write_new(os.path.join(self._layout, "index.json"), canonical_json(index))
        # What makes a directory a layout comes last.
        version = canonical_json({"imageLayoutVersion": OCI_LAYOUT_VERSION})
        _write_new(os.path.join(self._layout, "oci-layout"), version)


def vanished(digest: Digest) -> IntegrityError:
    """Say that somebody took a blob that is in use; `gc` never does."""
    return IntegrityError("cache-vanished", f"{digest} went from the cache while it was in use", "try again")


class _StoredBody:
    """The bytes of a blob of the store."""

    def __init__(self, path: str, digest: Digest, size_bytes: int) -> None:
        self._path = path
        self._digest = digest
        self.size_bytes = size_bytes

    @contextmanager
    def open(self, offset: int = 0) -> Iterator[BinaryIO]:
        """Open for reading from `offset`; raises IntegrityError if it went meanwhile."""
        try:
            file = open(self._path, "rb")  # noqa: SIM115
        except OSError as error:
            raise vanished(self._digest) from error
        with file:
            file.seek(offset)
            yield file


def _write_new(path: str, data: bytes) -> None:
    beside = f"{path}.{os.urandom(6).hex()}"
    with open(beside, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)

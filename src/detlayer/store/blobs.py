"""Blobs by sha256, in an OCI layout that other tools can read (image-spec, image-layout.md). Never what they mean.

A blob is written beside, synced and renamed, so what stands under a digest is whole; it is held against the digest when
it is read, unless its stat record says that nobody touched it since that was done (SPEC 11).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

from detlayer.oci import MEDIA_TYPE_INDEX, OCI_LAYOUT_VERSION, Digest, canonical_json, digest_of
from detlayer.ports import Bytes
from detlayer.store.lease import Lease
from detlayer.store.place import make_directory

_PIECE_BYTES = 1 << 20


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
        os.fsync(self._file.fileno())
        self._file.close()
        self._blobs.admit(self._path, digest)

    def discard(self) -> None:
        """Leave nothing behind; does nothing after a commit."""
        self._file.close()
        with suppress(OSError):
            os.unlink(self._path)


class Blobs:
    """The blobs of a store. What is pinned or put by this process stays until its lease ends."""

    def __init__(self, directory: str, lease: Lease) -> None:
        self._directory = directory
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
            self.drop(digest)
            return None
        return data

    def pin(self, digest: Digest) -> bool:
        """Keep a blob from being collected while this process runs; tells whether it is there."""
        with self._lease.pinning(digest):
            return self.has(digest)

    def check(self, digest: Digest) -> bool:
        """Read a blob and tell whether it is what its name says."""
        sha = hashlib.sha256()
        try:
            with open(self.path(digest), "rb", buffering=0) as file:
                buffer = bytearray(_PIECE_BYTES)
                while count := file.readinto(buffer):
                    sha.update(memoryview(buffer)[:count])
        except OSError:
            return False
        return sha.hexdigest() == digest.hex

    def drop(self, digest: Digest) -> None:
        """Remove a blob, whoever uses it: it is corrupt."""
        with suppress(OSError):
            os.unlink(self.path(digest))

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
            _sync_directory(self._home)

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


def _write_new(path: str, data: bytes) -> None:
    beside = f"{path}.{os.urandom(6).hex()}"
    with open(beside, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

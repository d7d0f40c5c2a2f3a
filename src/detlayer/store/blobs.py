"""Blobs by sha256, in an OCI layout that other tools can read (image-spec, image-layout.md).

A blob is written elsewhere and renamed, so it is complete unless the machine crashed before it was on disk. It is
synced and its digest is checked before it is trusted; from then on its stat record is enough (SPEC 10.4). Reading a
blob to its end gives bytes that match its digest, or raises LostBlobError: a stat record does not show that a disk
failed.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import BinaryIO, Literal

from detlayer.errors import IntegrityError, OutputError, printable
from detlayer.layer.ports import Bytes
from detlayer.oci.ports import Body
from detlayer.oci.types import MEDIA_TYPE_INDEX, OCI_LAYOUT_VERSION, Digest, canonical_json, digest_of
from detlayer.store.directory import make_directory
from detlayer.store.index import Index
from detlayer.store.lease import Lease
from detlayer.store.stat_record import StatRecord, stat_record_of
from detlayer.store.verified_files import holds, prove, read_digest

_TOUCH_S = 3600  # precision of the time of last use
_PIECE_BYTES = 1 << 20


class LostBlobError(IntegrityError):
    """A blob of the store is missing or corrupt. It is no longer in the store and can be made again."""

    def __init__(self, code: str, message: str, hint: str, digest: Digest) -> None:
        super().__init__(code, message, hint)
        self.digest = digest


class Incoming:
    """A blob that is being written. It is a `Sink` whose write raises OSError."""

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
        """Commit the blob under its digest, which must be right; raises OSError."""
        self._file.close()
        self._blobs.admit(self._path, digest)

    def free_bytes(self) -> int:
        """Return the free space on its disk that is available to us; raises OSError."""
        found = os.fstatvfs(self._file.fileno())
        return found.f_bavail * found.f_frsize

    def digest(self) -> Digest:
        """Open what was written for reading; raises OSError."""
        found = read_digest(self._path)
        if found is None:
            raise OSError(errno.EIO, "the written file can't be read")
        return found[0]

    def discard(self) -> None:
        """Remove the file; does nothing after a commit."""
        self._file.close()
        with suppress(OSError):
            os.unlink(self._path)


class Blobs:
    """The blobs of a store. Blobs that this process pinned or added stay until its lease ends."""

    def __init__(self, directory: str, lease: Lease, index: Index, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._index = index
        self._clock = clock
        self._layout = os.path.join(directory, "oci")
        self._home = os.path.join(self._layout, "blobs", "sha256")
        self._lease = lease
        self._reported: set[Digest] = set()
        self._lock = Lock()

    def path(self, digest: Digest) -> str:
        """Return the path of a blob, which may not exist."""
        return os.path.join(self._home, digest.hex)

    def has(self, digest: Digest) -> bool:
        return os.path.isfile(self.path(digest))

    def incoming(self) -> Incoming:
        """Start a blob whose digest is not yet known; raises OSError."""
        make_directory(self._directory)
        self._lease.hold()
        os.makedirs(os.path.join(self._directory, "incoming"), exist_ok=True)
        self._lease.sweep()
        self._make()
        return Incoming(self, self._new_path())

    def _new_path(self) -> str:
        """Return the path of a file that is being written; it is removed once our lease has ended."""
        return os.path.join(self._directory, "incoming", f"{self._lease.name}-{os.urandom(6).hex()}")

    def put(self, data: bytes) -> Digest:
        """Store bytes; raises OSError."""
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
        """Read a blob and check its digest; a corrupt one is dropped, with a warning."""
        try:
            with open(self.path(digest), "rb") as file:
                if os.fstat(file.fileno()).st_size > most_bytes:
                    return None
                data = file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            data = b""
        if digest_of(data) != digest:
            self.reject(digest)
            return None
        return data

    def pin(self, digest: Digest) -> bool:
        """Protect a blob from collection while this process runs; tells whether it exists."""
        with self._lease.pinning(digest):
            return self.has(digest)

    def is_intact(self, digest: Digest) -> bool:
        """Pin a blob and tell whether it is intact: by its stat record, or by reading it.

        A corrupt blob is dropped with a warning.
        """
        if not self.pin(digest):
            return False
        try:
            stamp = stat_record_of(os.stat(self.path(digest), follow_symlinks=False))
        except OSError:
            return False
        now = self._clock()
        rows = self._index.rows("SELECT proof, used FROM blob WHERE digest=?", (digest.hex,), (bytes, int))
        if rows and holds(rows[0][0], stamp, digest):
            if rows[0][1] < now - _TOUCH_S:
                self._index.write(("UPDATE blob SET used=? WHERE digest=?", [(int(now), digest.hex)]))
            return True
        return self.check(digest)

    def judge(
        self, digest: Digest, *, sync: bool = True
    ) -> tuple[Literal["intact", "corrupt", "gone"], StatRecord | None]:
        """Sync and read a blob, and tell whether it matches its digest; an intact one with its stat record."""
        path = self.path(digest)
        # Twice: another process may have replaced the blob while it was read.
        found = read_digest(path, sync=sync) or read_digest(path, sync=sync)
        if found is None:
            return ("corrupt" if os.path.lexists(path) else "gone"), None
        return ("intact", found[1]) if found[0] == digest else ("corrupt", None)

    def check(self, digest: Digest) -> bool:
        """Tell whether a blob is intact, by reading it; a corrupt one is dropped with a warning."""
        now = self._clock()
        verdict, stamp = self.judge(digest)
        if stamp is None:
            if verdict == "corrupt":
                self.reject(digest)
            else:
                self.forget([digest])
            return False
        self._index.write(
            (
                "INSERT OR REPLACE INTO blob (digest, size, proof, used) VALUES (?, ?, ?, ?)",
                [(digest.hex, stamp[0], prove(stamp, int(now * 1e9), digest), int(now))],
            )
        )
        return True

    def body(self, digest: Digest) -> Body | None:
        """Open a blob for reading, pinned; None if it is missing. Reading checks it (`StoredBlobReader`)."""
        if not self.is_intact(digest):
            return None
        try:
            return _StoredBody(self, digest, os.stat(self.path(digest)).st_size)
        except OSError:
            return None

    def reject(self, digest: Digest, file: BinaryIO | None = None) -> None:
        """Drop a corrupt blob with one warning, even if it is in use; not if it is no longer the open `file`."""
        with self._lock:
            is_new = digest not in self._reported
            self._reported.add(digest)
        if is_new:
            self._index.tell("cache-corrupt", f"{digest} in the cache is corrupt: it is made again")
        with suppress(OSError):
            if file is not None and not os.path.samestat(os.fstat(file.fileno()), os.lstat(self.path(digest))):
                return
        self.drop(digest)

    def drop(self, digest: Digest) -> None:
        """Remove a blob, and all records of it."""
        path = self.path(digest)
        with suppress(OSError):
            if os.path.isdir(path) and not os.path.islink(path):
                import shutil  # rarely needed

                shutil.rmtree(path)
            else:
                os.unlink(path)
        self.forget([digest])

    def forget(self, digests: list[Digest]) -> None:
        """Remove the records of deleted blobs: their chunks, and the steps that made them."""
        rows = [(one.hex,) for one in digests]
        self._index.write(
            ("DELETE FROM blob WHERE digest=?", rows),
            ("DELETE FROM chunk WHERE digest=?", rows),
            ("DELETE FROM trace WHERE key IN (SELECT key FROM trace_blob WHERE digest=?)", rows),
            ("DELETE FROM trace_blob WHERE key NOT IN (SELECT key FROM trace)", [()]),
        )

    def all(self) -> Iterator[tuple[Digest, os.stat_result]]:
        """List the existing blobs, in no order; raises OutputError if the directory cannot be read."""
        try:
            with os.scandir(self._home) as found:
                for item in found:
                    if len(item.name) == 64:
                        with suppress(FileNotFoundError):
                            yield Digest(item.name), item.stat(follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise OutputError(
                "cache-closed", f"cannot list {printable(self._home)}: {error.strerror}", "check the disk of the cache"
            ) from error

    def admit(self, path: str, digest: Digest) -> None:
        """Rename a finished file into place; raises OSError."""
        with self._lease.pinning(digest):
            try:
                os.replace(path, self.path(digest))
            except IsADirectoryError:
                self.reject(digest)
                os.replace(path, self.path(digest))
            size = os.stat(self.path(digest), follow_symlinks=False).st_size
        # Without a proof: the next use reads it once.
        self._index.write(
            (
                "INSERT OR REPLACE INTO blob (digest, size, used) VALUES (?, ?, ?)",
                [(digest.hex, size, int(self._clock()))],
            )
        )

    def _make(self) -> None:
        """Create the layout if it is missing; raises OSError."""
        if os.path.isdir(self._home):
            return
        os.makedirs(self._home, exist_ok=True)
        index = {"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": []}
        # The file that makes a directory a layout comes last.
        for name, document in (("index.json", index), ("oci-layout", {"imageLayoutVersion": OCI_LAYOUT_VERSION})):
            path = self._new_path()
            try:
                with open(path, "xb") as file:
                    file.write(canonical_json(document))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(path, os.path.join(self._layout, name))
            except BaseException:
                with suppress(OSError):
                    os.unlink(path)
                raise


class _StoredBody:
    """A blob of the store (`oci.ports.Body`)."""

    def __init__(self, blobs: Blobs, digest: Digest, size_bytes: int) -> None:
        self._blobs = blobs
        self._digest = digest
        self.size_bytes = size_bytes

    @contextmanager
    def open(self, offset: int = 0) -> Iterator[StoredBlobReader]:
        """Open for reading from `offset`; raises LostBlobError, as does reading."""
        try:
            file = open(self._blobs.path(self._digest), "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise _lost(self._blobs, self._digest, error) from error
        with file:
            reader = StoredBlobReader(self._blobs, self._digest, self.size_bytes, file)
            reader.skip(offset)
            yield reader


class StoredBlobReader:
    """Reads a blob to its end, and checks its digest before it returns the last bytes.

    So a copy of a corrupt blob is never completed: the blob is dropped, and reading raises LostBlobError.
    """

    def __init__(self, blobs: Blobs, digest: Digest, size_bytes: int, file: BinaryIO) -> None:
        self._blobs = blobs
        self._digest = digest
        self._left = size_bytes
        self._file = file
        self._sha = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        """Read up to `size` bytes, none at the end."""
        try:
            data = self._file.read(min(size, self._left))
        except OSError as error:
            raise _lost(self._blobs, self._digest, error, self._file) from error
        self._sha.update(data)
        self._left -= len(data)
        is_short = not data and size > 0 and self._left > 0
        if is_short or (not self._left and self._sha.hexdigest() != self._digest.hex):
            raise _lost(self._blobs, self._digest, None, self._file)
        return data

    def skip(self, count_bytes: int) -> None:
        """Skip bytes, which are read anyway: the digest covers the whole blob."""
        while count_bytes and (data := self.read(min(count_bytes, _PIECE_BYTES))):
            count_bytes -= len(data)


def _lost(blobs: Blobs, digest: Digest, error: OSError | None, file: BinaryIO | None = None) -> LostBlobError:
    """Drop an unreadable blob and return the error; a blob that is already gone is not corrupt."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        blobs.forget([digest])
        message = f"{digest} was removed from the cache while it was in use"
        return LostBlobError("cache-vanished", message, "try again", digest)
    blobs.reject(digest, file)
    return LostBlobError("cache-corrupt", f"{digest} in the cache is corrupt", "check the disk of the cache", digest)

"""Chunks of earlier blobs, copied instead of compressed. Thread-safe."""

from __future__ import annotations

import os
from contextlib import suppress
from threading import Lock

from blake3 import blake3

from detlayer.layer.codec import Codec
from detlayer.layer.ports import Bytes
from detlayer.oci.types import Digest
from detlayer.store import Spot, Store


class ChunkCache:
    """A `ChunkMemory` over the store. Copied bytes are checked by their blake3: a blob may be damaged.

    Useless without compression: creating a chunk is as fast as copying it.
    """

    def __init__(self, store: Store, codec: Codec, *, is_read: bool = True) -> None:
        self._store = store
        self._codec = f"{codec.name} {codec.codec_class}".encode()
        self._compresses = bool(codec.level)
        self._is_read = is_read
        self._fds: dict[Digest, int] = {}
        self._lock = Lock()
        self._fingerprints: dict[bytes, bytes] = {}
        """blake3 of the compressed bytes of copied chunks, until their position in the new blob is known."""
        self._combined = blake3()
        self._known: dict[bytes, tuple[Digest, Spot]] = {}
        self._asked: set[Digest] = set()
        self.spots: list[tuple[bytes, Spot]] = []
        """Keys and positions of the new blob's chunks, in order."""
        self.copied = 0
        self.compressed = 0

    def recall(self, fingerprint: bytes) -> bytes | None:
        """Return the compressed bytes of a chunk; None if it has to be compressed."""
        if not self._compresses:
            return None
        found = self._copy(self._key(fingerprint)) if self._is_read else None
        with self._lock:
            if found is None:
                self.compressed += 1
                return None
            self.copied += 1
            data, self._fingerprints[fingerprint] = found
        return data

    def learn(self, fingerprint: bytes, offset_bytes: int, data: Bytes) -> None:
        """Record the position of a chunk's compressed bytes in the new blob."""
        self._combined.update(fingerprint)
        if self._compresses:
            spot = Spot(offset_bytes, len(data), self._fingerprints.pop(fingerprint, b"") or blake3(data).digest())
            self.spots.append((self._key(fingerprint), spot))

    def fingerprint(self) -> bytes:
        """Return the result of `layer.writer.fingerprint` for the recorded chunks."""
        return self._combined.digest()

    def close(self) -> None:
        for fd in self._fds.values():
            if fd >= 0:
                os.close(fd)
        self._fds.clear()

    def _key(self, fingerprint: bytes) -> bytes:
        return blake3(fingerprint + self._codec).digest()

    def _copy(self, key: bytes) -> tuple[bytes, bytes] | None:
        found = self._find(key)
        if found is None:
            return None
        digest, spot = found
        try:
            data = os.pread(self._open(digest), spot.size_bytes, spot.offset_bytes)
        except OSError:
            return None
        return (data, spot.fingerprint) if blake3(data).digest() == spot.fingerprint else None

    def _find(self, key: bytes) -> tuple[Digest, Spot] | None:
        """Look up a chunk, together with the others of its blob: the next ones are usually there, too."""
        found = self._known.get(key)
        if found is None:
            with self._lock:
                found = self._store.traces.find_chunk(key)
                if found is not None and found[0] not in self._asked:
                    self._asked.add(found[0])
                    self._known |= {
                        each: (found[0], spot) for each, spot in self._store.traces.chunks_in(found[0]).items()
                    }
        return found

    def _open(self, digest: Digest) -> int:
        """Open a blob once; it can't be removed while it is open. Raises OSError."""
        with self._lock:
            fd = self._fds.get(digest)
            if fd is None:
                fd = -1
                with suppress(OSError):
                    fd = os.open(self._store.blobs.path(digest), os.O_RDONLY | os.O_NOFOLLOW)
                self._fds[digest] = fd
        return fd

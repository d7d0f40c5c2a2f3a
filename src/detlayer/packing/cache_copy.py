"""Write a copy of a new blob to the cache while it is written to the outputs."""

from __future__ import annotations

from detlayer.errors import printable
from detlayer.layer.ports import Bytes
from detlayer.oci.types import Digest
from detlayer.store import Incoming, Store
from detlayer.store.maintenance import MAX_BYTES

_CHECK_BYTES = 32 << 20  # free space is checked after every so many bytes
_LEFT_FREE_BYTES = 256 << 20


class SpareBlob:
    """A sink that never fails: an error is a warning, and the blob is not cached.

    The same happens if the blob would fill half the cache, or the disk: the output may need that space.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._incoming: Incoming | None = None
        self._is_over = False
        self._size_bytes = 0
        self._checked_bytes = 0

    def write(self, data: Bytes, /) -> None:
        if self._is_over:
            return
        try:
            if self._incoming is None:
                self._incoming = self._store.blobs.incoming()
            self._size_bytes += len(data)
            if self._size_bytes - self._checked_bytes > _CHECK_BYTES:
                self._checked_bytes = self._size_bytes
                if self._size_bytes > MAX_BYTES // 2 or self._incoming.free_bytes() < _LEFT_FREE_BYTES:
                    self._give_up()
                    return
            self._incoming.write(data)
        except OSError as error:
            self._fail(error)

    def commit(self, digest: Digest) -> bool:
        """Commit the blob under its digest; tells whether it is in the cache."""
        try:
            if self._incoming is not None and not self._is_over:
                self._incoming.commit(digest)
                return True
        except OSError as error:
            self._fail(error)
        return False

    def discard(self) -> None:
        if self._incoming is not None:
            self._incoming.discard()

    def _give_up(self) -> None:
        self._is_over = True
        self.discard()

    def _fail(self, error: OSError) -> None:
        self._give_up()
        self._store.index.warn(
            "cache-unusable", f"{printable(self._store.directory)}: {error.strerror}: the layer is not cached"
        )

"""Files that are known by their stat records to contain a blob: our own, and outputs. Read in case of doubt."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import msgspec

from detlayer.oci.types import Digest
from detlayer.store.index import Index, seal, unseal
from detlayer.store.stat_record import StatRecord, is_racy, stat_record_of

_PIECE_BYTES = 1 << 20


def prove(stamp: StatRecord, seen_ns: int, digest: Digest) -> bytes:
    """Encode that a file with this record contained a blob."""
    return seal(digest.hex.encode(), msgspec.msgpack.encode((stamp, seen_ns)))


def holds(proof: bytes | None, stamp: StatRecord, digest: Digest) -> bool:
    """Tell whether a file with this record must still contain the blob."""
    data = unseal(digest.hex.encode(), proof) if proof is not None else None
    try:
        known, seen_ns = msgspec.msgpack.decode(data, type=tuple[StatRecord, int]) if data is not None else ((), 0)
    except msgspec.MsgspecError:
        return False
    return known == stamp and not is_racy(stamp, seen_ns)


def read_digest(path: str, *, sync: bool = False) -> tuple[Digest, StatRecord] | None:
    """Read a file and return its digest; None if it can't be read or changed meanwhile.

    With `sync`, it is then also on disk.
    """
    sha = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            if sync:
                os.fsync(file.fileno())
            before = stat_record_of(os.fstat(file.fileno()))
            buffer = bytearray(_PIECE_BYTES)
            while count := file.readinto(buffer):
                sha.update(memoryview(buffer)[:count])
            if stat_record_of(os.fstat(file.fileno())) != before:
                return None
    except OSError:
        return None
    return Digest(sha.hexdigest()), before


class VerifiedOutputs:
    """Outputs that are up to date: writing them again would only change their times."""

    def __init__(self, index: Index, clock: Callable[[], float]) -> None:
        self._index = index
        self._clock = clock

    def holds(self, path: str, digest: Digest, size_bytes: int) -> bool:
        """Tell whether a file contains a blob; a file that we did not write is not read."""
        rows = self._index.rows("SELECT digest, proof FROM output WHERE path=?", (os.fsencode(path),), (str, bytes))
        if not rows or rows[0][0] != digest.hex:
            return False
        try:
            stamp = stat_record_of(os.stat(path, follow_symlinks=False))
        except OSError:
            return False
        if stamp[0] != size_bytes:
            return False
        if holds(rows[0][1], stamp, digest):
            return True
        found = read_digest(path)
        return found is not None and found[0] == digest

    def keep(self, paths: list[str], digest: Digest) -> None:
        """Record the outputs that were just written."""
        rows = []
        now = self._clock()
        for path in paths:
            try:
                stamp = stat_record_of(os.stat(path, follow_symlinks=False))
            except OSError:
                continue
            rows.append((os.fsencode(path), digest.hex, prove(stamp, int(now * 1e9), digest), int(now)))
        if rows:
            self._index.write(("INSERT OR REPLACE INTO output (path, digest, proof, used) VALUES (?, ?, ?, ?)", rows))

"""Time stamps in Python's bytecode files: which of their bytes contain an install time (SPEC 4.8).

A timestamp-based .pyc (PEP 552: flags word 0) records mtime and size of its source. Once mtimes are normalized, each
such file is stale, and its bytes contain the time of the installation. Written with the source's normalized mtime it is
both up to date and reproducible.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

_HEADER = Struct("<2x2sIII")  # end of the magic number, flags, mtime, size
HEADER_BYTES = _HEADER.size
_FIELD = 0xFFFFFFFF


class Recorded(NamedTuple):
    """The source that a timestamp-based .pyc records: mtime in seconds and size in bytes, both modulo 2**32."""

    mtime: int
    size_bytes: int


def recorded(head: bytes | memoryview) -> Recorded | None:
    """Parse the first 16 bytes of a .pyc; None unless it is timestamp-based."""
    if len(head) < HEADER_BYTES:
        return None
    ending, flags, mtime, size_bytes = _HEADER.unpack_from(head)
    return Recorded(mtime, size_bytes) if ending == b"\r\n" and not flags else None


def matches(found: Recorded, mtime: int, size_bytes: int) -> bool:
    """Tell whether a source with this mtime (whole seconds) and size is the compiled one."""
    return found == (mtime & _FIELD, size_bytes & _FIELD)


def mtime_field(mtime: int) -> bytes:
    """Encode the four bytes at offset 8."""
    return (mtime & _FIELD).to_bytes(4, "little")


def source_name(name: bytes, in_pycache: bool) -> bytes | None:
    """Return the source path of a .pyc (PEP 3147, PEP 488): in `__pycache__` without tag and `opt-` or next to it."""
    stem = name.removesuffix(b".pyc")
    if stem == name or not stem:
        return None
    if in_pycache:
        head, dot, tail = stem.rpartition(b".")
        if dot and tail.startswith(b"opt-"):
            stem = head
        stem = stem.rpartition(b".")[0]
    return stem + b".py" if stem else None

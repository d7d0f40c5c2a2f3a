"""Entries to tar header bytes: `detlayer-tar/1` (SPEC 5). Does not compress, hash or read content.

This module contains everything that decides a byte of a header. Python's `tarfile` is unsuitable, since its choices
(PAX process ids, owner names, GNU records) have changed between versions.
"""

from __future__ import annotations

from zlib import adler32

from detlayer.errors import LayerError, printable
from detlayer.layer.entry import MAX_MTIME, MAX_OWNER, Entry, check_path, check_utf8

FORMAT = "detlayer-tar/1"
BLOCK_BYTES = 512
END = bytes(1024)  # SPEC 5.6

_TYPE_FLAGS = {"file": b"0", "hardlink": b"1", "symlink": b"2", "dir": b"5"}
_MAX_FIELD_OWNER = 0o7777777
_MAX_FIELD_SIZE = 0o77777777777

# After the link target: magic and version, no owner names, device numbers as digits, no prefix. SPEC 5.2
_USTAR = b"ustar\x0000" + bytes(64) + b"0000000\x000000000\0" + bytes(167)
_NO_LINK_TAIL = bytes(100) + _USTAR
_PAX_NAME = b"././@PaxHeader"


def padding(size_bytes: int) -> int:
    """Count the zeros that fill content up to whole blocks (SPEC 5.5)."""
    return -size_bytes % BLOCK_BYTES


def encode_header(entry: Entry) -> bytes:
    """Encode an entry's header blocks, its PAX record blocks included: a multiple of 512 bytes.

    Raises LayerError or TreeError for values outside of the format.
    """
    path = entry.written_path
    check_path(entry.path)
    uid, gid, size = entry.uid, entry.gid, entry.size_bytes
    if not (
        0 <= uid <= MAX_OWNER
        and 0 <= gid <= MAX_OWNER
        and 0 <= entry.mtime <= MAX_MTIME
        and 0 <= entry.mode <= 0o7777
        and (size == 0 or (size > 0 and entry.kind == "file"))
    ):
        raise LayerError(
            "entry-value",
            f"{printable(path)}: mode {entry.mode:o}, owner {uid}:{gid}, mtime {entry.mtime} or size {size} "
            "is out of range",
            f"expected owners 0 to {MAX_OWNER}, mtimes 0 to {MAX_MTIME}, modes up to 7777, and a size only for files",
        )
    if entry.kind in ("symlink", "hardlink") and (not entry.target or b"\0" in entry.target):
        raise LayerError(
            "entry-value", f"{printable(path)}: a link needs a target, without NUL", "set its target, or omit the link"
        )
    if (
        len(path) > 100
        or not path.isascii()
        or entry.target
        or entry.xattrs
        or size > _MAX_FIELD_SIZE
        or uid > _MAX_FIELD_OWNER
        or gid > _MAX_FIELD_OWNER
    ):
        pax = _pax_records(entry, path)
    else:
        pax = b""
    numbers = (
        entry.mode,
        uid if uid <= _MAX_FIELD_OWNER else 0,
        gid if gid <= _MAX_FIELD_OWNER else 0,
        size if size <= _MAX_FIELD_SIZE else 0,
        entry.mtime,
    )
    header = _block(path, numbers, _TYPE_FLAGS[entry.kind], entry.target)
    if not pax:
        return header
    return _block(_PAX_NAME, (0o644, 0, 0, len(pax), 0), b"x", b"") + pax + bytes(padding(len(pax))) + header


def _block(path: bytes, numbers: tuple[int, int, int, int, int], flag: bytes, target: bytes) -> bytes:
    """Make a header block; the numbers are mode, owner, group, size and mtime."""
    head = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0" % (path[:100].ljust(100, b"\0"), *numbers)
    tail = flag + (target[:100].ljust(100, b"\0") + _USTAR if target else _NO_LINK_TAIL)
    # The checksum is the sum of all bytes, its own eight counted as spaces (POSIX ustar). The low half of Adler-32 is
    # 1 + that sum modulo 65521, computed in C; a header's sum is less: two names of at most 100 bytes, and digits.
    checksum = (adler32(tail, adler32(head)) & 0xFFFF) - 1 + 8 * 0x20
    return b"%b%06o\0 %b" % (head, checksum, tail)


def _pax_records(entry: Entry, path: bytes) -> bytes:
    """Return the records for values that do not fit the fields, in the order of SPEC 5.4; empty if all fit."""
    records = []
    target = entry.target
    if len(path) > 100 or not path.isascii():
        records.append(_record(b"path", path))
    if not target.isascii():
        check_utf8(target, f"{printable(path)}: link target")
    if len(target) > 100 or not target.isascii():
        records.append(_record(b"linkpath", target))
    if entry.size_bytes > _MAX_FIELD_SIZE:
        records.append(_record(b"size", b"%d" % entry.size_bytes))
    if entry.uid > _MAX_FIELD_OWNER:
        records.append(_record(b"uid", b"%d" % entry.uid))
    if entry.gid > _MAX_FIELD_OWNER:
        records.append(_record(b"gid", b"%d" % entry.gid))
    for name, value in sorted(entry.xattrs):
        if not value or b"=" in name:
            raise LayerError(
                "xattr-unwritable",
                f"{printable(path)}: attribute {printable(name)} is empty or has '=' in its name",
                "an empty PAX value means 'remove'; exclude the attribute from --xattrs",
            )
        records.append(_record(b"SCHILY.xattr." + name, value))
    return b"".join(records)


def _record(key: bytes, value: bytes) -> bytes:
    """Format `LENGTH KEY=VALUE\\n`, where LENGTH includes itself (POSIX pax, "extended header")."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if length != rest + len(str(length)):  # the length itself added a digit
        length += 1
    return b"%d %b=%b\n" % (length, key, value)

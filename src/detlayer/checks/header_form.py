"""Compare a tar member's header with the canonical one of SPEC 5, field by field; each difference has a trap.

Does not read content.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import structs

from detlayer.checks.findings import Finding
from detlayer.errors import DetlayerError, printable
from detlayer.layer.entry import MAX_MTIME, WHITEOUT_PREFIX, Entry, Profile, marker, normalize, parent
from detlayer.layer.reader import Extension, Member, number, parse_records
from detlayer.layer.tar import BLOCK_BYTES, encode_header

_TIMES = (b"mtime", b"atime", b"ctime", b"LIBARCHIVE.creationtime", b"SCHILY.birthtime")
_NAMES = (b"uname", b"gname")
_XATTRS = (b"SCHILY.xattr.", b"LIBARCHIVE.xattr.", b"SCHILY.acl.", b"RHT.security.selinux")
_PAX_NAME = b"././@PaxHeader"
# Offset, length, name, trap: the fields of SPEC 5.2 whose every byte follows from the entry.
_FIELDS = (
    (100, 8, "mode", "number-format"),
    (108, 8, "uid", "number-format"),
    (116, 8, "gid", "number-format"),
    (124, 12, "size", "number-format"),
    (136, 12, "mtime", "number-format"),
    (156, 1, "type", "type-flag"),
    (157, 100, "link target", "header-bytes"),
    (257, 8, "magic", "gnu-format"),
    (265, 32, "uname", "owner-names"),
    (297, 32, "gname", "owner-names"),
    (329, 8, "devmajor", "devices-field"),
    (337, 8, "devminor", "devices-field"),
)


def is_canonical(member: Member, profile: Profile) -> bool:
    """Tell whether `check_form` and `check_values` find nothing: the fast path for nearly every entry."""
    entry = member.entry
    if entry.xattrs or member.special or member.sparse or not 0 <= entry.mtime <= MAX_MTIME:
        return False
    if normalize(entry, profile) != entry:
        return False
    try:
        return member.blocks == encode_header(entry)
    except DetlayerError:
        return False


def check_form(member: Member) -> Iterator[Finding]:
    """Compare a member's header blocks with the canonical ones of its entry; no findings if equal (SPEC 5)."""
    entry = member.entry
    path = printable(entry.path)
    if member.special:
        yield Finding("special-file", path, "type", member.special, "nothing")
        return
    if member.sparse:
        yield Finding("sparse", path, "type", "sparse", "all bytes")
        return
    try:
        wanted = encode_header(entry)
    except DetlayerError as error:
        yield Finding("header-bytes", path, error.code, error.message, "a value that SPEC 5 allows")
        return
    if member.blocks == wanted:
        return
    found = [
        *_check_path(member, path),
        *_check_extensions(member.extensions, wanted, path),
        *_check_block(member.block, wanted[-BLOCK_BYTES:], path),
    ]
    if not found:
        differ = [at for at, (a, b) in enumerate(zip(member.blocks, wanted, strict=False)) if a != b]
        # The checksum differs only as a consequence.
        at = next((at for at in differ if not 148 <= at % BLOCK_BYTES < 156), differ[0] if differ else len(wanted))
        found = [
            Finding("header-bytes", path, f"offset {at}", member.blocks[at : at + 8].hex(), wanted[at : at + 8].hex())
        ]
    yield from found


def check_values(entry: Entry, profile: Profile) -> Iterator[Finding]:
    """Compare an entry's values with those that `profile` gives it (SPEC 4)."""
    path = printable(entry.path)
    if not 0 <= entry.mtime <= MAX_MTIME:
        yield Finding("mtime", path, "mtime", str(entry.mtime), f"0 to {MAX_MTIME}")
        entry = structs.replace(entry, mtime=profile.mtime.seconds)
    wanted = normalize(entry, profile)
    if _is_implied(entry, profile):
        wanted = entry
    if entry.mtime != wanted.mtime:
        yield Finding("mtime", path, "mtime", str(entry.mtime), str(wanted.mtime))
    if entry.kind != "hardlink" and entry.mode != wanted.mode:
        masked = not (entry.mode | wanted.mode) & 0o7000 and entry.mode & 0o700 == wanted.mode & 0o700
        yield Finding("umask" if masked else "mode", path, "mode", f"{entry.mode:04o}", f"{wanted.mode:04o}")
    if (entry.uid, entry.gid) != (wanted.uid, wanted.gid):
        yield Finding("owner", path, "owner", f"{entry.uid}:{entry.gid}", f"{wanted.uid}:{wanted.gid}")
    for name, value in entry.xattrs:
        if not profile.wants_xattr(name.decode("utf-8", "surrogateescape")):
            yield Finding("xattrs", path, printable(name), f"{len(value)} bytes", "nothing")


def _is_implied(entry: Entry, profile: Profile) -> bool:
    """Tell whether this may be a destination or whiteout: such entries are root's, whatever --owner is."""
    if entry.kind == "dir":
        made = parent(entry.path, profile)
    elif entry.kind == "file" and entry.path.rpartition(b"/")[2].startswith(WHITEOUT_PREFIX):
        made = marker(entry.path, profile)
    else:
        return False
    return (entry.mode, entry.uid, entry.gid, entry.mtime) == (made.mode, made.uid, made.gid, made.mtime)


def _check_path(member: Member, path: str) -> Iterator[Finding]:
    wanted = member.entry.written_path
    if member.written_path != wanted:
        yield Finding("path-form", path, "path", printable(member.written_path), printable(wanted))
    if member.block[257:263] == b"ustar\0" and member.block[345]:
        yield Finding("prefix-field", path, "prefix", printable(member.block[345:500].split(b"\0")[0]), "")


def _check_extensions(extensions: tuple[Extension, ...], wanted: bytes, path: str) -> Iterator[Finding]:
    needed: list[tuple[bytes, bytes]] = []
    if wanted[156:157] == b"x":
        needed = list(parse_records(wanted[BLOCK_BYTES : BLOCK_BYTES + number(wanted[124:136], "size")]))
    names = [key for key, _ in needed]
    for extension in extensions:
        if extension.flag in b"LK":
            yield Finding("gnu-format", path, "type", f"GNU long name ({printable(extension.flag)})", "PAX record")
            continue
        if extension.flag == b"g":
            keys = printable(b", ".join(key for key, _ in extension.records))
            yield Finding("needless-pax", path, "global header", keys, "none")
            continue
        name = extension.block[:100].split(b"\0")[0]
        if name != _PAX_NAME:
            yield Finding("pax-pid-name", path, "PAX header name", printable(name), printable(_PAX_NAME))
        head = extension.block
        for start, length, what in ((100, 8, "mode"), (108, 8, "uid"), (116, 8, "gid"), (136, 12, "mtime")):
            stored, right = number(head[start : start + length], what), 0o644 if what == "mode" else 0
            if stored != right:
                trap = {"mtime": "pax-times", "mode": "mode"}.get(what, "owner")
                yield Finding(trap, path, f"PAX header {what}", _shown(what, stored), _shown(what, right))
        if extension.block[265:329].strip(b"\0"):
            yield Finding("owner-names", path, "PAX header names", printable(extension.block[265:329].strip(b"\0")), "")
        for key, value in extension.records:
            if key in _TIMES:
                yield Finding("pax-times", path, printable(key), printable(value), "no record")
            elif key in _NAMES:
                yield Finding("owner-names", path, printable(key), printable(value), "no record")
            elif key.startswith(_XATTRS) and key not in names:
                yield Finding("xattrs", path, printable(key), f"{len(value)} bytes", "no record")
            elif key not in names:
                yield Finding("needless-pax", path, printable(key), printable(value[:60]), "no record")
        kept = [key for key, _ in extension.records if key in names]
        if kept != names:
            found = printable(b", ".join(kept)) or "none"
            yield Finding("needless-pax", path, "order of records", found, printable(b", ".join(names)))


def _shown(what: str, value: int) -> str:
    return f"{value:04o}" if what == "mode" else str(value)


def _check_block(block: bytes, wanted: bytes, path: str) -> Iterator[Finding]:
    mode = number(block[100:108], "mode")
    if mode > 0o7777:
        yield Finding("type-bits-in-mode", path, "mode", f"{mode:o}", f"{mode & 0o7777:04o}")
    for start, length, name, trap in _FIELDS:
        found, right = block[start : start + length], wanted[start : start + length]
        if found == right or (name == "mode" and mode > 0o7777):
            continue
        if name == "link target" and block[156:157] == b"1" and found.strip(b"\0"):
            trap = "path-form"  # a hard link's target is a path of the layer
        elif trap == "number-format" and found[0] & 0x80:
            trap = "gnu-format"
        elif name == "size" and number(found, "size") and not number(right, "size"):
            trap = "size-field"
        elif trap == "number-format" and number(found, name) != number(right, name):
            continue  # overridden by a PAX record, which is checked itself
        yield Finding(trap, path, name, _text(found), _text(right))
    if block[345:] != wanted[345:] and block[257:263] != b"ustar\0":
        yield Finding("gnu-format", path, "fields after byte 345", _text(block[345:]), "zeros")


def _text(raw: bytes) -> str:
    shown = raw.rstrip(b"\0")
    return printable(shown) if shown and shown.isascii() else (raw[:16].hex() if shown else "zeros")

"""The reader: headers and their extensions to members, one after the other."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple
from zlib import adler32

from msgspec import structs

from detlayer.errors import LayerError, printable
from detlayer.layer.entry import PATH_MAX_BYTES, Entry, EntryKind
from detlayer.layer.reader import sparse
from detlayer.layer.reader.feed import Feed, MemberContent, SparseContent
from detlayer.layer.reader.records import AGAIN, NOBODY, decimal, number, parse_records, seconds
from detlayer.layer.tar import BLOCK_BYTES, padding

MAX_RECORDS_BYTES = 4 << 20  # of one PAX header: many extended attributes of 64 KiB, Linux's bound for each
MAX_RECORDS = 1 << 13  # of one PAX header
MAX_EXTENSIONS = 16  # headers that say something of one entry, global ones included
MAX_LONG_NAME_BYTES = 1 << 16
MAX_SHARED_BYTES = 1 << 16  # of what global headers say
MAX_HOLES_BYTES = 64 << 20  # of all sparse files of a tar, where nobody else counts them
_ZERO = bytes(BLOCK_BYTES)
_KINDS: dict[bytes, EntryKind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"S": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"5": "dir",
}
# Mode, uid, gid, size and mtime as SPEC 5.2 has them.
_DIGITS = re.compile(rb"([0-7]{7})\0([0-7]{7})\0([0-7]{7})\0([0-7]{11})\0([0-7]{11})\0")
_SPECIAL = {b"3": "character device", b"4": "block device", b"6": "FIFO"}
# Records that other values are read from, or that say how or whence a member was stored: not what it is.
_FORMAL = frozenset(
    (
        *(b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"atime", b"ctime", b"uname", b"gname"),
        *(b"comment", b"hdrcharset", b"LIBARCHIVE.creationtime"),
        *(b"SCHILY." + key for key in (b"dev", b"devmajor", b"devminor", b"ino", b"nlink", b"filetype", b"realsize")),
    )
)
_XATTR = b"SCHILY.xattr."
_SECOND_XATTR = b"LIBARCHIVE.xattr."
_ESCAPED = re.compile(rb"%([0-9A-Fa-f]{2})")


class Extension(NamedTuple):
    """A header that says something of the next one: PAX `x` or `g`, GNU `L` or `K`."""

    flag: bytes
    block: bytes
    data: bytes
    records: tuple[tuple[bytes, bytes], ...]


@dataclass(slots=True)
class Member:
    """An entry of a tar and how it was written. `special` names what no layer of ours holds: a device, a FIFO.

    A sparse file's entry has the size and content of the whole file.
    """

    entry: Entry
    blocks: bytes
    extensions: tuple[Extension, ...]
    written_path: bytes
    special: str = ""
    sparse: bool = False
    map: bytes = b""
    """A sparse file's map, as far as it stands behind the header."""
    stored_bytes: int = 0
    """How much content is in the tar."""
    extras: tuple[tuple[bytes, bytes], ...] = ()
    """What else the entry has: a device's numbers, and PAX records that are neither values of `entry` nor mere form."""

    def views(self) -> Iterator[memoryview]:
        """The content in pieces as they come, not copied; instead of opening it."""
        content = self.entry.content
        return content.views() if isinstance(content, MemberContent) else iter(())

    @property
    def block(self) -> bytes:
        """The entry's own header block, behind its extensions."""
        return self.blocks[-BLOCK_BYTES:]


class TarReader:
    """Iterate over the members of a tar; a member's content can be read until the next member is asked for.

    At the end `trailer_bytes` counts the zeros behind the last entry, and `left_over` has the global headers that no
    entry follows (`git archive` of nothing). Raises LayerError.
    """

    def __init__(
        self,
        pieces: Iterable[bytes],
        skip: Callable[[int], None] | None = None,
        *,
        grow: Callable[[int], None] | None = None,
    ) -> None:
        """`skip` passes by bytes that `pieces` would give next, which it must have; without it they are read.

        `grow` is told how many bytes the holes of a sparse file add when its content is read; it raises if they are
        too many (`BlobReader.grow`); without it MAX_HOLES_BYTES is the bound.
        """
        self._feed = Feed(iter(pieces), skip)
        self._grow = grow or self._count_holes
        self._holes_bytes = 0
        self.trailer_bytes = 0
        self.left_over: tuple[Extension, ...] = ()

    def __iter__(self) -> Iterator[Member]:
        feed = self._feed
        shared: dict[bytes, bytes] = {}
        while True:
            extensions: list[Extension] = []
            blocks: list[bytes] = []
            own: dict[bytes, bytes] = {}
            while True:
                block = feed.take_block()
                if block is None or block == _ZERO:
                    self.left_over = tuple(extensions)
                    if own or any(extension.flag != b"g" for extension in extensions):
                        raise LayerError("tar-truncated", "the tar ends behind an extension header", AGAIN)
                    self._read_trailer(block)
                    return
                _check_sum(block)
                flag = block[156:157]
                if flag not in b"xgXLK":
                    break
                if len(extensions) == MAX_EXTENSIONS:
                    raise LayerError("header-chain", f"over {MAX_EXTENSIONS} extension headers for one entry", NOBODY)
                if flag != b"g" and any(flag == other.flag for other in extensions):
                    # Readers disagree on which of the two counts: what is checked here might not be what is unpacked.
                    raise LayerError("header-repeated", f"two {printable(flag)} headers for one entry", NOBODY)
                extension = self._extension(flag, block)
                extensions.append(extension)
                blocks += (block, extension.data, bytes(padding(len(extension.data))))
                (shared if flag == b"g" else own).update(extension.records)
                if flag == b"g" and sum(map(len, shared)) + sum(map(len, shared.values())) > MAX_SHARED_BYTES:
                    raise LayerError("header-too-long", "the global headers grow without end", NOBODY)
            blocks.append(block)
            records = {**shared, **own} if shared else own
            member = _member(block, records, b"".join(blocks), tuple(extensions), feed)
            if member.sparse:
                self._expand(member, block, records)
            yield member
            content = member.entry.content
            if isinstance(content, MemberContent):
                content.skip_rest()
                feed.skip(padding(member.stored_bytes))

    def _extension(self, flag: bytes, block: bytes) -> Extension:
        size = number(block[124:136], "size")
        if not 0 <= size <= (MAX_LONG_NAME_BYTES if flag in b"LK" else MAX_RECORDS_BYTES):
            raise LayerError("header-too-long", f"an extension header of {size} bytes", NOBODY)
        data = self._feed.take(size)
        self._feed.skip(padding(size))
        if flag in b"LK":
            name = data.split(b"\0")[0]
            return Extension(flag, block, data, ((b"path" if flag == b"L" else b"linkpath", name),))
        records = tuple(islice(parse_records(data), MAX_RECORDS + 1))
        if len(records) > MAX_RECORDS:
            raise LayerError("header-too-long", f"an extension header of over {MAX_RECORDS} records", NOBODY)
        return Extension(flag, block, data, records)

    def _expand(self, member: Member, block: bytes, records: dict[bytes, bytes]) -> None:
        """Make of a sparse member the file that it stands for."""
        entry, feed = member.entry, self._feed
        shown = printable(entry.path)
        if entry.kind != "file" or member.special:
            raise LayerError("sparse-map", f"{shown} is sparse, and no file", NOBODY)
        own = [record for extension in member.extensions if extension.flag in b"xX" for record in extension.records]
        stored_bytes = member.stored_bytes
        is_pax = any(key.startswith(sparse.PREFIX) for key in records)
        try:
            if block[156:157] != b"S":
                found, member.map = sparse.read_pax_map(records, own, stored_bytes, feed.take)
                stored_bytes -= len(member.map)
            elif not is_pax:
                found, member.map = sparse.read_header_map(block, feed.take)
            else:
                raise sparse.SparseMapError("sparse-map", "a sparse file has two maps", NOBODY)
            sparse.check(found, stored_bytes)
        except sparse.SparseMapError as error:
            raise sparse.SparseMapError(error.code, f"{shown}: {error.message}", error.hint) from None
        member.stored_bytes = stored_bytes
        content = SparseContent(feed, stored_bytes, found, self._grow) if found.size_bytes else None
        member.entry = structs.replace(entry, size_bytes=found.size_bytes, content=content)

    def _count_holes(self, count: int) -> None:
        self._holes_bytes += count
        if self._holes_bytes > MAX_HOLES_BYTES:
            raise LayerError("expansion-limit", f"sparse files with holes of over {MAX_HOLES_BYTES} bytes", NOBODY)

    def _read_trailer(self, block: bytes | None) -> None:
        while block is not None:
            if block.count(0) != len(block):
                raise LayerError("tar-garbage", "something follows the end of the tar", "cut it off, or make it anew")
            self.trailer_bytes += len(block)
            block = self._feed.take_rest()


def _check_sum(block: bytes) -> None:
    raw = block[148:156].strip(b"\0 ")
    if raw and len(raw) < 8 and not raw.strip(b"01234567"):
        stored = int(raw, 8)
        # As in tar.py: the low half of Adler-32 is the sum in C, modulo 65521.
        if stored % 65521 == ((adler32(block[156:], adler32(block[:148])) & 0xFFFF) - 1 + 256) % 65521:
            rest = block[:148] + block[156:]
            if stored < 65521 or stored == sum(rest) + 256:
                return
        # Some old tars summed signed characters.
        if stored == sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:]) + 256:
            return
    raise LayerError("header-checksum", "a header's checksum does not fit: this is no tar, or a damaged one", AGAIN)


def _member(
    block: bytes, records: dict[bytes, bytes], blocks: bytes, extensions: tuple[Extension, ...], feed: Feed
) -> Member:
    flag = block[156:157]
    written = records.get(b"GNU.sparse.name") or records.get(b"path") or _name(block)
    kind = _KINDS.get(flag)
    special = _SPECIAL.get(flag, "")
    if kind is None and not special:
        raise LayerError("header-type", f"{printable(written)}: entries of type {printable(flag)!r} are unknown", AGAIN)
    if kind in (None, "file") and written.endswith(b"/") and not special:
        kind = "dir"  # as before POSIX
    path = clean_path(written)
    target = records.get(b"linkpath") or block[157:257].split(b"\0")[0] if kind in ("symlink", "hardlink") else b""
    if kind == "hardlink":
        target = clean_path(target)
    _check_text(target)
    numbers = None if records else _DIGITS.match(block, 100)
    if numbers is not None:  # the short way for nearly every header: all fields as SPEC 5.2 has them, none overruled
        mode, uid, gid, size, mtime = [int(digits, 8) for digits in numbers.groups()]
    else:
        mode = number(block[100:108], "mode")
        uid = _decimal(records, b"uid", block[108:116])
        gid = _decimal(records, b"gid", block[116:124])
        size = _decimal(records, b"size", block[124:136])
        mtime = seconds(records[b"mtime"]) if records.get(b"mtime") else number(block[136:148], "mtime")
    if size and kind == "dir" and flag in b"0\0007S":
        # Some readers take this for a file with content, some for a directory with none.
        raise LayerError("header-type", f"{printable(written)} is a directory by name and a file by content", NOBODY)
    if kind in ("dir", "symlink", "hardlink") or special:
        # Some writers give links the size of their target, with no content behind; POSIX lets none of these have any.
        size = 0
    if size < 0:
        raise LayerError("header-number", f"{printable(path)} has a size below zero", AGAIN)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    extras: tuple[tuple[bytes, bytes], ...] = ()
    if records:
        xattrs = tuple(sorted((key[13:], value) for key, value in records.items() if key.startswith(_XATTR)))
        extras = _extras(records, dict(xattrs))
    if special.endswith("device"):
        major = _decimal(records, b"SCHILY.devmajor", block[329:337])
        minor = _decimal(records, b"SCHILY.devminor", block[337:345])
        extras = ((b"device", b"%d:%d" % (major, minor)), *extras)
    entry = Entry(
        path,
        kind or "file",
        mode & 0o7777,
        uid,
        gid,
        mtime,
        size,
        target,
        xattrs,
        MemberContent(feed, size) if size else None,
    )
    is_sparse = flag == b"S" or any(key.startswith(sparse.PREFIX) for key in records)
    return Member(entry, blocks, extensions, written, special, is_sparse, b"", size, extras)


def _extras(records: dict[bytes, bytes], xattrs: dict[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """Find the records that are content of the entry: all that are not known to be something else."""
    found = []
    for key, value in records.items():
        if not value or key in _FORMAL or key.startswith((_XATTR, sparse.PREFIX)):
            continue
        if key.startswith(_SECOND_XATTR):  # libarchive writes an attribute twice
            name = _ESCAPED.sub(lambda escaped: bytes.fromhex(escaped[1].decode()), key.removeprefix(_SECOND_XATTR))
            if name in xattrs and b64encode(xattrs[name]).rstrip(b"=") == value.rstrip(b"=\n"):
                continue
        found.append((key, value))
    return tuple(sorted(found))


def _name(block: bytes) -> bytes:
    name = block[:100].split(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345]:
        return block[345:500].split(b"\0")[0] + b"/" + name
    return name


def clean_path(written: bytes) -> bytes:
    """Bring a path to the form of SPEC 3.2; the root becomes empty. Raises LayerError for what leads outside."""
    if b"//" in written or b"./" in written or written[:1] in (b"/", b".") or written[-1:] in (b"/", b"."):
        parts = [part for part in written.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise LayerError("unsafe-path", f"{printable(written)} leads out of the layer", "do not trust this layer")
        written = b"/".join(parts)
    if len(written) > PATH_MAX_BYTES:
        raise LayerError("path-too-long", f"{printable(written[:60])}… has {len(written)} bytes", "no engine takes it")
    _check_text(written)
    return written


def _check_text(raw: bytes) -> None:
    if not raw.isascii():
        try:
            raw.decode()
        except UnicodeDecodeError:
            raise LayerError(
                "name-not-utf8", f"{printable(raw)} is not valid UTF-8", "rename it at its source"
            ) from None
    if b"\0" in raw:
        raise LayerError("entry-path", f"{printable(raw)} holds a NUL", "do not trust this layer")


def _decimal(records: dict[bytes, bytes], key: bytes, raw: bytes) -> int:
    value = records.get(key)
    return decimal(value, key) if value else number(raw, key.decode())

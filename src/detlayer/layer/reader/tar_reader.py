"""The reader: headers and their extensions to members, in sequence."""

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

MAX_RECORDS_BYTES = 4 << 20  # per PAX header: many extended attributes of 64 KiB, Linux's limit for each
MAX_RECORDS = 1 << 13  # of one PAX header
MAX_EXTENSIONS = 16  # extension headers per entry, global ones included
MAX_LONG_NAME_BYTES = 1 << 16
MAX_SHARED_BYTES = 1 << 16  # of the records in global headers
MAX_HOLES_BYTES = 64 << 20  # of all sparse files of a tar, unless the caller counts them
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
# Mode, uid, gid, size and mtime as in SPEC 5.2.
_DIGITS = re.compile(rb"([0-7]{7})\0([0-7]{7})\0([0-7]{7})\0([0-7]{11})\0([0-7]{11})\0")
_SPECIAL = {b"3": "character device", b"4": "block device", b"6": "FIFO"}
# Records that are read as other values, or that describe how a member was stored.
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
    """A header with values for the next one: PAX `x` or `g`, GNU `L` or `K`."""

    flag: bytes
    block: bytes
    data: bytes
    records: tuple[tuple[bytes, bytes], ...]


@dataclass(slots=True)
class Member:
    """An entry of a tar and its original header. `special` names types that our layers exclude: a device, a FIFO.

    A sparse file's entry has the size and content of the whole file.
    """

    entry: Entry
    blocks: bytes
    extensions: tuple[Extension, ...]
    written_path: bytes
    special: str = ""
    sparse: bool = False
    map: bytes = b""
    """The part of a sparse file's map that is after the header."""
    stored_bytes: int = 0
    """The size of the content in the tar."""
    extras: tuple[tuple[bytes, bytes], ...] = ()
    """Further values: a device's numbers, and PAX records that are neither in `entry` nor only form."""

    def views(self) -> Iterator[memoryview]:
        """Yield the content in pieces, without copying; instead of opening it."""
        content = self.entry.content
        return content.views() if isinstance(content, MemberContent) else iter(())

    @property
    def block(self) -> bytes:
        """The entry's own header block, after its extensions."""
        return self.blocks[-BLOCK_BYTES:]


class TarReader:
    """Iterate over the members of a tar; a member's content can be read until the next member.

    At the end `trailer_bytes` counts the zeros after the last entry, and `left_over` has the global headers without a
    following entry (`git archive` of nothing). Raises LayerError.
    """

    def __init__(
        self,
        pieces: Iterable[bytes],
        skip: Callable[[int], None] | None = None,
        *,
        grow: Callable[[int], None] | None = None,
    ) -> None:
        """`skip` skips bytes that `pieces` would yield next and that must exist; without it they are read.

        `grow` is called with the size of a sparse file's holes when its content is read; it raises if that is too much
        (`BlobReader.grow`); without it MAX_HOLES_BYTES is the limit.
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
                        raise LayerError("tar-truncated", "the tar ends after an extension header", AGAIN)
                    self._read_trailer(block)
                    return
                _check_sum(block)
                flag = block[156:157]
                if flag not in b"xgXLK":
                    break
                if len(extensions) == MAX_EXTENSIONS:
                    raise LayerError("header-chain", f"over {MAX_EXTENSIONS} extension headers for one entry", NOBODY)
                if flag != b"g" and any(flag == other.flag for other in extensions):
                    # Readers disagree on which one applies: the checked path might not be the unpacked one.
                    raise LayerError("header-repeated", f"two {printable(flag)} headers for one entry", NOBODY)
                extension = self._extension(flag, block)
                extensions.append(extension)
                blocks += (block, extension.data, bytes(padding(len(extension.data))))
                (shared if flag == b"g" else own).update(extension.records)
                if flag == b"g" and sum(map(len, shared)) + sum(map(len, shared.values())) > MAX_SHARED_BYTES:
                    raise LayerError("header-too-long", f"global headers of over {MAX_SHARED_BYTES} bytes", NOBODY)
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
        """Convert a sparse member to the file that it represents."""
        entry, feed = member.entry, self._feed
        shown = printable(entry.path)
        if entry.kind != "file" or member.special:
            raise LayerError("sparse-map", f"{shown} is sparse, but not a file", NOBODY)
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
                raise LayerError("tar-garbage", "unexpected data after the end of the tar", "remove it, or pack again")
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
    raise LayerError("header-checksum", "invalid header checksum: not a tar, or damaged", AGAIN)


def _member(
    block: bytes, records: dict[bytes, bytes], blocks: bytes, extensions: tuple[Extension, ...], feed: Feed
) -> Member:
    flag = block[156:157]
    written = records.get(b"GNU.sparse.name") or records.get(b"path") or _name(block)
    kind = _KINDS.get(flag)
    special = _SPECIAL.get(flag, "")
    if kind is None and not special:
        raise LayerError("header-type", f"{printable(written)}: unknown entry type {printable(flag)!r}", AGAIN)
    if kind in (None, "file") and written.endswith(b"/") and not special:
        kind = "dir"  # as before POSIX
    path = clean_path(written)
    target = records.get(b"linkpath") or block[157:257].split(b"\0")[0] if kind in ("symlink", "hardlink") else b""
    if kind == "hardlink":
        target = clean_path(target)
    _check_text(target)
    numbers = None if records else _DIGITS.match(block, 100)
    if numbers is not None:  # the fast path for nearly every header: all fields as in SPEC 5.2, none overridden
        mode, uid, gid, size, mtime = [int(digits, 8) for digits in numbers.groups()]
    else:
        mode = number(block[100:108], "mode")
        uid = _decimal(records, b"uid", block[108:116])
        gid = _decimal(records, b"gid", block[116:124])
        size = _decimal(records, b"size", block[124:136])
        mtime = seconds(records[b"mtime"]) if records.get(b"mtime") else number(block[136:148], "mtime")
    if size and kind == "dir" and flag in b"0\0007S":
        # Some readers extract this as a file with content, some as an empty directory.
        raise LayerError("header-type", f"{printable(written)} is a directory by name and a file by content", NOBODY)
    if kind in ("dir", "symlink", "hardlink") or special:
        # Some writers give links the size of their target, with no content after them; POSIX forbids content here.
        size = 0
    if size < 0:
        raise LayerError("header-number", f"{printable(path)} has a negative size", AGAIN)
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
    """Return the records that are content of the entry: all that are not known to be something else."""
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
    """Convert a path to the form of SPEC 3.2; the root becomes empty. Raises LayerError for a path outside."""
    if b"//" in written or b"./" in written or written[:1] in (b"/", b".") or written[-1:] in (b"/", b"."):
        parts = [part for part in written.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise LayerError("unsafe-path", f"{printable(written)} is outside of the layer", "do not use this layer")
        written = b"/".join(parts)
    if len(written) > PATH_MAX_BYTES:
        raise LayerError("path-too-long", f"{printable(written[:60])}… has {len(written)} bytes", "use a shorter path")
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
        raise LayerError("entry-path", f"{printable(raw)} contains a NUL", "do not use this layer")


def _decimal(records: dict[bytes, bytes], key: bytes, raw: bytes) -> int:
    value = records.get(key)
    return decimal(value, key) if value else number(raw, key.decode())

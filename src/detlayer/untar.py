"""Tar bytes to entries, from any writer and from untrusted sources. Never compression, hashing or disk.

Reads ustar, PAX, GNU long names and base-256 numbers, and recognises sparse files. How an entry was written is kept as
it stands (`Member.blocks`), for `form` to compare with how SPEC 5 would have it. Records are bounded; whatever lies is
a LayerError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple
from zlib import adler32

from detlayer.entry import PATH_MAX_BYTES, ContentReader, Entry, Kind
from detlayer.errors import LayerError, printable
from detlayer.tar import BLOCK_BYTES, padding

MAX_RECORDS_BYTES = 4 << 20  # of one PAX header: many extended attributes of 64 KiB, Linux's bound for each
MAX_RECORDS = 1 << 13  # of one PAX header
MAX_EXTENSIONS = 16  # headers that say something of one entry, global ones included
MAX_LONG_NAME_BYTES = 1 << 16
MAX_SHARED_BYTES = 1 << 16  # of what global headers say
_ZERO = bytes(BLOCK_BYTES)
_KINDS: dict[bytes, Kind] = {
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


class Extension(NamedTuple):
    """A header that says something of the next one: PAX `x` or `g`, GNU `L` or `K`."""

    flag: bytes
    block: bytes
    data: bytes
    records: tuple[tuple[bytes, bytes], ...]


@dataclass(slots=True)
class Member:
    """An entry of a tar and how it was written. `special` names what no layer of ours holds: a device, a FIFO."""

    entry: Entry
    blocks: bytes
    extensions: tuple[Extension, ...]
    written_path: bytes
    special: str = ""
    sparse: bool = False

    def views(self) -> Iterator[memoryview]:
        """The content in pieces as they come, not copied; instead of opening it."""
        content = self.entry.content
        return content.views() if isinstance(content, _MemberContent) else iter(())

    @property
    def block(self) -> bytes:
        """The entry's own header block, behind its extensions."""
        return self.blocks[-BLOCK_BYTES:]


class TarReader:
    """Iterate over the members of a tar; a member's content can be read until the next member is asked for.

    At the end `trailer_bytes` counts the zeros behind the last entry, and `left_over` has the global headers that no
    entry follows (`git archive` of nothing). Raises LayerError.
    """

    def __init__(self, pieces: Iterable[bytes], skip: Callable[[int], None] | None = None) -> None:
        """`skip` passes by bytes that `pieces` would give next, which it must have; without it they are read."""
        self._feed = _Feed(iter(pieces), skip)
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
                        raise LayerError("tar-truncated", "the tar ends behind an extension header", _AGAIN)
                    self._read_trailer(block)
                    return
                _check_sum(block)
                flag = block[156:157]
                if flag not in b"xgXLK":
                    break
                if len(extensions) == MAX_EXTENSIONS:
                    raise LayerError("header-chain", f"over {MAX_EXTENSIONS} extension headers for one entry", _NOBODY)
                if flag != b"g" and any(flag == other.flag for other in extensions):
                    # Readers disagree on which of the two counts: what is checked here might not be what is unpacked.
                    raise LayerError("header-repeated", f"two {printable(flag)} headers for one entry", _NOBODY)
                extension = self._extension(flag, block)
                extensions.append(extension)
                blocks += (block, extension.data, bytes(padding(len(extension.data))))
                (shared if flag == b"g" else own).update(extension.records)
                if flag == b"g" and sum(map(len, shared)) + sum(map(len, shared.values())) > MAX_SHARED_BYTES:
                    raise LayerError("header-too-long", "the global headers grow without end", _NOBODY)
            blocks.append(block)
            records = {**shared, **own} if shared else own
            member = _member(block, records, b"".join(blocks), tuple(extensions), feed)
            if member.sparse and flag == b"S":
                self._skip_sparse_map(block)
            yield member
            content = member.entry.content
            if isinstance(content, _MemberContent):
                content.skip_rest()
                feed.skip(padding(member.entry.size_bytes))

    def _extension(self, flag: bytes, block: bytes) -> Extension:
        size = number(block[124:136], "size")
        if not 0 <= size <= (MAX_LONG_NAME_BYTES if flag in b"LK" else MAX_RECORDS_BYTES):
            raise LayerError("header-too-long", f"an extension header of {size} bytes", _NOBODY)
        data = self._feed.take(size)
        self._feed.skip(padding(size))
        if flag in b"LK":
            name = data.split(b"\0")[0]
            return Extension(flag, block, data, ((b"path" if flag == b"L" else b"linkpath", name),))
        records = tuple(islice(parse_records(data), MAX_RECORDS + 1))
        if len(records) > MAX_RECORDS:
            raise LayerError("header-too-long", f"an extension header of over {MAX_RECORDS} records", _NOBODY)
        return Extension(flag, block, data, records)

    def _skip_sparse_map(self, block: bytes) -> None:
        more = block[482:483] not in b"\0"
        while more:
            extended = self._feed.take(BLOCK_BYTES)
            more = extended[504:505] not in b"\0"

    def _read_trailer(self, block: bytes | None) -> None:
        while block is not None:
            if block.count(0) != len(block):
                raise LayerError("tar-garbage", "something follows the end of the tar", "cut it off, or make it anew")
            self.trailer_bytes += len(block)
            block = self._feed.take_rest()


class _Feed:
    """Bytes in pieces, taken in other pieces."""

    __slots__ = ("_at", "_piece", "_pieces", "_skip")

    def __init__(self, pieces: Iterator[bytes], skip: Callable[[int], None] | None = None) -> None:
        self._pieces = pieces
        self._skip = skip
        self._piece = b""
        self._at = 0

    def take_block(self) -> bytes | None:
        """Take 512 bytes, or None at the end."""
        at = self._at
        if at + BLOCK_BYTES <= len(self._piece):
            self._at = at + BLOCK_BYTES
            return self._piece[at : at + BLOCK_BYTES]
        while self._at == len(self._piece):
            if not self._next():
                return None
        return self.take(BLOCK_BYTES)

    def take(self, size: int) -> bytes:
        parts = []
        while size:
            part = self.some(size)
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def some(self, size: int) -> memoryview:
        """Take between 1 and `size` bytes."""
        while self._at == len(self._piece):
            if not self._next():
                raise LayerError("tar-truncated", "the tar ends in the middle of an entry", _AGAIN)
        part = memoryview(self._piece)[self._at : self._at + size]
        self._at += len(part)
        return part

    def skip(self, size: int) -> None:
        if self._skip is not None and (beyond := size - (len(self._piece) - self._at)) > 0:
            self._skip(beyond)
            self._at = len(self._piece)
            return
        while size:
            size -= len(self.some(size))

    def take_rest(self) -> bytes | None:
        """Take what is left of this piece or the next; None at the end."""
        while self._at == len(self._piece):
            if not self._next():
                return None
        rest = self._piece[self._at :]
        self._at = len(self._piece)
        return rest

    def _next(self) -> bool:
        piece = next(self._pieces, None)
        if piece is None:
            return False
        self._piece, self._at = piece, 0
        return True


class _MemberContent:
    """A member's content: read once, in order."""

    __slots__ = ("_feed", "_left", "_opened")

    def __init__(self, feed: _Feed, size_bytes: int) -> None:
        self._feed = feed
        self._left = size_bytes
        self._opened = False

    def open(self) -> ContentReader:
        if self._opened:
            raise RuntimeError("a member's content can be read only once")
        self._opened = True
        return self

    def read_into(self, buffer: memoryview) -> int:
        done = 0
        while self._left and done < len(buffer):
            part = self._feed.some(min(self._left, len(buffer) - done))
            buffer[done : done + len(part)] = part
            done += len(part)
            self._left -= len(part)
        return done

    def views(self) -> Iterator[memoryview]:
        """The content in pieces as they come, not copied."""
        self._opened = True
        while self._left:
            part = self._feed.some(self._left)
            self._left -= len(part)
            yield part

    def finish(self) -> bool:
        return True

    def close(self) -> None:
        return

    def skip_rest(self) -> None:
        self._feed.skip(self._left)
        self._left = 0


def parse_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Read PAX records, `LENGTH KEY=VALUE\\n`; raises LayerError where one lies about its length."""
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        digits = data[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise _bad_record(data[at : at + 40])
        end = at + int(digits)
        if end > len(data) or end <= space + 1 or data[end - 1] != 0x0A:
            raise _bad_record(data[at : at + 40])
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise _bad_record(data[at : at + 40])
        yield key, value
        at = end


def number(raw: bytes, what: str) -> int:
    """Read an octal or base-256 field; raises LayerError."""
    if raw[0] & 0x80:
        value = int.from_bytes(bytes((raw[0] & 0x7F,)) + raw[1:], "big")
        if raw[0] & 0x40:
            value -= 1 << (8 * len(raw) - 1)
        if abs(value) >= 1 << 63:
            raise LayerError("header-number", f"a header's {what} is beyond 64 bits", _AGAIN)
        return value
    digits = raw.split(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise LayerError("header-number", f"a header's {what} is {printable(digits)!r}, no octal number", _AGAIN)
    return int(digits, 8)


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
    raise LayerError("header-checksum", "a header's checksum does not fit: this is no tar, or a damaged one", _AGAIN)


def _member(
    block: bytes, records: dict[bytes, bytes], blocks: bytes, extensions: tuple[Extension, ...], feed: _Feed
) -> Member:
    flag = block[156:157]
    written = records.get(b"GNU.sparse.name") or records.get(b"path") or _name(block)
    kind = _KINDS.get(flag)
    special = _SPECIAL.get(flag, "")
    if kind is None and not special:
        raise LayerError(
            "header-type", f"{printable(written)}: entries of type {printable(flag)!r} are unknown", _AGAIN
        )
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
        mtime = _seconds(records[b"mtime"]) if records.get(b"mtime") else number(block[136:148], "mtime")
    if size and kind == "dir" and flag in b"0\0007S":
        # Some readers take this for a file with content, some for a directory with none.
        raise LayerError("header-type", f"{printable(written)} is a directory by name and a file by content", _NOBODY)
    if kind in ("dir", "symlink", "hardlink") or special:
        # Some writers give links the size of their target, with no content behind; POSIX lets none of these have any.
        size = 0
    if size < 0:
        raise LayerError("header-number", f"{printable(path)} has a size below zero", _AGAIN)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    if records:
        xattrs = tuple(sorted((key[13:], value) for key, value in records.items() if key.startswith(b"SCHILY.xattr.")))
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
        _MemberContent(feed, size) if size else None,
    )
    sparse = flag == b"S" or any(key.startswith(b"GNU.sparse.") for key in records)
    return Member(entry, blocks, extensions, written, special, sparse)


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
    if not value:
        return number(raw, key.decode())
    if not value.isdigit() or len(value) > 19:
        raise _bad_record(key + b"=" + value)
    return int(value)


def _seconds(value: bytes) -> int:
    """The whole seconds of a PAX time, rounded down."""
    whole, _, fraction = value.partition(b".")
    digits = whole.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 18 or (fraction and not fraction.isdigit()):
        raise _bad_record(b"mtime=" + value)
    return int(whole) - (1 if whole.startswith(b"-") and fraction.strip(b"0") else 0)


def _bad_record(found: bytes) -> LayerError:
    return LayerError("pax-record", f"a PAX record is malformed: {printable(found[:60])!r}", _AGAIN)


_AGAIN = "fetch or make it again"
_NOBODY = "no honest writer makes these"

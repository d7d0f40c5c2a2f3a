"""A scan: the stat records of all that a walk would take, without making entries. It takes a fraction of the time.

If two scans are equal, two walks give the same entries with the same contents (SPEC 10.3). A walk records what it sees
itself, so that what is kept is about that walk and not about a moment before it; or it goes by what the scan saw.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from struct import Struct

from blake3 import blake3

from detlayer.filesystem import real_path
from detlayer.layer.entry import WHITEOUT_PREFIX
from detlayer.layer.order import order_names
from detlayer.tree.patterns import excluded
from detlayer.tree.source import Source

_STATUS = Struct("<xBqqqqqqqq").pack  # names have no NUL
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_ENCODING = sys.getfilesystemencoding()
_ERRORS = sys.getfilesystemencodeerrors()
_MAX_DEPTH = 200  # each level is an open directory; what is deeper is left to the walk
_PARTS = 4096
_LEAVE = b"\0"
_MAX_LISTED = 25_000  # a file takes 700 bytes, a directory 1,000


class Listing:
    """A source, or a directory in it, as the scan saw it: all that a walk takes of it, in order."""

    __slots__ = ("below", "found", "stat")

    def __init__(self, status: os.stat_result) -> None:
        self.stat = status
        self.found: dict[bytes, os.stat_result] = {}
        self.below: dict[bytes, Listing] = {}


class Snapshot:
    """The stat records of all that a walk or scan looked at, source by source, as one digest."""

    def __init__(self) -> None:
        self._streams: dict[int, tuple[blake3, list[bytes]]] = {}
        self._source: Source | None = None
        self._parts: list[bytes] = []
        self.count = 0
        self.size_bytes = 0
        """Of all files."""
        self.newest_ns = 0
        """The latest ctime of anything but a directory: those are listed again each time."""

    def add(self, source: Source, name: bytes, status: os.stat_result) -> None:
        """Add something that a source has, in the walk's order."""
        if source is not self._source:
            self._turn(source)
        mode = status.st_mode
        parts = self._parts
        self.count += 1
        if stat.S_ISDIR(mode):
            parts.append(name + _STATUS(1, mode, status.st_uid, status.st_gid, 0, status.st_mtime_ns, 0, 0, 0))
        else:
            ctime = status.st_ctime_ns
            size = status.st_size
            self.size_bytes += size
            if ctime > self.newest_ns:
                self.newest_ns = ctime
            parts.append(
                name
                + _STATUS(
                    2,
                    mode,
                    status.st_uid,
                    status.st_gid,
                    size,
                    status.st_mtime_ns,
                    ctime,
                    status.st_ino,
                    status.st_dev,
                )
            )
        if len(parts) > _PARTS:
            self._streams[id(source)][0].update(b"/".join(parts))
            parts.clear()

    def end_directory(self, source: Source) -> None:
        """Mark the end of a directory."""
        if source is not self._source:
            self._turn(source)
        self._parts.append(_LEAVE)

    def digest(self, sources: Sequence[Source]) -> bytes:
        """Condense all that was seen of these sources: 32 bytes."""
        found = blake3()
        for source in sources:
            stream, parts = self._streams.get(id(source), (blake3(), []))
            stream.update(b"/".join(parts))
            parts.clear()
            found.update(stream.digest())
        return found.digest()

    def _turn(self, source: Source) -> None:
        self._source = source
        self._parts = self._streams.setdefault(id(source), (blake3(), []))[1]


class Scan:
    """What a scan saw. `listings` has all of it, for walks right after it; None where that would be very much."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.listings: dict[Source, Listing] | None = {}

    def forget_listings(self) -> None:
        """Let go of them, and of what the scan has seen of their roots."""
        for listing in (self.listings or {}).values():
            listing.found.clear()
            listing.below.clear()
        self.listings = None


def scan(sources: Sequence[Source]) -> Scan | None:
    """See what a walk of these sources would see; None where it has to be the walk that looks, or complains."""
    result = Scan()
    try:
        for source in sources:
            status = os.stat(source.path)
            is_dir = stat.S_ISDIR(status.st_mode)
            if not is_dir:
                real = os.fsencode(real_path(os.fsdecode(source.path)))
                status = os.lstat(real)
                result.snapshot.add(source, os.path.basename(real), status)
            elif source.dest:
                result.snapshot.add(source, b"", status)
            listing = Listing(status)
            if result.listings is not None:
                result.listings[source] = listing
            if is_dir:
                fd = os.open(source.path, _OPEN & ~os.O_NOFOLLOW)
                if not _scan(source, fd, "", [], result, listing):
                    return None
    except (OSError, UnicodeError):
        return None
    return result


def _scan(
    source: Source,
    fd: int,
    relative: str,
    above: list[tuple[int, int]],
    result: Scan,
    listing: Listing,
) -> bool:
    """Scan a directory whose descriptor it closes; tells whether it could. Raises OSError."""
    try:
        own = os.fstat(fd)
        identity = (own.st_dev, own.st_ino)
        # Should it be another one than was looked at a moment ago, its listing would be of both.
        if identity != (listing.stat.st_dev, listing.stat.st_ino) or identity in above or len(above) > _MAX_DEPTH:
            return False
        above.append(identity)
        patterns = source.patterns
        with os.scandir(fd) as found:
            names = order_names(item.name.encode(_ENCODING, _ERRORS) for item in found)
        snapshot = result.snapshot
        if result.listings is not None and snapshot.count + len(names) > _MAX_LISTED:
            result.forget_listings()
        lstat, add, seen = os.lstat, snapshot.add, listing.found
        for name in names:
            status = lstat(name, dir_fd=fd)
            mode = status.st_mode
            is_dir = stat.S_ISDIR(mode)
            text = relative + name.decode("utf-8", "surrogateescape") if patterns or is_dir else ""
            if patterns and excluded(patterns, text, is_dir):
                continue
            if name.startswith(WHITEOUT_PREFIX) or not (is_dir or stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
                return False
            add(source, name, status)
            if result.listings is not None:
                seen[name] = status
            if is_dir:
                below = Listing(status)
                if result.listings is not None:
                    listing.below[name] = below
                if not _scan(source, os.open(name, _OPEN, dir_fd=fd), text + "/", above, result, below):
                    return False
        snapshot.end_directory(source)
        above.pop()
        return True
    finally:
        os.close(fd)

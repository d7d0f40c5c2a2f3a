"""A scan: the stat records of everything that a walk includes, without making entries. Much faster than a walk.

If two scans are equal, two walks give the same entries with the same contents (SPEC 10.3). A walk makes its own record,
so that the cache describes that walk and not an earlier moment, or it uses the results of the scan.
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
_MAX_DEPTH = 200  # each level is an open directory; deeper trees are left to the walk
_PARTS = 4096
_LEAVE = b"\0"
_MAX_LISTED = 25_000  # 700 bytes per file, 1,000 per directory


class Listing:
    """A source, or a directory in it, as scanned: everything that a walk includes, in order."""

    __slots__ = ("below", "found", "stat")

    def __init__(self, status: os.stat_result) -> None:
        self.stat = status
        self.found: dict[bytes, os.stat_result] = {}
        self.below: dict[bytes, Listing] = {}


class Snapshot:
    """A digest of the stat records of everything that a walk or scan looked at, source by source."""

    def __init__(self) -> None:
        self._streams: dict[int, tuple[blake3, list[bytes]]] = {}
        self._source: Source | None = None
        self._parts: list[bytes] = []
        self.count = 0
        self.size_bytes = 0
        """Of all files."""
        self.newest_ns = 0
        """The latest ctime of anything but a directory: directories are always listed again."""

    def add(self, source: Source, name: bytes, status: os.stat_result) -> None:
        """Add an entry of a source, in the walk's order."""
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
        """Return a digest of everything recorded of these sources: 32 bytes."""
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
    """The result of a scan. `listings` has all of it for walks right after it; None if that is too much."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.listings: dict[Source, Listing] | None = {}

    def forget_listings(self) -> None:
        """Drop the listings and the stats of their roots."""
        for listing in (self.listings or {}).values():
            listing.found.clear()
            listing.below.clear()
        self.listings = None


def scan(sources: Sequence[Source]) -> Scan | None:
    """Scan the paths that a walk of these sources looks at; None if only a walk can tell, or report an error."""
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
    """Scan a directory and close its descriptor; tells whether that was possible. Raises OSError."""
    try:
        own = os.fstat(fd)
        identity = (own.st_dev, own.st_ino)
        # If it was replaced a moment ago, its listing would mix both.
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

"""Directories and files on disk, held by descriptor, and their errors. Does not know destinations or order.

Everything is opened relative to an open directory and never through a symlink, so a tree that changes during the walk
can't redirect it; a change is an error that names the path.
"""

from __future__ import annotations

import errno
import os
import stat

from detlayer.errors import ConfigError, printable
from detlayer.layer import bytecode
from detlayer.layer.entry import ContentReader, Profile
from detlayer.tree.patterns import excluded
from detlayer.tree.scan import Listing
from detlayer.tree.source import Source
from detlayer.tree.stable_read import CHANGED_AGAIN, changed, difference, fail, settle, steady

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# Non-blocking: a listed file may have been replaced by a FIFO.
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


class Dir:
    """A directory of one source. `fd` is None while it is closed; it is reopened by device and inode.

    With a `listing`, the result of a scan a moment ago, it is not read again.
    """

    __slots__ = ("fd", "identity", "listing", "name", "parent", "relative", "source")

    def __init__(
        self,
        source: Source,
        above: Dir | None,
        name: bytes,
        identity: tuple[int, int] | None = None,
        listing: Listing | None = None,
    ) -> None:
        self.source = source
        self.listing = listing
        self.parent = above
        self.name = name
        self.fd: int | None = None
        self.identity = identity
        self.relative: str = above.relative + name.decode("utf-8", "surrogateescape") + "/" if above is not None else ""
        """Path below the source's root with a trailing `/`, empty for the root itself."""

    def lineage(self) -> list[Dir]:
        """This directory and its parents, the source's root first."""
        found: list[Dir] = []
        at: Dir | None = self
        while at is not None:
            found.append(at)
            at = at.parent
        return found[::-1]

    @property
    def path(self) -> bytes:
        """Return its path on disk for messages."""
        return os.path.join(self.source.path, *(directory.name for directory in self.lineage()[1:]))

    def open(self) -> None:
        """Open it relative to its parent; raises TreeError."""
        above = self.parent
        try:
            if above is None:
                fd = os.open(self.source.path, _OPEN_DIR & ~os.O_NOFOLLOW)
            elif above.fd is not None:
                fd = os.open(self.name, _OPEN_DIR, dir_fd=above.fd)
            else:
                fd = self._open_from_root()
            try:
                status = os.fstat(fd)
            except BaseException:
                os.close(fd)
                raise
        except OSError as error:
            fail(error, self.path)
        identity = (status.st_dev, status.st_ino)
        if self.identity not in (None, identity):
            os.close(fd)
            raise changed(self.path, "was replaced by another directory")
        self.fd, self.identity = fd, identity

    def _open_from_root(self) -> int:
        root, *below = self.lineage()
        fd = os.open(root.source.path, _OPEN_DIR & ~os.O_NOFOLLOW)
        for directory in below:
            try:
                deeper = os.open(directory.name, _OPEN_DIR, dir_fd=fd)
            finally:
                os.close(fd)
            fd = deeper
        return fd

    def reopen_parent(self) -> bool:
        """Open the parent directory from here, if it is still the same one."""
        above = self.parent
        if above is None or above.fd is not None or self.fd is None:
            return False
        try:
            fd = os.open(b"..", _OPEN_DIR, dir_fd=self.fd)
        except OSError:  # it is reopened from the root instead
            return False
        try:
            status = os.fstat(fd)
        except OSError as error:
            os.close(fd)
            fail(error, above.path)
        if above.identity != (status.st_dev, status.st_ino):
            os.close(fd)
            return False
        above.fd = fd
        return True

    def close(self) -> None:
        if self.fd is not None:
            # Cleared first: after an interrupt, a second close could hit a reused descriptor.
            fd, self.fd = self.fd, None
            os.close(fd)


class Found:
    """An entry of a directory (or, without a name, the directory itself), as returned by lstat."""

    __slots__ = ("dir", "name", "stat")

    def __init__(self, directory: Dir, name: bytes, status: os.stat_result) -> None:
        self.dir = directory
        self.name = name
        self.stat = status

    @property
    def identity(self) -> tuple[int, int]:
        return self.stat.st_dev, self.stat.st_ino

    @property
    def path(self) -> bytes:
        """Return its path on disk for messages."""
        return os.path.join(self.dir.path, self.name) if self.name else self.dir.path

    def __str__(self) -> str:
        return printable(self.path)


class FileContent:
    """Content and reader in one: a file of the tree that must match its lstat, and is read in one state."""

    __slots__ = ("_fd", "_status", "found", "is_steady")

    def __init__(self, found: Found) -> None:
        self.found = found
        """The file's stat from lstat."""
        self._fd = -1
        self._status = found.stat
        """What the stat after a read must match."""
        self.is_steady = True
        """False once its ctime changed during a read."""

    @property
    def variant(self) -> bytes:
        """What else, besides the file, decides the bytes read."""
        return b""

    def open(self) -> ContentReader:
        found = self.found
        settle(found.stat)
        try:
            if found.dir.fd is not None:
                self._fd = os.open(found.name, _OPEN_FILE, dir_fd=found.dir.fd)
            else:  # a single file as a source; its directory is not walked
                self._fd = os.open(found.path, _OPEN_FILE)
        except OSError as error:
            fail(error, found.path)
        return self

    def read_into(self, buffer: memoryview) -> int:
        try:
            done = os.readv(self._fd, (buffer,))
            while done < len(buffer):  # short reads: a signal, or the kernel's limit of 2 GiB per call
                count = os.readv(self._fd, (buffer[done:],))
                if not count:
                    break
                done += count
        except OSError as error:
            fail(error, self.found.path)
        return done

    def finish(self) -> bool:
        was = self._status
        try:
            now = os.fstat(self._fd)
        except OSError as error:
            fail(error, self.found.path)
        if (
            now.st_ctime_ns == was.st_ctime_ns
            and now.st_mtime_ns == was.st_mtime_ns
            and now.st_size == was.st_size
            and now.st_ino == was.st_ino
        ):
            return True
        how = difference(was, now)
        if how or not self.is_steady:
            raise changed(self.found.path, how or CHANGED_AGAIN)
        self.is_steady = False
        self._status = now
        settle(now)
        os.lseek(self._fd, 0, os.SEEK_SET)
        return False

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class BytecodeContent(FileContent):
    """A .pyc whose recorded mtime becomes its source's normalized one, if the source is in the tree (SPEC 4.8)."""

    __slots__ = ("_is_sought", "_profile", "_source", "_started")

    def __init__(self, found: Found, profile: Profile) -> None:
        super().__init__(found)
        self._profile = profile
        self._started = False
        self._source: os.stat_result | None = None
        self._is_sought = False

    @property
    def variant(self) -> bytes:
        source = self._sought()
        if source is None:
            return b"-"
        mtime = self._profile.mtime
        return b"%d %d %b %d" % (seconds(source), source.st_size, mtime.policy.encode(), mtime.seconds)

    def open(self) -> ContentReader:
        self._started = False
        return FileContent.open(self)

    def finish(self) -> bool:
        self._started = False  # a second read has to be patched again
        return FileContent.finish(self)

    def read_into(self, buffer: memoryview) -> int:
        count = FileContent.read_into(self, buffer)
        if not self._started and count >= bytecode.HEADER_BYTES:
            self._started = True
            recorded = bytecode.recorded(buffer)
            source = self._sought() if recorded is not None else None
            if recorded is not None and source is not None:
                mtime = seconds(source)
                if bytecode.matches(recorded, mtime, source.st_size):
                    buffer[8:12] = bytecode.mtime_field(self._profile.time_of(mtime, self.found.name))
        return count

    def _sought(self) -> os.stat_result | None:
        """Stat the source file once, so that its content and its record match."""
        if not self._is_sought:
            self._source = self._seek()
            self._is_sought = True
        return self._source

    def _seek(self) -> os.stat_result | None:
        """Find the source file in this tree: a regular file that is packed, too."""
        directory = self.found.dir
        in_pycache = directory.name == b"__pycache__"
        name = bytecode.source_name(self.found.name, in_pycache)
        home = directory.parent if in_pycache else directory
        if name is None or home is None:
            return None
        if home.listing is not None:  # which contains only packed entries
            status = home.listing.found.get(name)
            return status if status is not None and stat.S_ISREG(status.st_mode) else None
        try:
            status = os.lstat(b"../" + name if in_pycache else name, dir_fd=directory.fd)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            fail(error, os.path.join(home.path, name))
        if not stat.S_ISREG(status.st_mode):
            return None
        patterns = directory.source.patterns
        if patterns and excluded(patterns, home.relative + name.decode("utf-8", "surrogateescape"), False):
            return None
        return status


def read_xattrs(found: Found, profile: Profile) -> tuple[tuple[bytes, bytes], ...]:
    """Read the extended attributes that the profile keeps, sorted; raises TreeError and ConfigError."""
    if not hasattr(os, "listxattr"):
        raise ConfigError("xattrs-unsupported", "extended attributes are supported only on Linux", "omit --xattrs")
    # There is no listxattrat; the descriptor's name in /proc keeps the path relative to the open directory.
    where = found.dir.path if found.dir.fd is None else b"/proc/self/fd/%d" % found.dir.fd
    path = os.path.join(where, found.name) if found.name else where
    follow = not found.name

    def read() -> tuple[tuple[bytes, bytes], ...]:
        return tuple(
            (os.fsencode(name), os.getxattr(path, name, follow_symlinks=follow))
            for name in sorted(os.listxattr(path, follow_symlinks=follow))
            if profile.wants_xattr(name)
        )

    try:
        return steady(found.path, found.stat, lambda: os.stat(path, follow_symlinks=follow), read)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return ()
        if error.errno == errno.ENODATA:  # removed since they were listed
            raise changed(found.path, "lost an extended attribute while it was read") from error
        fail(error, found.path)


def seconds(status: os.stat_result) -> int:
    """Return the mtime in whole seconds, rounded down; the float `st_mtime` may round up."""
    return status.st_mtime_ns // 1_000_000_000

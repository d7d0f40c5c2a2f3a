"""Copies of sources that keep the inputs of a pack and vary everything else.

The profile decides what is input: times, modes and owners from the source are kept in the copy, others are varied.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from blake3 import blake3

from detlayer.errors import OutputError, printable
from detlayer.layer import bytecode
from detlayer.layer.entry import Profile
from detlayer.tree import Selection, Source, copy_file
from detlayer.tree.patterns import excluded
from detlayer.verification.variation import Variation


class CannotCopyError(Exception):
    """This tree can't be copied faithfully here; the argument is the reason."""


@dataclass(slots=True)
class TreeCopies:
    """Copies the sources of one run; hard links may cross sources, as in a walk."""

    variation: Variation
    profile: Profile
    selection: Selection
    is_root: bool
    _links: dict[tuple[int, int], bytes] = field(default_factory=dict)
    _alike: dict[tuple[int, bool, bytes], bytes] = field(default_factory=dict)

    @property
    def shifts_times(self) -> bool:
        return self.profile.mtime.policy == "fixed"

    @property
    def varies_modes(self) -> bool:
        return self.profile.mode == "canonical"

    @property
    def varies_owners(self) -> bool:
        return self.is_root and self.profile.owner is not None

    @property
    def varies_links(self) -> bool:
        # Linked files share their values, so those must not be input either.
        return (
            self.selection.hardlinks == "separate"
            and self.shifts_times
            and self.varies_modes
            and self.profile.owner is not None
            and not self.profile.xattrs
        )

    def make(self, source: Source, at: bytes) -> Source:
        """Copy `source` to the new path `at`; raises CannotCopyError, or OutputError if the disk is full."""
        try:
            os.makedirs(os.path.dirname(at), exist_ok=True)
            status = os.stat(source.path)
            if stat.S_ISDIR(status.st_mode):
                self._copy_tree(source, at, status)
            else:
                self._copy_file(source.path, at, status, b"", None)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OutputError(
                    "disk-full", "no space left for a copy of the tree", "set TMPDIR to a directory with more"
                ) from error
            name = error.filename
            raise CannotCopyError(f"{printable(os.fsencode(name)) if name else source}: {error.strerror}") from error
        return Source(at, source.dest, source.patterns)

    def _copy_tree(self, source: Source, at: bytes, status: os.stat_result) -> None:
        made: list[tuple[bytes, bytes, os.stat_result, bytes]] = []
        os.mkdir(at, 0o700)
        stack = [(os.path.realpath(source.path), at, status, b"")]
        while stack:
            here, there, found, relative = stack.pop()
            made.append((here, there, found, relative))
            names = os.listdir(here)
            self.variation.random().shuffle(names)
            for name in names:
                old, new, path = os.path.join(here, name), os.path.join(there, name), relative + name
                status = os.lstat(old)
                if self._leaves_out(source, path, status):
                    continue
                if stat.S_ISDIR(status.st_mode):
                    os.mkdir(new, 0o700)
                    stack.append((old, new, status, path + b"/"))
                elif stat.S_ISLNK(status.st_mode):
                    os.symlink(os.readlink(old), new)
                    self._set_values(old, new, status, path, follow=False)
                elif stat.S_ISREG(status.st_mode):
                    self._copy_file(old, new, status, path, source)
        # From the inside out: creating an entry changes the time of its directory.
        for here, there, found, relative in reversed(made):
            self._set_values(here, there, found, relative)

    def _leaves_out(self, source: Source, path: bytes, status: os.stat_result) -> bool:
        if not source.patterns:
            return False
        return excluded(source.patterns, path.decode("utf-8", "surrogateescape"), stat.S_ISDIR(status.st_mode))

    def _copy_file(self, old: bytes, new: bytes, status: os.stat_result, path: bytes, source: Source | None) -> None:
        if self.selection.hardlinks == "preserve" and status.st_nlink > 1:
            first = self._links.setdefault((status.st_dev, status.st_ino), new)
            if first != new:
                os.link(first, new)
                return
        copy_file(old, new)
        # Bytecode depends on its source's time, so it stays a separate file.
        if self.varies_links and self.variation.links and not path.endswith((b".py", b".pyc")):
            alike = (status.st_size, bool(status.st_mode & 0o100), _content_of(new))
            first = self._alike.setdefault(alike, new)
            if first != new and _link_over(first, new):
                return
        if source is not None and path.endswith(b".pyc") and self.selection.retime_pyc and self.shifts_times:
            self._retime(old, new, path, source)
        self._set_values(old, new, status, path)

    def _retime(self, old: bytes, new: bytes, path: bytes, source: Source) -> None:
        """Make a .pyc that matches its source match the copied source, whose time differs (SPEC 4.8)."""
        above, _, name = path.rpartition(b"/")
        home, _, last = above.rpartition(b"/")
        in_pycache = last == b"__pycache__"
        source_name = bytecode.source_name(name, in_pycache)
        if source_name is None:
            return
        place = home if in_pycache else above
        relative = (place + b"/" if place else b"") + source_name
        try:
            status = os.lstat(os.path.join(os.path.realpath(source.path), relative))
        except (FileNotFoundError, NotADirectoryError):
            return
        with open(new, "r+b") as file:
            recorded = bytecode.recorded(file.read(bytecode.HEADER_BYTES))
            mtime = status.st_mtime_ns // 1_000_000_000
            if (
                recorded is not None
                and stat.S_ISREG(status.st_mode)
                and not self._leaves_out(source, relative, status)
                and bytecode.matches(recorded, mtime, status.st_size)
            ):
                file.seek(8)
                file.write(bytecode.mtime_field(mtime + self.variation.shift_s(relative)))

    def _set_values(self, old: bytes, new: bytes, status: os.stat_result, path: bytes, *, follow: bool = True) -> None:
        """Give a copy the values that are input, and vary the others."""
        if self.varies_owners:
            os.chown(new, *self.variation.owner, follow_symlinks=False)
        elif self.profile.owner is None and (status.st_uid, status.st_gid) != _owner_of(new):
            if not self.is_root:
                raise CannotCopyError("owners are input, and only root can copy them")
            os.chown(new, status.st_uid, status.st_gid, follow_symlinks=False)
        if follow:
            mode = stat.S_IMODE(status.st_mode)
            if self.varies_modes and stat.S_ISDIR(status.st_mode):
                mode = 0o777 & ~self.variation.umask
            elif self.varies_modes:
                mode = self.variation.file_mode(mode)
            os.chmod(new, mode)
        if self.profile.xattrs:
            for name in os.listxattr(old, follow_symlinks=False):
                if self.profile.wants_xattr(name):
                    value = os.getxattr(old, name, follow_symlinks=False)
                    os.setxattr(new, name, value, follow_symlinks=False)
        mtime = status.st_mtime_ns // 1_000_000_000 + (self.variation.shift_s(path) if self.shifts_times else 0)
        time_ns = mtime * 1_000_000_000 + self.variation.nanoseconds(path)
        os.utime(new, ns=(time_ns, time_ns), follow_symlinks=False)


def _owner_of(path: bytes) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_uid, status.st_gid


def _content_of(path: bytes) -> bytes:
    digest = blake3()
    with open(path, "rb") as file:
        for piece in _pieces(file.fileno()):
            digest.update(piece)
    return digest.digest()


def _pieces(fd: int) -> Iterator[bytes]:
    while piece := os.read(fd, 1 << 20):
        yield piece


def _link_over(first: bytes, new: bytes) -> bool:
    """Make `new` a link to `first`; False if the file system allows no more links."""
    spare = new + b".link"
    try:
        os.link(first, spare)
    except OSError:
        return False
    os.replace(spare, new)
    return True

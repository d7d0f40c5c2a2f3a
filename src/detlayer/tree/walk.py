"""The walk: one ordered pass over all sources merged. Memory is bounded by the names of the parent directories."""

from __future__ import annotations

import os
import stat
import sys
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Literal

from detlayer.errors import TreeError, printable
from detlayer.filesystem import real_path
from detlayer.layer.entry import (
    WHITEOUT_PREFIX,
    Entry,
    Profile,
    collision_code,
    fold_name,
    marker,
    normalize,
    parent,
)
from detlayer.layer.order import order_names
from detlayer.layer.ports import Reporter
from detlayer.tree.destinations import Node, collide, find_destinations
from detlayer.tree.disk import BytecodeContent, Dir, FileContent, Found, read_xattrs, seconds
from detlayer.tree.patterns import excluded
from detlayer.tree.scan import Listing, Scan, Snapshot
from detlayer.tree.source import Selection, Source
from detlayer.tree.stable_read import changed, fail, steady

# Directories kept open at a time; deeper walks close the outermost ones and reopen them on the way back.
_MAX_OPEN_DIRS = 64
_SHOWN = 20
_FEW_NAMES = 10_000
_ENCODING = sys.getfilesystemencoding()
_ERRORS = sys.getfilesystemencodeerrors()


class Frame:
    """A directory of the layer while its children are walked: the directories it merges, and virtual children."""

    __slots__ = ("dirs", "listed", "names", "node", "prefix")

    def __init__(self, prefix: bytes, dirs: list[Dir], node: Node | None) -> None:
        self.prefix = prefix
        self.dirs = dirs
        self.node = node
        self.names: Iterator[bytes] = iter(())
        self.listed: list[frozenset[bytes]] = []
        """The names in each directory, if there are several."""


class Walk:
    """One pass over sources: iterate over it for their normalized entries, in order.

    A content can be opened only until the next entry. With a scan that has listings, the walk uses its results, and
    only contents are looked at again. Raises TreeError, and ConfigError for invalid destinations.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        profile: Profile,
        selection: Selection,
        reporter: Reporter,
        scanned: Scan | None = None,
        keep_snapshot: bool = False,
        keep_paths: bool = False,
    ) -> None:
        is_scanned = scanned is not None and scanned.listings is not None
        self.snapshot = scanned.snapshot if scanned is not None and is_scanned else Snapshot()
        """The record of the walk so far, if kept; that of the scan, if the walk uses one."""
        self.warnings: list[tuple[str, str]] = []
        """Code and message of each warning so far."""
        self.paths: list[bytes] = []
        """The files and directories looked at so far, if kept."""
        self.profile = profile
        self.selection = selection
        self._reporter = reporter
        self._keeps_paths = keep_paths
        self._recording = self.snapshot if keep_snapshot and not is_scanned else None
        self._listings: Mapping[Source, Listing] = (scanned.listings if scanned is not None else None) or {}
        self._open: deque[Dir] = deque()
        self._max_open = _MAX_OPEN_DIRS
        self._special: list[str] = []
        self._links: dict[tuple[int, int], Entry] = {}

        self._entries = self._walk(find_destinations(sources, selection))

    def __iter__(self) -> Iterator[Entry]:
        return self._entries

    def _walk(self, top: Node) -> Iterator[Entry]:
        stack: list[Frame] = []
        try:
            stack.append(self._enter(b"", [self._root(source) for source in top.roots], top))
            while stack:
                frame = stack[-1]
                for name in frame.names:
                    path = frame.prefix + name
                    if frame.node is None and len(frame.dirs) == 1:
                        found = self._look(frame.dirs[0], name)
                        if found is None:
                            continue
                        below, entry = self._one(path, found)
                    else:
                        below, entry = self._several(path, frame, name)
                    # After the first special file the walk continues only to list them all.
                    if entry is not None and not self._special:
                        yield entry
                    if below is not None:
                        stack.append(below)
                        break
                else:
                    stack.pop()
                    self._leave(frame, stack[-1] if stack else None)
            self._report_special()
        finally:
            for directory in self._open:
                directory.close()
            self._open.clear()

    # -- directories

    def _enter(self, path: bytes, dirs: list[Dir], node: Node | None) -> Frame:
        prefix = path + b"/" if path else b""
        if node is not None and not node.children:
            node = None  # no destinations below: only the names in the directories remain
        frame = Frame(prefix, dirs, node)
        # Reserve room for all directories merged here and in the parent.
        self._max_open = max(self._max_open, 2 * len(dirs) + 2)
        for directory in dirs:
            self._open_dir(directory)
            if self._keeps_paths:
                self.paths.append(directory.path + b"/")
        lists = [self._list(directory) for directory in dirs]
        is_merged = node is not None or len(dirs) != 1
        names = set().union(*lists, node.children if node is not None else ()) if is_merged else lists[0]
        if is_merged:
            frame.listed = [frozenset(found) for found in lists]
        del lists
        ordered = order_names(names)
        if len(ordered) > 1:
            self._warn_alike(frame, ordered)
        frame.names = iter(ordered)
        return frame

    def _leave(self, frame: Frame, above: Frame | None) -> None:
        for directory in frame.dirs:
            if self._recording is not None:
                self._recording.end_directory(directory.source)
            if directory.reopen_parent() and directory.parent is not None:
                self._open.append(directory.parent)
            if directory.fd is not None:
                directory.close()
                self._open.remove(directory)
        if above is not None:
            for directory in above.dirs:
                if directory.fd is None:
                    self._open_dir(directory)

    def _open_dir(self, directory: Dir) -> None:
        directory.open()
        above = directory.parent
        while above is not None:
            if above.identity == directory.identity:
                directory.close()
                raise TreeError(
                    "directory-loop",
                    f"{printable(directory.path)} is the same directory as its parent {printable(above.path)}",
                    "a bind mount creates a loop; exclude it or unmount it",
                )
            above = above.parent
        self._open.append(directory)
        if len(self._open) > self._max_open:
            self._open.popleft().close()

    def _root(self, source: Source) -> Dir:
        listing = self._listings.get(source)
        if listing is None:
            return Dir(source, None, b"")
        if not stat.S_ISDIR(listing.stat.st_mode):  # its inode may be the same
            raise changed(source.path, "became a directory during the walk")
        return Dir(source, None, b"", (listing.stat.st_dev, listing.stat.st_ino), listing)

    def _list(self, directory: Dir) -> list[bytes]:
        if directory.listing is not None:
            return list(directory.listing.found)
        assert directory.fd is not None
        try:
            # Given a descriptor, scandir yields str; convert back to the bytes on disk under any locale.
            with os.scandir(directory.fd) as found:
                return [item.name.encode(_ENCODING, _ERRORS) for item in found]
        except OSError as error:
            fail(error, directory.path)

    # -- one name

    def _look(self, directory: Dir, name: bytes) -> Found | None:
        """Stat an entry, once; None if it is excluded or missing."""
        found = self._peek(directory, name)
        if found is not None and self._recording is not None:
            self._recording.add(directory.source, name, found.stat)
        return found

    def _peek(self, directory: Dir, name: bytes) -> Found | None:
        """Stat an entry; None if it is excluded or missing."""
        if directory.listing is not None:
            return Found(directory, name, directory.listing.found[name])
        try:
            status = os.lstat(name, dir_fd=directory.fd)
        except OSError as error:
            fail(error, os.path.join(directory.path, name))
        if directory.source.patterns:
            relative = directory.relative + name.decode("utf-8", "surrogateescape")
            if excluded(directory.source.patterns, relative, stat.S_ISDIR(status.st_mode)):
                return None
        return Found(directory, name, status)

    def _one(self, path: bytes, found: Found) -> tuple[Frame | None, Entry | None]:
        """Convert a path of one source to its entry, and a frame to walk if it is a directory."""
        status = found.stat
        mode = status.st_mode
        name = found.name
        if name.startswith(WHITEOUT_PREFIX):
            raise TreeError(
                "whiteout-name",
                f"{found}: container engines interpret a name that starts with '.wh.' as a whiteout",
                "rename or exclude it; to delete a file of the base, use --whiteout PATH",
            )
        if stat.S_ISREG(mode):
            if self._keeps_paths:
                self.paths.append(os.path.join(found.dir.path, name))
            return None, self._file(path, found)
        if stat.S_ISDIR(mode):
            entry = self._plain(path, "dir", found)
            return self._enter(path, [_below(found)], None), entry
        if stat.S_ISLNK(mode):
            return None, self._plain(path, "symlink", found, self._target(found))
        if self.selection.special == "skip":
            self._warn("special-skipped", f"skipped {found}, a {_kind(mode)}")
        else:
            self._special.append(f"{found} ({_kind(mode)})")
        return None, None

    def _target(self, found: Found) -> bytes:
        """Read the target of a symlink, which must still match its lstat."""
        name, fd = found.name, found.dir.fd
        try:
            return steady(
                found.path, found.stat, lambda: os.lstat(name, dir_fd=fd), lambda: os.readlink(name, dir_fd=fd)
            )
        except OSError as error:
            fail(error, found.path)

    def _several(self, path: bytes, frame: Frame, name: bytes) -> tuple[Frame | None, Entry | None]:
        """Merge the entries of all sources with one name: directories merge, anything else collides."""
        node = frame.node.children.get(name) if frame.node is not None else None
        found = []
        for directory, listed in zip(frame.dirs, frame.listed, strict=True):
            seen = self._look(directory, name) if name in listed else None
            if seen is not None:
                found.append(seen)
        if node is None:
            if not found:
                return None, None
            if len(found) == 1:
                return self._one(path, found[0])
        elif not node.is_dir:
            if found:
                collide(path, str(found[0]), str(node))
            return None, self._named(path, node)
        for seen in found:
            if not stat.S_ISDIR(seen.stat.st_mode):
                other = next((str(item) for item in found if item is not seen), str(node))
                collide(path, str(seen), other)
        dirs = [_below(seen) for seen in found]
        roots = [self._root(source) for source in node.roots] if node is not None else []
        for root in roots:
            try:
                status = root.listing.stat if root.listing is not None else os.stat(root.source.path)
            except OSError as error:
                fail(error, root.path)
            found.append(Found(root, b"", status))
            if self._recording is not None:
                self._recording.add(root.source, b"", found[-1].stat)
        return self._enter(path, dirs + roots, node), self._merged(path, found)

    def _named(self, path: bytes, node: Node) -> Entry:
        """Make the entry of a single file as a source, or of a marker."""
        if node.file is None:
            return marker(path, self.profile)
        if self._keeps_paths:
            self.paths.append(node.file.path)
        listing = self._listings.get(node.file)
        try:
            above, name = os.path.split(os.fsencode(real_path(os.fsdecode(node.file.path))))
            status = listing.stat if listing is not None else os.lstat(os.path.join(above, name))
        except OSError as error:
            fail(error, node.file.path)
        if not stat.S_ISREG(status.st_mode):
            raise changed(node.file.path, "was replaced during the walk")
        if self._recording is not None:
            self._recording.add(node.file, name, status)
        return self._file(path, Found(Dir(Source(above), None, b""), name, status))

    def _merged(self, path: bytes, found: list[Found]) -> Entry:
        """Make the entry of a directory that several sources share, or that a destination implies."""
        if not found:
            return parent(path, self.profile)
        first, *others = [self._plain(path, "dir", seen) for seen in found]
        for seen, other in zip(found[1:], others, strict=True):
            for name in ("mode", "uid", "gid", "xattrs"):
                if getattr(first, name) != getattr(other, name):
                    collide(path, str(found[0]), str(seen), f", with another {name}")
        # A directory's mtime is that of its last change, and merging changes it.
        mtime = max(entry.mtime for entry in (first, *others))
        return Entry(path, "dir", first.mode, first.uid, first.gid, mtime, 0, b"", first.xattrs)

    # -- entries

    def _plain(self, path: bytes, kind: Literal["dir", "symlink"], found: Found, target: bytes = b"") -> Entry:
        status = found.stat
        xattrs = read_xattrs(found, self.profile) if self.profile.xattrs else ()
        return normalize(
            Entry(
                path,
                kind,
                status.st_mode & 0o7777,
                status.st_uid,
                status.st_gid,
                seconds(status),
                0,
                target,
                xattrs,
            ),
            self.profile,
        )

    def _file(self, path: bytes, found: Found) -> Entry:
        status = found.stat
        identity = None
        if status.st_nlink > 1 and self.selection.hardlinks == "preserve":
            identity = (status.st_dev, status.st_ino)
            first = self._links.get(identity)
            if first is not None:
                return Entry(
                    path, "hardlink", first.mode, first.uid, first.gid, first.mtime, 0, first.path, first.xattrs
                )
        content: FileContent | None = None
        if status.st_size:
            # A single file as a source comes without a tree that could contain its source.
            retime = found.name.endswith(b".pyc") and found.dir.fd is not None and self.selection.retime_pyc
            content = BytecodeContent(found, self.profile) if retime else FileContent(found)
        entry = normalize(
            Entry(
                path,
                "file",
                status.st_mode & 0o7777,
                status.st_uid,
                status.st_gid,
                seconds(status),
                status.st_size,
                b"",
                read_xattrs(found, self.profile) if self.profile.xattrs else (),
                content,
            ),
            self.profile,
        )
        if identity is not None:
            self._links[identity] = entry
        return entry

    # -- reports

    def _warn(self, code: str, message: str) -> None:
        self.warnings.append((code, message))
        self._reporter.warning(code, message)

    def _warn_alike(self, frame: Frame, names: list[bytes]) -> None:
        """Warn of packed siblings that are the same file if case or Unicode form is ignored."""
        if len(names) <= _FEW_NAMES:  # one check of all names together, for nearly every directory
            together = b"/".join(names)
            if together.isascii() and len(set(together.lower().split(b"/"))) == len(names):
                return
        # By hash first, eight bytes per name: a directory may have a million.
        hashes = sorted(array("q", (hash(fold_name(name)) for name in names)))
        twice = {one for one, other in pairwise(hashes) if one == other}
        if not twice:
            return
        alike: dict[bytes, bytes] = {}
        for name in names:
            fold = fold_name(name)
            if hash(fold) not in twice or not self._packs(frame, name):
                continue
            twin = alike.setdefault(fold, name)
            if twin is not name:
                code = collision_code(name, twin)
                how = "Unicode form" if code == "unicode-collision" else "case"
                self._warn(
                    code,
                    f"{printable(frame.prefix + twin)} and {printable(frame.prefix + name)} differ only in {how} "
                    f"({twin.decode('utf-8', 'backslashreplace')!a}, "
                    f"{name.decode('utf-8', 'backslashreplace')!a}): they are the same file on macOS and Windows",
                )

    def _packs(self, frame: Frame, name: bytes) -> bool:
        if frame.node is not None and name in frame.node.children:
            return True
        return any(
            self._peek(directory, name) is not None
            for at, directory in enumerate(frame.dirs)
            if not frame.listed or name in frame.listed[at]
        )

    def _report_special(self) -> None:
        if self._special:
            more = len(self._special) - _SHOWN
            shown = "\n  ".join(self._special[:_SHOWN]) + (f"\n  and {more} more" if more > 0 else "")
            raise TreeError(
                "special-files",
                f"sockets, FIFOs and devices can't be in a reproducible layer:\n  {shown}",
                "exclude them, or omit them with --special skip",
            )


def _below(found: Found) -> Dir:
    """Make the directory that was found."""
    directory = found.dir
    listing = directory.listing.below[found.name] if directory.listing is not None else None
    return Dir(directory.source, directory, found.name, found.identity, listing)


def _kind(mode: int) -> str:
    if stat.S_ISSOCK(mode):
        return "socket"
    return "FIFO" if stat.S_ISFIFO(mode) else "device"

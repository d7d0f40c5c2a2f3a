"""What is known of a tree's contents: the walk's files against the store's stat records. One thread, one pass."""

from __future__ import annotations

import os
from collections.abc import Callable

from blake3 import blake3

from detlayer.layer.entry import Entry
from detlayer.packing.explanation import Explanation, Reason
from detlayer.store import Record, Records, Shelf, Stamp, Store, is_racy, stamp_of
from detlayer.tree import Source
from detlayer.tree.disk import Dir, FileContent

_SAVED_AT_ONCE = 10_000  # records, of half a kilobyte each
# Half a kilobyte each while the walk is in their directory. One that is larger only a scan remembers.
_MAX_FILES = 100_000


class _Place:
    """A directory of the tree: what was known of its files, and what is now."""

    __slots__ = ("dir", "new", "old", "relative")

    def __init__(self, directory: Dir, relative: bytes, old: Shelf) -> None:
        self.dir = directory
        self.relative = relative
        self.old = old
        self.new: Shelf = {}


class _Tree:
    """One source: the directories that the walk is in, outermost first, and those it has left."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.open: list[_Place] = []
        self.left: list[tuple[bytes, Shelf]] = []
        self.left_records = 0
        self.seen: set[bytes] = set()
        self.is_changed = False


class Contents:
    """A `ContentMemory` of what the walk brings. Whoever made it calls `close` after a pass that ended well.

    `started_ns` is before the first file was looked at. Where `judge` is given it hears of contents that are not what
    their stat records promised.
    """

    def __init__(
        self,
        store: Store,
        started_ns: int,
        explanation: Explanation,
        judge: Callable[[bytes], None] | None = None,
    ) -> None:
        self._store = store
        self._started_ns = started_ns
        self._explanation = explanation
        self._judge = judge
        self._trees: dict[Source, _Tree] = {}
        self._source: Source | None = None
        self._tree: _Tree | None = None
        self._dir: Dir | None = None
        self._place = _Place(Dir(Source(b""), None, b""), b"", {})

    def recall(self, entry: Entry) -> bytes | None:
        """Give the fingerprint of a content that is as it was when it was read."""
        content = entry.content
        if self._judge is not None or not isinstance(content, FileContent) or not content.is_steady:
            return None
        found = content.found
        place = self._place if found.dir is self._dir else self._turn(found.dir)
        record = place.old.get(found.name)
        if record is None or _reason(record, stamp_of(found.stat), content) is not None:
            return None
        place.new[found.name] = record
        self._explanation.known += 1
        return record.fingerprint

    def learn(self, entry: Entry, fingerprint: bytes) -> None:
        """Hear what was read."""
        content = entry.content
        if not isinstance(content, FileContent):
            return
        found = content.found
        place = self._place if found.dir is self._dir else self._turn(found.dir)
        stamp = stamp_of(found.stat)
        old = place.old.get(found.name)
        explanation = self._explanation
        explanation.read += 1
        if old is None:
            explanation.note(entry.path, "new")
        elif old.fingerprint == fingerprint:
            explanation.same += 1
            if self._judge is not None and _reason(old, stamp, content) is None:
                place.new[found.name] = old
                return
        else:
            reason = _reason(old, stamp, content)
            if reason is not None:
                explanation.note(entry.path, reason)
            elif self._judge is not None:
                self._judge(entry.path)
        if content.is_steady and len(place.new) < _MAX_FILES:
            place.new[found.name] = Record(stamp, self._started_ns, fingerprint, content.variant)

    def close(self) -> None:
        """Keep what was learned of trees that were walked to their end."""
        for tree in self._trees.values():
            while tree.open:
                self._leave(tree)
            self._save(tree)
            if tree.is_changed:
                tree.records.prune(tree.seen)

    # -- directories

    def _turn(self, directory: Dir) -> _Place:
        """Find the place of a directory; the walk has left all that are not above it."""
        tree = self._tree
        if directory.source is not self._source or tree is None:
            tree = self._trees.get(directory.source)
            if tree is None:
                now = self._started_ns // 1_000_000_000
                tree = _Tree(Records(self._store.index, _name(directory.source), now))
                self._trees[directory.source] = tree
            self._source, self._tree = directory.source, tree
        while tree.open and not _is_above(tree.open[-1].dir, directory):
            self._leave(tree)
        if not tree.open or tree.open[-1].dir is not directory:
            relative = directory.relative.encode("utf-8", "surrogateescape")
            tree.open.append(_Place(directory, relative, tree.records.load(relative)))
            tree.seen.add(relative)
        self._dir = directory
        self._place = tree.open[-1]
        return self._place

    def _leave(self, tree: _Tree) -> None:
        place = tree.open.pop()
        if len(place.new) >= _MAX_FILES:
            return
        gone = place.old.keys() - place.new.keys()
        for name in sorted(gone):
            self._explanation.note(place.relative + name, "gone")
        if gone or place.new != place.old:
            tree.is_changed = True
            tree.left.append((place.relative, place.new))
            tree.left_records += len(place.new) + 1
            if tree.left_records >= _SAVED_AT_ONCE:
                self._save(tree)

    def _save(self, tree: _Tree) -> None:
        if tree.left:
            tree.records.save(tree.left)
            tree.left = []
            tree.left_records = 0


def _is_above(above: Dir, directory: Dir) -> bool:
    """Tell whether a directory is the same as another, or above it."""
    at: Dir | None = directory
    while at is not None:
        if at is above:
            return True
        at = at.parent
    return False


def _reason(record: Record, stamp: Stamp, content: FileContent) -> Reason | None:
    """Say why a record does not tell what a file holds; None if it does (SPEC 10.2)."""
    known = record.stamp
    if known == stamp:
        if record.variant != content.variant:
            return "source"
        return "young" if is_racy(stamp, record.seen_ns) else None
    if known[0] != stamp[0]:
        return "size"
    if known[1] != stamp[1]:
        return "mtime"
    return "inode" if known[3:] != stamp[3:] else "ctime"


def _name(source: Source) -> bytes:
    """Name a tree by where it is and what is taken of it: two selections of one directory don't disturb each other."""
    patterns = "\0".join(pattern.text for pattern in source.patterns).encode("utf-8", "surrogateescape")
    real = os.path.realpath(source.path)
    return real + b"\0" + blake3(patterns).digest(8) if patterns else real

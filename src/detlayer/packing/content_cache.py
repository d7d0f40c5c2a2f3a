"""Known contents of a tree: compares the walk's files with the store's stat records. One thread, one pass."""

from __future__ import annotations

import os

from blake3 import blake3

from detlayer.layer.entry import Entry
from detlayer.packing.explanation import Explanation, ReadReason
from detlayer.store import DirectoryRecords, FileRecord, StatRecord, Store, TreeRecords, is_racy, stat_record_of
from detlayer.tree import Source
from detlayer.tree.disk import Dir, FileContent

_SAVED_AT_ONCE = 10_000  # records, of half a kilobyte each
# Half a kilobyte each while the walk is in their directory. Only scans cache larger directories.
_MAX_FILES = 100_000


class _Directory:
    """A directory of the tree: the earlier records of its files, and the new ones."""

    __slots__ = ("dir", "new", "old", "relative")

    def __init__(self, directory: Dir, relative: bytes, old: DirectoryRecords) -> None:
        self.dir = directory
        self.relative = relative
        self.old = old
        self.new: DirectoryRecords = {}


class _Tree:
    """One source: the directories that the walk is in, outermost first, and those it has left."""

    def __init__(self, records: TreeRecords) -> None:
        self.records = records
        self.open: list[_Directory] = []
        self.left: list[tuple[bytes, DirectoryRecords]] = []
        self.left_records = 0
        self.seen: set[bytes] = set()
        self.is_changed = False


class ContentCache:
    """A `ContentMemory` of a walk. The caller calls `close` after a pass without errors.

    `started_ns` is before the first file was looked at. If `is_paranoid`, every file is read.
    """

    def __init__(
        self,
        store: Store,
        started_ns: int,
        explanation: Explanation,
        *,
        is_paranoid: bool = False,
    ) -> None:
        self._store = store
        self._started_ns = started_ns
        self._explanation = explanation
        self._is_paranoid = is_paranoid
        self.contradicted: list[bytes] = []
        """Paths whose content changed although their stat record did not."""
        self._trees: dict[Source, _Tree] = {}
        self._source: Source | None = None
        self._tree: _Tree | None = None
        self._dir: Dir | None = None
        self._directory = _Directory(Dir(Source(b""), None, b""), b"", {})

    def recall(self, entry: Entry) -> bytes | None:
        """Return the fingerprint of a content that has not changed since it was read."""
        content = entry.content
        if self._is_paranoid or not isinstance(content, FileContent) or not content.is_steady:
            return None
        found = content.found
        directory = self._directory if found.dir is self._dir else self._enter(found.dir)
        record = directory.old.get(found.name)
        if record is None or _reason(record, stat_record_of(found.stat), content) is not None:
            return None
        directory.new[found.name] = record
        self._explanation.known += 1
        return record.fingerprint

    def learn(self, entry: Entry, fingerprint: bytes) -> None:
        """Record the fingerprint of the content that was just read."""
        content = entry.content
        if not isinstance(content, FileContent):
            return
        found = content.found
        directory = self._directory if found.dir is self._dir else self._enter(found.dir)
        stamp = stat_record_of(found.stat)
        old = directory.old.get(found.name)
        explanation = self._explanation
        explanation.read += 1
        if old is None:
            explanation.note(entry.path, "new")
        elif old.fingerprint == fingerprint:
            explanation.same += 1
            if _reason(old, stamp, content) == "ctime":
                explanation.note(entry.path, "attributes")
            if self._is_paranoid and _reason(old, stamp, content) is None:
                directory.new[found.name] = old
                return
        else:
            reason = _reason(old, stamp, content)
            if reason is not None:
                explanation.note(entry.path, reason)
            elif self._is_paranoid:
                self.contradicted.append(entry.path)
        if content.is_steady and len(directory.new) < _MAX_FILES:
            directory.new[found.name] = FileRecord(stamp, self._started_ns, fingerprint, content.variant)

    def close(self) -> None:
        """Save the records of trees that were walked to their end."""
        for tree in self._trees.values():
            while tree.open:
                self._leave(tree)
            self._save(tree)
            if tree.is_changed:
                tree.records.prune(tree.seen)

    # -- directories

    def _enter(self, directory: Dir) -> _Directory:
        """Return the records of a directory, after saving those of directories that the walk has left."""
        tree = self._tree
        if directory.source is not self._source or tree is None:
            tree = self._trees.get(directory.source)
            if tree is None:
                now = self._started_ns // 1_000_000_000
                tree = _Tree(TreeRecords(self._store.index, _name(directory.source), now))
                self._trees[directory.source] = tree
            self._source, self._tree = directory.source, tree
        while tree.open and not _is_above(tree.open[-1].dir, directory):
            self._leave(tree)
        if not tree.open or tree.open[-1].dir is not directory:
            relative = directory.relative.encode("utf-8", "surrogateescape")
            tree.open.append(_Directory(directory, relative, tree.records.load(relative)))
            tree.seen.add(relative)
        self._dir = directory
        self._directory = tree.open[-1]
        return self._directory

    def _leave(self, tree: _Tree) -> None:
        directory = tree.open.pop()
        if len(directory.new) >= _MAX_FILES:
            return
        gone = directory.old.keys() - directory.new.keys()
        for name in sorted(gone):
            self._explanation.note(directory.relative + name, "gone")
        if gone or directory.new != directory.old:
            tree.is_changed = True
            tree.left.append((directory.relative, directory.new))
            tree.left_records += len(directory.new) + 1
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


def _reason(record: FileRecord, stamp: StatRecord, content: FileContent) -> ReadReason | None:
    """Return why a record does not prove a file's content; None if it does (SPEC 10.2)."""
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
    """Name a tree by its path and its selection, so that two selections of one directory have separate records."""
    patterns = "\0".join(pattern.text for pattern in source.patterns).encode("utf-8", "surrogateescape")
    real = os.path.realpath(source.path)
    return real + b"\0" + blake3(patterns).digest(8) if patterns else real

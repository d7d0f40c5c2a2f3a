"""Apply entries of a layer in any order as an engine does, and return the tree in the order of SPEC 3.4.

Pure: contents are opaque tokens of the caller. `normalize` and `diff` share `AppliedTree`; whiteouts stay, since they
apply to the layers below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from msgspec import structs

from detlayer.errors import LayerError, printable
from detlayer.layer import bytecode
from detlayer.layer.entry import Entry, Profile, is_whiteout, marker, normalize, parent
from detlayer.layer.order import order_key


@dataclass(slots=True)
class AppliedEntry:
    """An entry as read from the layer, and where its content is stored."""

    entry: Entry
    start: int
    identity: int
    """Equal for paths that are hard links to each other."""


T = TypeVar("T")


class AppliedTree(Generic[T]):
    """The tree that an engine has after each entry: the later entry wins, and nothing stays below a file.

    A hard link is bound to the current file of its target; later changes of the target's path do not matter.
    """

    def __init__(self, is_dir: Callable[[T], bool]) -> None:
        self._is_dir = is_dir
        self.by_path: dict[bytes, T] = {}
        self._parents: set[bytes] = set()
        self._below: dict[bytes, set[bytes]] | None = None  # created on demand, which is rare

    def put(self, path: bytes, value: T) -> bool:
        """Apply an entry; tells whether the path existed before."""
        if path in self._parents and not self._is_dir(value):
            self._remove_below(path)
        was_there = self.by_path.pop(path, None) is not None
        self.by_path[path] = value
        self._note(path)
        return was_there

    def link_target(self, path: bytes, target: bytes) -> T | None:
        """Find the file of a hard link at `path`; None if it does not exist."""
        if target.startswith(path + b"/"):
            return None  # the link removes the directory that contains its target
        found = self.by_path.get(target)
        return None if found is None or self._is_dir(found) else found

    def _note(self, path: bytes) -> None:
        above = path.rpartition(b"/")[0]
        while above and (above not in self._parents or self._below is not None):
            self._parents.add(above)
            if self._below is not None:
                children = self._below.setdefault(above, set())
                if path in children:
                    return
                children.add(path)
            path, above = above, above.rpartition(b"/")[0]

    def _remove_below(self, path: bytes) -> None:
        if self._below is None:
            self._below = {}
            for known in self.by_path:
                self._note(known)
        stack = [path]
        while stack:
            here = stack.pop()
            self._parents.discard(here)
            for child in self._below.pop(here, ()):
                self.by_path.pop(child, None)
                stack.append(child)


class Merger:
    """Collects the entries of a tar, and returns them sorted and normalized."""

    def __init__(self) -> None:
        self._applied = AppliedTree[AppliedEntry](lambda held: held.entry.kind == "dir")
        self._count = 0

    def add(self, entry: Entry, start: int = 0) -> None:
        """Apply an entry; raises LayerError for a hard link without target."""
        path = entry.path
        self._count += 1
        held = AppliedEntry(entry, start, self._count)
        if entry.kind == "hardlink":
            target = self._applied.link_target(path, entry.target)
            if target is not None and target.entry.kind != "hardlink":
                held = AppliedEntry(structs.replace(target.entry, path=path), target.start, target.identity)
            elif not is_whiteout(path, entry.kind):  # a whiteout needs no target: it may be in a lower layer or missing
                raise LayerError(
                    "hardlink-target",
                    f"{printable(path)} is a hard link to {printable(entry.target)}, which is not an earlier file",
                    "the layer is damaged, or depends on a file of the layer below",
                )
        self._applied.put(path, held)

    def entries(
        self, profile: Profile, *, hardlinks: Literal["separate", "preserve"]
    ) -> Iterator[tuple[Entry, AppliedEntry | None]]:
        """Yield entries sorted and normalized, with missing parents added; without content.

        With hard links preserved, the first path of a shared content is the file, and the others link to it.
        """
        paths = self._with_parents()
        first_at: dict[int, Entry] = {}
        for path in sorted(paths, key=order_key):
            held = self._applied.by_path.get(path)
            if held is None:
                yield parent(path, profile), None
                continue
            raw = held.entry
            if is_whiteout(path, raw.kind):
                yield marker(path, profile), None  # never one of several hard links
                continue
            kept = tuple(one for one in raw.xattrs if profile.wants_xattr(one[0].decode("utf-8", "surrogateescape")))
            entry = normalize(structs.replace(raw, xattrs=kept), profile)
            if hardlinks == "preserve" and entry.kind == "file":
                first = first_at.setdefault(held.identity, entry)
                if first is not entry:
                    entry = Entry(path, "hardlink", first.mode, first.uid, first.gid, first.mtime, 0, first.path)
            yield entry, held

    def _with_parents(self) -> set[bytes]:
        paths = set(self._applied.by_path)
        for path in self._applied.by_path:
            above = path.rpartition(b"/")[0]
            while above and above not in paths:
                paths.add(above)
                above = above.rpartition(b"/")[0]
        return paths

    def source_of(self, path: bytes) -> Entry | None:
        """Find the source file of a .pyc in this layer (SPEC 4.8)."""
        above, _, name = path.rpartition(b"/")
        home, _, last = above.rpartition(b"/")
        in_pycache = last == b"__pycache__"
        source = bytecode.source_name(name, in_pycache)
        if source is None:
            return None
        place = home if in_pycache else above
        held = self._applied.by_path.get(place + b"/" + source if place else source)
        return held.entry if held is not None and held.entry.kind == "file" else None

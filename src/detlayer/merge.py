"""Entries of a layer in any order become the tree that an engine would make of them, in SPEC 3.4's order.

Pure: contents are tokens that somebody else keeps. Later entries win, as when a layer is applied; whiteouts stay, since
they speak of the layers below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from msgspec import structs

from detlayer import pyc
from detlayer.entry import WHITEOUT_PREFIX, Entry, Profile, marker, normalise, order_key, parent
from detlayer.errors import LayerError, printable


@dataclass(slots=True)
class Held:
    """An entry as it was read, and where its content is kept."""

    entry: Entry
    start: int
    identity: int
    """Equal for paths that are hard links of each other."""


class Merger:
    """Takes entries as they come in a tar, and gives them back sorted and normalised."""

    def __init__(self) -> None:
        self._held: dict[bytes, Held] = {}
        self._below: dict[bytes, set[bytes]] = {}
        self._count = 0

    def add(self, entry: Entry, start: int = 0) -> None:
        """Apply one more entry; raises LayerError for a hard link to nowhere."""
        path = entry.path
        previous = self._held.get(path)
        if previous is not None and (previous.entry.kind == "dir") != (entry.kind == "dir"):
            self._remove_below(path)
        if entry.kind == "hardlink":
            target = self._held.get(entry.target)
            if target is None or target.entry.kind == "dir":
                raise LayerError(
                    "hardlink-target",
                    f"{printable(path)} is a hard link to {printable(entry.target)}, which is no earlier file",
                    "the layer is damaged, or depends on a file of the layer below",
                )
            # The link is its target from here on, whatever becomes of the target's path.
            self._held[path] = Held(structs.replace(target.entry, path=path), target.start, target.identity)
        else:
            self._count += 1
            self._held[path] = Held(entry, start, self._count)
        above = path.rpartition(b"/")[0]
        self._below.setdefault(above, set()).add(path)

    def _remove_below(self, path: bytes) -> None:
        stack = [path]
        while stack:
            for child in self._below.pop(stack.pop(), ()):
                self._held.pop(child, None)
                stack.append(child)

    def entries(
        self, profile: Profile, *, hardlinks: Literal["separate", "preserve"]
    ) -> Iterator[tuple[Entry, Held | None]]:
        """Yield entries sorted and normalised, with parents that were missing; without content.

        With hard links preserved, the first path of those that share a content is the file, the others link to it.
        """
        paths = self._with_parents()
        first_at: dict[int, Entry] = {}
        for path in sorted(paths, key=order_key):
            held = self._held.get(path)
            if held is None:
                yield parent(path, profile), None
                continue
            raw = held.entry
            if path.rpartition(b"/")[2].startswith(WHITEOUT_PREFIX) and raw.kind == "file":
                entry = marker(path, profile)
            else:
                kept = tuple(
                    one for one in raw.xattrs if profile.wants_xattr(one[0].decode("utf-8", "surrogateescape"))
                )
                entry = normalise(structs.replace(raw, xattrs=kept), profile)
            if hardlinks == "preserve" and entry.kind == "file":
                first = first_at.setdefault(held.identity, entry)
                if first is not entry:
                    entry = Entry(path, "hardlink", first.mode, first.uid, first.gid, first.mtime, 0, first.path)
            yield entry, held

    def _with_parents(self) -> set[bytes]:
        paths = set(self._held)
        for path in self._held:
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
        source = pyc.source_name(name, in_pycache)
        if source is None:
            return None
        place = home if in_pycache else above
        held = self._held.get(place + b"/" + source if place else source)
        return held.entry if held is not None and held.entry.kind == "file" else None

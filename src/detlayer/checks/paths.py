"""Check a path against all others of a layer: order, duplicates, parents, links, collisions (SPEC 3.3, 3.4, 4.4, 4.7).

Sees each entry once; no header bytes, content or disk. In a sorted layer nearly all checks need only neighbours, so
twelve bytes an entry are enough. The index of all paths is built when the order breaks or a hard link comes. Its keys
are hashes of paths with a random key per process, so that an attacker can't provoke collisions.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import NamedTuple

from detlayer.checks.findings import Finding
from detlayer.errors import printable
from detlayer.layer.entry import WHITEOUT_PREFIX, Entry, collision_code, fold_name, is_whiteout
from detlayer.layer.order import order_key

_DIR, _LINK = -1, -2


class _Values(NamedTuple):
    """The values that a hard link must share with its file."""

    mode: int
    uid: int
    gid: int
    mtime: int


class PathChecker:
    def __init__(self) -> None:
        self._hashes = array("q")
        # For each entry: _DIR, _LINK, or the number of a file's values.
        self._codes = array("l")
        self._values: dict[_Values, int] = {}
        self._index: dict[int, int] | None = None
        self._in_order = True
        self._previous: bytes | None = None
        self._above = b""
        # The directories that contain the last entry, outermost first; unused once the order is broken.
        self._open: list[bytes] = [b""]
        self._missing: set[int] = set()
        self._folded: dict[int, bytes] = {}
        """Names that differ from their fold, by the hash of the path of the fold."""

    def take(self, entry: Entry) -> Iterator[Finding]:
        """Check the next entry of the layer."""
        path = entry.path
        previous, self._previous = self._previous, path
        place = hash(path)
        if previous is not None and order_key(previous) >= order_key(path):
            if self._in_order:
                self._in_order = False
                self._find(0)
            if self._find(place) is None:
                yield Finding("entry-order", printable(path), "order", f"after {printable(previous)}", "before it")
        if not self._in_order and self._find(place) is not None:
            yield Finding("duplicate-path", printable(path), "path", "again", "once")
        slash = path.rfind(b"/")
        above = path[:slash] if slash > 0 else b""
        if above != self._above or not self._in_order:
            if not self._is_open(above):
                code = self._find(hash(above))
                found = "no entry" if code is None else "a file or link"
                yield Finding("parents", printable(path), "parent", found, printable(above) + "/")
                self._missing.add(hash(above))
                self._open.append(above)
            self._above = above
        collision = self._collision(path, place, above, path[slash + 1 :])
        if collision is not None:
            yield collision
        is_marker = path.startswith(WHITEOUT_PREFIX, slash + 1)
        if is_marker:
            yield from _check_whiteout(entry)
        if entry.kind == "file":
            values = _Values(entry.mode, entry.uid, entry.gid, entry.mtime)
            code = self._values.setdefault(values, len(self._values))
        elif entry.kind == "dir":
            code = _DIR
            if self._in_order:
                self._open.append(path)
                self._above = path
        else:
            code = _LINK
            if entry.kind == "hardlink" and not is_marker:
                yield from self._check_link(entry)
        if self._index is None:
            self._hashes.append(place)
            self._codes.append(code)
        else:
            self._index[place] = code

    def _find(self, place: int) -> int | None:
        """Look up a path among the earlier ones; builds the index."""
        if self._index is None:
            self._index = dict(zip(self._hashes, self._codes, strict=True))
            self._hashes, self._codes = array("q"), array("l")
        return self._index.get(place)

    def _is_open(self, above: bytes) -> bool:
        if not self._in_order:
            return not above or self._find(hash(above)) == _DIR or hash(above) in self._missing
        opened = self._open
        while opened[-1] and opened[-1] != above and not above.startswith(opened[-1] + b"/"):
            opened.pop()
        return opened[-1] == above

    def _collision(self, path: bytes, place: int, above: bytes, name: bytes) -> Finding | None:
        fold = fold_name(name)
        like: bytes | None
        if fold == name:
            like = self._folded.get(place) if self._folded else None
        else:
            there = hash(above + b"/" + fold if above else fold)
            like = self._folded.setdefault(there, name)
            if like is name:
                # ASCII sorts upper case before lower case, so in order only these can come after their fold.
                late = not self._in_order or not name.isascii() or fold.startswith(WHITEOUT_PREFIX)
                like = fold if late and self._find(there) is not None else None
        if like is None or like == name:
            return None
        found = f"beside {printable(like)}"
        return Finding(collision_code(name, like), printable(path), "name", found, "distinct names")

    def _check_link(self, entry: Entry) -> Iterator[Finding]:
        shown = printable(entry.path)
        code = self._find(hash(entry.target))
        if code is None or code < 0:
            where = "is not before it" if code is None else "is not a file"
            yield Finding("hardlink-form", shown, "target", f"{printable(entry.target)} {where}", "a file")
            return
        if is_whiteout(entry.target, "file"):
            yield Finding("hardlink-form", shown, "target", f"{printable(entry.target)} is a whiteout", "a file")
            return
        found = _Values(entry.mode, entry.uid, entry.gid, entry.mtime)
        if self._values.get(found) == code:
            return
        wanted = next(values for values, number in self._values.items() if number == code)
        for name, here, there in zip(_Values._fields, found, wanted, strict=True):
            if here != there:
                shape = "{:04o}" if name == "mode" else "{}"
                target = f"its target's {shape.format(there)}"
                yield Finding("hardlink-form", shown, name, shape.format(here), target)


def _check_whiteout(entry: Entry) -> Iterator[Finding]:
    """Check how a whiteout is stored: an empty file (SPEC 4.10)."""
    shown = printable(entry.path)
    if entry.kind == "hardlink":
        yield Finding("hardlink-form", shown, "kind", "a hard link", "an empty file: it is a whiteout")
    elif entry.kind == "symlink":
        yield Finding("type-flag", shown, "kind", "a symlink", "an empty file: it is a whiteout")
    elif entry.size_bytes:
        yield Finding("size-field", shown, "size", str(entry.size_bytes), "0: it is a whiteout")

"""The order of entries (SPEC 3.4), for all modules that sort, merge or check them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from detlayer.errors import LayerError, printable
from detlayer.layer.entry import WHITEOUT_PREFIX, Entry, without_temporaries


def order_key(path: bytes) -> bytes:
    """Return the sort key of a path: component by component, raw bytes, whiteouts first.

    NUL sorts before every byte of a name, so the key needs no splitting: it separates components, and marks whiteouts.
    """
    if WHITEOUT_PREFIX not in path:
        return path.replace(b"/", b"\0")
    names = path.split(b"/")
    return b"\0".join(b"\0" + name if name.startswith(WHITEOUT_PREFIX) else name for name in names)


def order_names(names: Iterable[bytes]) -> list[bytes]:
    """Sort the names of one directory, without those of unfinished outputs (SPEC 4.9)."""
    found = without_temporaries(sorted(names))  # a name without a whiteout prefix is its own key
    at = bisect_left(found, WHITEOUT_PREFIX)
    if at < len(found) and found[at].startswith(WHITEOUT_PREFIX):
        found.sort(key=order_key)
    return found


class OrderChecker:
    """Checks SPEC 3.3 and 3.4 by comparing neighbours, which is enough for sorted entries."""

    __slots__ = ("_key", "_previous")

    def __init__(self) -> None:
        self._previous: Entry | None = None
        self._key = b""

    def check(self, entry: Entry) -> None:
        """Check the next entry; raises LayerError."""
        path = entry.path
        before, key = self._key, order_key(path)
        previous = self._previous
        self._previous, self._key = entry, key
        if previous is None:
            return
        if path == previous.path:
            raise LayerError("duplicate-path", f"duplicate path {printable(path)}", "remove one of the two")
        if previous.kind != "dir" and path.startswith(previous.path + b"/"):
            raise LayerError(
                "file-as-parent",
                f"{printable(previous.path)} is a {previous.kind} and also the parent of {printable(path)}",
                "rename or remove one of the two",
            )
        if before >= key:
            raise LayerError(
                "entry-order",
                f"{printable(path)} comes after {printable(previous.path)}",
                "sort them with key=lambda entry: order_key(entry.path)",
            )

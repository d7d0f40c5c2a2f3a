"""Sources on disk become entries, in order, with content that opens on demand (SPEC 3, 4). Knows no tar, no hashing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from detlayer.filesystem import is_dir as leads_to_dir
from detlayer.filesystem import real_path
from detlayer.layer.entry import Entry, Profile
from detlayer.layer.ports import Reporter, Silence
from detlayer.tree.forest import plant
from detlayer.tree.patterns import excluded
from detlayer.tree.scan import Listing, Scan, Witness, scan
from detlayer.tree.source import Selection, Source
from detlayer.tree.steady import copy_file, fail, read_file
from detlayer.tree.walk import Walker

__all__ = [
    "Listing",
    "Scan",
    "Selection",
    "Source",
    "Witness",
    "copy_file",
    "fail",
    "read_file",
    "scan",
    "takes",
    "walk",
]


def walk(
    sources: Sequence[Source],
    *,
    profile: Profile | None = None,
    selection: Selection | None = None,
    reporter: Reporter | None = None,
    visited: Callable[[bytes], None] | None = None,
    witness: Witness | None = None,
    listings: Mapping[Source, Listing] | None = None,
) -> Iterator[Entry]:
    """Yield the normalised entries of all sources in order.

    A content opens only until the next entry is asked for. `visited` hears the path of every file and directory that
    was looked at, `witness` what was seen of it. Where there are `listings`, the walk goes by what their scan saw, and
    only contents are looked at again. Raises TreeError, and ConfigError for invalid destinations.
    """
    selection = selection or Selection()
    walker = Walker(profile or Profile(), selection, reporter or Silence(), visited, witness, listings or {})
    return walker.walk(plant(sources, selection))


def takes(source: Source, path: bytes, *, is_dir: bool = False) -> bool:
    """Tell whether a walk of `source` would take a file (or directory) at `path`, were it there; raises TreeError."""
    try:
        root, inside = os.fsencode(real_path(os.fsdecode(source.path))), os.fsencode(real_path(os.fsdecode(path)))
        is_tree = leads_to_dir(root)
    except OSError as error:
        fail(error, os.fsencode(error.filename or path))
    if root == inside:
        return is_dir or not is_tree  # a file that is to replace a directory is refused as such
    if not is_tree or os.path.commonpath([root, inside]) != root:
        return False
    parts = os.path.relpath(inside, root).decode("utf-8", "surrogateescape").split("/")
    return not any(
        excluded(source.patterns, "/".join(parts[:depth]), is_dir or depth < len(parts))
        for depth in range(1, len(parts) + 1)
    )

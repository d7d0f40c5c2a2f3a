"""Sources on disk to ordered entries, whose content opens on demand (SPEC 3, 4). Does not know tar or hashes."""

from __future__ import annotations

import os
from collections.abc import Sequence

from detlayer.filesystem import is_dir as leads_to_dir
from detlayer.filesystem import real_path
from detlayer.layer.entry import Profile
from detlayer.layer.ports import Reporter, Silence
from detlayer.tree.patterns import excluded
from detlayer.tree.scan import Scan, Snapshot, scan
from detlayer.tree.source import Selection, Source
from detlayer.tree.stable_read import copy_file, fail, read_file
from detlayer.tree.walk import Walk

__all__ = [
    "Scan",
    "Selection",
    "Snapshot",
    "Source",
    "Walk",
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
    keep_paths: bool = False,
) -> Walk:
    """Start a walk, which iterates over the normalized entries of all sources in order."""
    return Walk(
        sources,
        profile=profile or Profile(),
        selection=selection or Selection(),
        reporter=reporter or Silence(),
        keep_paths=keep_paths,
    )


def takes(source: Source, path: bytes, *, is_dir: bool = False) -> bool:
    """Tell whether a walk of `source` would include a file or directory at `path`; raises TreeError."""
    try:
        root, inside = os.fsencode(real_path(os.fsdecode(source.path))), os.fsencode(real_path(os.fsdecode(path)))
        is_tree = leads_to_dir(root)
    except OSError as error:
        fail(error, os.fsencode(error.filename or path))
    if root == inside:
        return is_dir or not is_tree  # replacing a directory with a file is rejected elsewhere
    if not is_tree or os.path.commonpath([root, inside]) != root:
        return False
    parts = os.path.relpath(inside, root).decode("utf-8", "surrogateescape").split("/")
    return not any(
        excluded(source.patterns, "/".join(parts[:depth]), is_dir or depth < len(parts))
        for depth in range(1, len(parts) + 1)
    )

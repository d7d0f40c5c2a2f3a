"""However a tree changes between two packs, the second gives the result of a cold pack (SPEC 10.1)."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detlayer.layer.entry import Mtime, Profile
from detlayer.tree import Selection
from tests.packing.cached_packs import EDITS, LATER_S, NAMES, Edit, edit, next_tick, pack_cold, pack_warm

EXAMPLES = int(os.environ.get("DETLAYER_EDIT_EXAMPLES", "40"))

edits: st.SearchStrategy[Edit] = st.tuples(
    st.sampled_from(EDITS), st.integers(0, len(NAMES) - 1), st.integers(0, len(NAMES) - 1), st.integers(0, 900)
)
# With an exact clock all files are young and read again; with one that is ahead none is; one was set back.
clocks = st.sampled_from([LATER_S, LATER_S, LATER_S, 0.0, -86400.0])
OPTIONS: list[dict[str, Any]] = [
    {},
    {},
    {"selection": Selection(hardlinks="preserve")},
    {"profile": Profile(mtime=Mtime("source"), owner=None, mode="source")},
    {"exclude": ["*.py", "d/g"]},
    {"compression": "zstd:1"},
    {"compression": "none"},
]
steps = st.lists(
    st.tuples(st.lists(edits, max_size=4), clocks, st.integers(0, len(OPTIONS) - 1)), min_size=2, max_size=5
)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes many chunks of small trees, in cold and warm packs alike."""
    monkeypatch.setattr("detlayer.layer.chunking.CHUNK_MIN_BYTES", 1024)
    monkeypatch.setattr("detlayer.layer.chunking.CHUNK_MAX_BYTES", 4096)


@settings(max_examples=EXAMPLES)
@given(
    first=st.lists(st.tuples(st.integers(0, len(NAMES) - 1), st.integers(0, 900)), min_size=3),
    steps=steps,
    many_files=st.sampled_from([1, 64]),
    listed=st.sampled_from([3, 50_000]),
)
def test_a_warm_pack_gives_what_a_cold_one_gives(
    first: list[tuple[int, int]], steps: list[tuple[list[Edit], float, int]], many_files: int, listed: int
) -> None:
    """Also at the limits of what is cached, and of what counts as suspicious."""
    home = Path(tempfile.mkdtemp(prefix="detlayer-edits-"))
    with (
        patch("detlayer.packing.cached_pack._MANY_FILES", many_files),
        patch.object(sys.modules["detlayer.tree.scan"], "_MAX_LISTED", listed),
    ):
        _compare(home, first, steps)


def _compare(home: Path, first: list[tuple[int, int]], steps: list[tuple[list[Edit], float, int]]) -> None:
    try:
        tree = home / "tree"
        tree.mkdir()
        for name, size in first:
            edit(tree, ("write", name, 0, size))
        for changes, ahead_s, option in steps:
            next_tick(home)
            for change in changes:
                edit(tree, change)
            next_tick(home)
            options = OPTIONS[option]
            cold, blob = pack_cold(f"{tree}:/app", **options)
            for _ in range(2):
                warm = pack_warm(home / "cache", f"{tree}:/app", ahead_s=ahead_s, **options)
                assert warm.layer == cold
                assert warm.blob == blob
                assert warm.warnings == []
    finally:
        shutil.rmtree(home)

"""What a second pack reuses, how it explains that, and that it is never wrong (SPEC 10)."""

from __future__ import annotations

import io
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detlayer.errors import TreeError
from detlayer.layer.entry import Mtime, Owner, Profile
from detlayer.oci.types import Digest
from detlayer.packing.options import PackOptions
from detlayer.packing.pack_input import PackInput
from detlayer.packing.sources import resolve
from detlayer.store import Store, is_racy
from detlayer.store.archive import export, take_in
from detlayer.store.traces import Spot, TraceStore
from detlayer.tree import Selection, Source, Walk, scan
from tests.layers import MemorySink, Words
from tests.packing.cached_packs import LATER_S, next_tick, pack_cold, pack_warm
from tests.privileges import need_user_xattrs
from tests.trees import File, make_tree
from tests.vectors import counter_bytes


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree", {"a": "one", "d": {"b": "two", "e": {"c": "three"}}, "empty": "", "z": "four"})


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A tree of several chunks."""
    files = {f"f{number:03}": counter_bytes(str(number), 50_000) for number in range(120)}
    return make_tree(tmp_path / "big", {"lib": files, "large": counter_bytes("large", 9 << 20)})


def test_nothing_changed_is_one_scan(cache: Path, tree: Path) -> None:
    first = pack_warm(cache, tree)
    second = pack_warm(cache, tree)
    assert first.explanation.outcome == "cold"
    assert (second.explanation.outcome, second.explanation.is_scanned) == ("whole", True)
    assert (second.layer, second.blob) == (first.layer, first.blob) == pack_cold(tree)


def test_nothing_is_opened_when_nothing_changed(cache: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pack_warm(cache, tree)
    monkeypatch.setattr("detlayer.tree.disk.FileContent.open", lambda self: pytest.fail("a file was opened"))
    assert pack_warm(cache, tree).blob == first.blob
    # Without a scan, stat records identify the contents.
    monkeypatch.setattr("detlayer.packing.pack_input._describe", lambda *options: None)
    again = pack_warm(cache, tree)
    assert (again.explanation.is_scanned, again.explanation.known) == (False, 4)
    assert again.blob == first.blob


def test_one_change_costs_one_chunk(cache: Path, big: Path, tmp_path: Path) -> None:
    pack_warm(cache, big)
    next_tick(tmp_path)
    (big / "lib" / "f060").write_bytes(b"changed")
    second = pack_warm(cache, big)
    explanation = second.explanation
    assert explanation.outcome == "chunks"
    assert explanation.compressed == 1
    assert explanation.copied == len(second.layer.chunks) - 1 > 4
    assert explanation.examples == [(b"lib/f060", "size")]
    assert (second.layer, second.blob) == pack_cold(big)


def test_many_threads_copy_chunks(cache: Path, big: Path, tmp_path: Path) -> None:
    pack_warm(cache, big, jobs=4)
    next_tick(tmp_path)
    (big / "lib" / "f000").write_bytes(b"changed")
    assert pack_warm(cache, big, jobs=4).blob == pack_cold(big)[1]


def test_new_times_are_read_and_not_compressed(cache: Path, tree: Path, tmp_path: Path) -> None:
    """A fresh checkout."""
    first = pack_warm(cache, tree)
    next_tick(tmp_path)
    for path in tree.rglob("*"):
        os.utime(path)
    second = pack_warm(cache, tree)
    assert (second.explanation.outcome, second.explanation.read, second.explanation.same) == ("whole", 4, 4)
    assert second.blob == first.blob
    third = pack_warm(cache, tree)
    assert third.explanation.is_scanned


def test_a_checkout_elsewhere(cache: Path, tree: Path, tmp_path: Path) -> None:
    first = pack_warm(cache, tree)
    other = tmp_path / "other"
    shutil.copytree(tree, other)
    second = pack_warm(cache, other)
    assert (second.explanation.outcome, second.explanation.read) == ("whole", 4)
    assert second.blob == first.blob


@pytest.mark.parametrize("compression", ["gzip:1", "none"])
def test_a_fresh_checkout_is_known_by_its_chunks(cache: Path, big: Path, tmp_path: Path, compression: str) -> None:
    """SPEC 10.4: without known stat records, files are read for one fingerprint per chunk."""
    first = pack_warm(cache, big, compression=compression, jobs=2)
    other = tmp_path / "other"
    shutil.copytree(big, other)
    second = pack_warm(cache, other, compression=compression, jobs=2)
    explanation = second.explanation
    assert (explanation.outcome, explanation.is_fresh_checkout, explanation.read) == ("whole", True, 0)
    assert "as in a fresh checkout" in "".join(explanation.to_lines())
    assert (second.layer, second.blob) == (first.layer, first.blob)
    assert pack_warm(cache, other, compression=compression).explanation.is_scanned


def test_a_fresh_checkout_with_another_content(cache: Path, big: Path, tmp_path: Path) -> None:
    pack_warm(cache, big)
    other = tmp_path / "other"
    shutil.copytree(big, other)
    (other / "lib" / "f060").write_bytes(counter_bytes("x", 50_000))
    second = pack_warm(cache, other)
    assert (second.explanation.outcome, second.explanation.compressed) == ("chunks", 1)
    assert second.explanation.read == 121
    assert (second.layer, second.blob) == pack_cold(other)


def test_a_fresh_checkout_with_an_imported_cache(cache: Path, big: Path, tmp_path: Path) -> None:
    """As in CI: other files, and an imported store."""
    first = pack_warm(cache, big)
    exported = MemorySink()
    with Store(str(cache)) as store:
        export(store, exported, only=[first.layer.digest])
    other = tmp_path / "other"
    shutil.copytree(big, other)
    with Store(str(tmp_path / "imported")) as store:
        assert take_in(store, io.BytesIO(bytes(exported.data))) == 1
    second = pack_warm(tmp_path / "imported", other)
    assert (second.explanation.outcome, second.explanation.is_fresh_checkout) == ("whole", True)
    assert second.blob == first.blob


def test_few_questions_for_many_chunks(cache: Path, big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack_warm(cache, big)
    next_tick(tmp_path)
    (big / "lib" / "f060").write_bytes(b"changed")
    asked: list[bytes] = []
    real = TraceStore.find_chunk

    def find_chunk(self: TraceStore, key: bytes) -> tuple[Digest, Spot] | None:
        asked.append(key)
        return real(self, key)

    monkeypatch.setattr(TraceStore, "find_chunk", find_chunk)
    assert pack_warm(cache, big).explanation.copied > 4
    assert len(asked) == 2  # the first, and the new one


def test_an_earlier_state_is_known_by_its_contents(cache: Path, tree: Path, tmp_path: Path) -> None:
    first = pack_warm(cache, tree)
    for text in ("changed", "one"):
        next_tick(tmp_path)
        (tree / "a").write_text(text)
        last = pack_warm(cache, tree)
    assert last.explanation.outcome == "whole"
    assert last.blob == first.blob


def test_an_edit_that_restores_size_and_mtime_shows(cache: Path, tree: Path, tmp_path: Path) -> None:
    pack_warm(cache, tree)
    next_tick(tmp_path)
    status = (tree / "a").stat()
    (tree / "a").write_text("uno")
    os.utime(tree / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    second = pack_warm(cache, tree)
    assert second.blob == pack_cold(tree)[1]
    assert second.explanation.examples == [(b"a", "ctime")]


def test_what_is_young_is_read_again(cache: Path, tree: Path) -> None:
    """SPEC 10.2: a change within the clock's resolution would not show. This clock was set back."""
    pack_warm(cache, tree, ahead_s=-3600)
    for ahead_s in (-3600, LATER_S):
        again = pack_warm(cache, tree, ahead_s=ahead_s)
        explanation = again.explanation
        assert (explanation.outcome, explanation.known, explanation.read, explanation.same) == ("whole", 0, 4, 4)


def test_a_change_within_the_grain(cache: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system's clock stands still: the stat records are equal, and only their age reveals the change."""
    pack_warm(cache, tree, ahead_s=-3600)
    real = os.lstat
    was = real(tree / "a")
    status = {name: getattr(was, name) for name in ("st_mtime_ns", "st_ctime_ns", "st_ino", "st_dev", "st_size")}
    (tree / "a").write_text("uno")

    class Still:
        def __init__(self, found: os.stat_result) -> None:
            self._found = found

        def __getattr__(self, name: str) -> object:
            return status.get(name, getattr(self._found, name))

    def lstat(path: bytes, *, dir_fd: int | None = None) -> object:
        found = real(path, dir_fd=dir_fd)
        return Still(found) if found.st_ino == was.st_ino else found

    monkeypatch.setattr(os, "lstat", lstat)
    with monkeypatch.context() as patch:
        patch.setattr("detlayer.tree.disk.FileContent.finish", lambda self: True)
        second = pack_warm(cache, tree, ahead_s=-3600)
    assert second.blob == pack_cold_still(tree, monkeypatch)


def pack_cold_still(tree: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.undo()
    return pack_cold(tree)[1]


def test_options_are_part_of_what_is_remembered(cache: Path, tree: Path) -> None:
    options: list[dict[str, Any]] = [
        {},
        {"profile": Profile(owner=Owner(7, 8))},
        {"profile": Profile(mtime=Mtime("source"))},
        {"exclude": ["d"]},
        {"exclude": ["!d", "z"]},
        {"compression": "zstd:1"},
        {"compression": "gzip:2"},
        {"compression": "none"},
        {"compression": "gzip-stored"},
    ]
    for _ in range(2):
        for some in options:
            warm = pack_warm(cache, tree, **some)
            assert (warm.layer, warm.blob) == pack_cold(tree, **some)
    assert warm.explanation.outcome == "whole"


def test_rules_of_ones_own_are_never_taken_for_others(cache: Path, tree: Path) -> None:
    for mode in (0o600, 0o640, 0o600):
        profile = Profile(mode_rule=lambda path, is_dir, mode=mode: mode)  # type: ignore[misc]
        assert pack_warm(cache, tree, profile=profile).blob == pack_cold(tree, profile=profile)[1]


def test_bytecode_follows_its_source(cache: Path, tmp_path: Path) -> None:
    """SPEC 4.8: the bytes packed for a .pyc depend on the times of another file."""
    tree = make_tree(tmp_path / "t", {"m.py": File(b"x = 1\n", mtime=1_500_000_000), "__pycache__": {}})
    header = b"\xa7\r\r\n" + bytes(4) + (1_500_000_000).to_bytes(4, "little") + (6).to_bytes(4, "little")
    (tree / "__pycache__" / "m.cpython-311.pyc").write_bytes(header + b"code")
    pack_warm(cache, tree)
    next_tick(tmp_path)
    os.utime(tree / "m.py", (1_600_000_000, 1_600_000_000))
    changes: list[dict[str, Any]] = [{}, {"profile": Profile(mtime=Mtime("fixed", 5))}, {}]
    for options in changes:
        assert pack_warm(cache, tree, **options).blob == pack_cold(tree, **options)[1]


def test_several_sources_and_files(cache: Path, tree: Path, tmp_path: Path) -> None:
    other = make_tree(tmp_path / "other", {"d": {"x": "1"}, "y": "2"})
    sources = (f"{tree}:/srv", f"{other}:/srv", f"{other / 'y'}:/etc/")
    pack_warm(cache, *sources)
    second = pack_warm(cache, *sources)
    assert second.explanation.is_scanned
    assert second.blob == pack_cold(*sources)[1]
    next_tick(tmp_path)
    (other / "y").write_text("3")
    assert pack_warm(cache, *sources).blob == pack_cold(*sources)[1]


def test_extended_attributes(cache: Path, tree: Path) -> None:
    need_user_xattrs(tree)
    options: dict[str, Any] = {"profile": Profile(xattrs=("user.*",))}
    for value in (b"1", b"2"):
        os.setxattr(tree / "d", "user.x", value)
        assert pack_warm(cache, tree, **options).blob == pack_cold(tree, **options)[1]


def test_warnings_are_said_again(cache: Path, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", {"A": "1", "a": "2"})
    first = pack_warm(cache, tree)
    second = pack_warm(cache, tree)
    assert second.explanation.outcome == "whole"
    assert first.warnings == second.warnings
    assert [code for code, _ in second.warnings] == ["case-collision"]


def test_special_files_are_said_again(cache: Path, tree: Path) -> None:
    from detlayer.tree import Selection

    os.mkfifo(tree / "fifo")
    options: dict[str, Any] = {"selection": Selection(special="skip")}
    for _ in range(2):
        warm = pack_warm(cache, tree, **options)
        assert [code for code, _ in warm.warnings] == ["special-skipped"]
        assert warm.blob == pack_cold(tree, **options)[1]


def test_a_depfile_names_everything_each_time(cache: Path, tree: Path, tmp_path: Path) -> None:
    goals = [tmp_path / "o1.tar", tmp_path / "o1.tar"]
    texts = []
    for goal in goals:
        pack_warm(cache, tree, output=goal, compression=None, depfile=tmp_path / "deps")
        texts.append((tmp_path / "deps").read_text())
    assert texts[0] == texts[1]
    assert str(tree / "d" / "e" / "c") in texts[1]


def test_outputs_that_hold_it_stay(cache: Path, tree: Path, tmp_path: Path) -> None:
    """They get a new time for make, and are not written again."""
    out, layout = tmp_path / "out.tar.gz", tmp_path / "layout"
    options: dict[str, Any] = {"output": out, "oci_layout": layout, "compression": None}
    first = pack_warm(cache, tree, **options)
    blob = layout / "blobs" / "sha256" / first.layer.digest.hex
    before = out.stat(), blob.stat()
    os.utime(out, (1, 1))  # its record is no longer valid, so it is read
    second = pack_warm(cache, tree, **options)
    assert second.explanation.kept_outputs == 2
    assert (out.stat().st_ino, blob.stat().st_ino) == (before[0].st_ino, before[1].st_ino)
    assert out.stat().st_mtime > 1
    assert out.read_bytes() == blob.read_bytes() == pack_cold(tree, compression="gzip")[1]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("harm", ["other", "same size", "gone", "directory entry"])
def test_outputs_that_were_harmed_are_written(cache: Path, tree: Path, tmp_path: Path, harm: str) -> None:
    out = tmp_path / "out.tar.gz"
    pack_warm(cache, tree, output=out, compression=None)
    data = out.read_bytes()
    next_tick(tmp_path)
    match harm:
        case "other":
            out.write_bytes(b"something else")
        case "same size":
            status = out.stat()
            out.write_bytes(bytes(len(data)))
            os.utime(out, ns=(status.st_atime_ns, status.st_mtime_ns))
        case "gone":
            out.unlink()
        case _:
            out.unlink()
            out.symlink_to(tmp_path / "elsewhere")
    again = pack_warm(cache, tree, output=out, compression=None)
    assert again.explanation.outcome == "whole"
    assert out.read_bytes() == data


def test_paranoid_reads_and_compresses_all(cache: Path, big: Path) -> None:
    first = pack_warm(cache, big)
    second = pack_warm(cache, big, paranoid=True)
    assert (second.explanation.copied, second.explanation.read) == (0, 121)
    assert second.blob == first.blob
    assert second.warnings == []


def test_paranoid_finds_what_stat_records_do_not_show(
    cache: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system whose ctimes don't change."""
    monkeypatch.setattr("detlayer.packing.content_cache.stat_record_of", lambda status: (3, 1, 1, 1, status.st_ino))
    pack_warm(cache, tree)
    (tree / "a").write_text("uno")
    second = pack_warm(cache, tree, paranoid=True)
    assert [code for code, _ in second.warnings] == ["cache-wrong"]
    assert "1, such as a: " in second.warnings[0][1]
    assert second.blob == pack_cold(tree)[1]


def test_a_directory_that_is_too_large_is_read(cache: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: no records of its files are kept, and none is reported as deleted."""
    monkeypatch.setattr("detlayer.packing.content_cache._MAX_FILES", 2)
    monkeypatch.setattr("detlayer.packing.pack_input._describe", lambda *options: None)
    pack_warm(cache, tree)
    second = pack_warm(cache, tree)
    assert (second.explanation.known, second.explanation.read) == (2, 2)
    assert "gone" not in second.explanation.reasons
    assert second.blob == pack_cold(tree)[1]


def test_a_cache_within_the_tree_is_not_used(tree: Path) -> None:
    warm = pack_warm(tree / ".cache", tree)
    assert [code for code, _ in warm.warnings] == ["cache-unusable"]
    assert not (tree / ".cache").exists()
    assert warm.blob == pack_cold(tree)[1]
    assert pack_warm(tree / ".cache", tree, exclude=[".cache"]).warnings == []


@pytest.mark.parametrize(
    ("ctime_ns", "age_ns", "racy"),
    [
        (1_000_000_001, 49_000_000, True),
        (1_000_000_001, 51_000_000, False),
        (1_000_000_000, 1_999_000_000, True),  # whole seconds: a file system that rounds
        (1_000_000_000, 2_001_000_000, False),
        (1_000_000_001, -1, True),  # the clock was set back
    ],
)
def test_how_young_is_too_young(ctime_ns: int, age_ns: int, racy: bool) -> None:
    """SPEC 10.2."""
    assert is_racy((1, 1, ctime_ns, 1, 1), ctime_ns + age_ns) is racy


# -- the scan and the walk see the same


def test_a_walk_goes_by_what_the_scan_saw(
    cache: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each name is looked up once, even if the scan shows that the tree has changed."""
    pack_warm(cache, tree)
    next_tick(tmp_path)
    (tree / "a").write_text("longer")
    seen: list[bytes] = []
    real = os.lstat

    def lstat(path: bytes, *, dir_fd: int | None = None) -> os.stat_result:
        if dir_fd is not None:
            seen.append(path)
        return real(path, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr("os.lstat", lstat)
        second = pack_warm(cache, tree)
    assert sorted(seen) == [b"a", b"b", b"c", b"d", b"e", b"empty", b"z"]
    assert (second.layer, second.blob) == pack_cold(tree)


@pytest.mark.parametrize("same_size", [True, False])
def test_a_change_between_scan_and_walk(
    cache: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_size: bool
) -> None:
    """SPEC 9.1: the walk packs what the scan saw, or raises an error that names the file."""
    pack_warm(cache, tree)
    next_tick(tmp_path)
    (tree / "z").write_text("another")
    real = PackInput.walk

    def walk_later(self: PackInput, *arguments: Any) -> Walk:
        status = (tree / "a").stat()
        (tree / "a").write_text("uno" if same_size else "much longer")
        os.utime(tree / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(PackInput, "walk", walk_later)
        if not same_size:
            with pytest.raises(TreeError, match="bytes while it was read"):
                pack_warm(cache, tree)
            return
        second = pack_warm(cache, tree)
    for warm in (second, pack_warm(cache, tree)):
        assert (warm.layer, warm.blob) == pack_cold(tree)


def _switch_root(home: Path) -> None:
    (home / "now").unlink()
    (home / "now").symlink_to("two")


def _switch_link(home: Path) -> None:
    (home / "one" / "link").unlink()
    (home / "one" / "link").symlink_to("to/two")


def _make_file_a_directory(home: Path) -> None:
    (home / "file").unlink()
    (home / "file").mkdir()
    (home / "file" / "x").write_text("x")


def _make_directory_a_file(home: Path) -> None:
    shutil.rmtree(home / "directory")
    (home / "directory").write_text("")


@pytest.mark.parametrize(
    "switch", [_switch_root, _switch_link, _make_file_a_directory, _make_directory_a_file], ids=lambda one: one.__name__
)
def test_what_is_another_after_the_scan_is_named(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: Callable[[Path], None]
) -> None:
    """SPEC 9.1: never the stat of one symlink with the target of another, which a later scan would accept."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "link").symlink_to(f"to/{name}")
        (tmp_path / name / "empty").touch()
    (tmp_path / "one" / "file").write_text("in both")
    os.link(tmp_path / "one" / "file", tmp_path / "two" / "file")
    (tmp_path / "now").symlink_to("one")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "directory").mkdir()
    sources = [f"{tmp_path / name}:/{name}" for name in ("now", "file", "directory")]
    pack_warm(cache, tmp_path / "two")
    next_tick(tmp_path)
    real = PackInput.walk

    def walk_later(self: PackInput, *arguments: Any) -> Walk:
        switch(tmp_path)
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(PackInput, "walk", walk_later)
        with pytest.raises(TreeError) as caught:
            pack_warm(cache, *sources)
    assert caught.value.code == "changed-while-read"
    (tmp_path / "now").unlink()
    (tmp_path / "now").symlink_to("one")
    for _ in range(2):
        warm = pack_warm(cache, *sources)
        assert (warm.layer, warm.blob) == pack_cold(*sources)


def test_very_much_is_not_listed(cache: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: above the limit, the walk looks at the tree itself."""
    monkeypatch.setattr(sys.modules["detlayer.tree.scan"], "_MAX_LISTED", 4)
    assert (found := scan([Source(os.fsencode(tree))])) is not None
    assert found.listings is None
    pack_warm(cache, tree)
    next_tick(tmp_path)
    (tree / "d" / "b").write_text("changed")
    warm = pack_warm(cache, tree)
    assert (warm.layer, warm.blob) == pack_cold(tree)


def test_scan_and_walk_agree(tree: Path, tmp_path: Path) -> None:
    other = make_tree(tmp_path / "other", {"d": {"b2": "1", "new": {"x": ""}}, "link": File(b"")})
    options = PackOptions(exclude=["z", "e/"])
    sources = resolve([f"{tree}:/srv", f"{other}:/srv", f"{tree / 'a'}:/etc/a"], options)
    walk = PackInput(sources, Profile(), Selection()).walk(None)
    entries = len(list(walk))
    scanned = scan(sources)
    assert scanned is not None
    assert scanned.snapshot.digest(sources) == walk.snapshot.digest(sources)
    assert (scanned.snapshot.count, scanned.snapshot.size_bytes) == (walk.snapshot.count, walk.snapshot.size_bytes)
    assert entries > 6


def test_a_scan_tells_where_things_are(tmp_path: Path) -> None:
    """Moving a directory changes no file, only their order."""
    tree = make_tree(tmp_path / "tree", {"a": {"x": "", "b": {"y": ""}}})
    sources = [Source(os.fsencode(tree))]
    before = scan(sources)
    stamp = (tree / "a").stat().st_mtime_ns, (tree / "a" / "b").stat().st_mtime_ns
    (tree / "a" / "b").rename(tree / "b")
    os.utime(tree / "a", ns=(0, stamp[0]))
    after = scan(sources)
    assert before is not None
    assert after is not None
    assert before.snapshot.digest(sources) != after.snapshot.digest(sources)


def test_the_store_knows_when_it_was_used(cache: Path, tree: Path) -> None:
    pack_warm(cache, tree, ahead_s=0)
    pack_warm(cache, tree, ahead_s=86400)
    with Store(str(cache), reporter=Words()) as store:
        tables = ("blob", "trace", "tree")
        used = [store.index.rows(f"SELECT max(used) FROM {name}")[0][0] for name in tables]
    assert all(when > time.time() + 80000 for when in used)

"""However the cache is damaged, a pack gives the right bytes; at worst it takes as long as the first."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from detlayer.oci.types import Digest
from detlayer.store import Store
from detlayer.store.maintenance import collect, examine, make_room
from detlayer.store.traces import Trace
from tests.layers import Words
from tests.packing.cached_packs import next_tick, pack_cold, pack_warm
from tests.privileges import mounted
from tests.trees import make_tree
from tests.vectors import counter_bytes

ROUNDS = int(os.environ.get("DETLAYER_KILL_ROUNDS", "12"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """At least two chunks, so that some can be copied."""
    files = {f"f{number:03}": counter_bytes(str(number), 40_000) for number in range(80)}
    return make_tree(tmp_path / "tree", {"lib": files, "large": counter_bytes("large", 5 << 20)})


def blob_of(cache: Path) -> Path:
    (found,) = (cache / "oci" / "blobs" / "sha256").iterdir()
    return found


def flip(path: Path, at: int, count: int = 1) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        data = file.read(count)
        file.seek(at)
        file.write(bytes(byte ^ 0xFF for byte in data))


Harm = Callable[[Path], None]


def _flip_blob(cache: Path) -> None:
    flip(blob_of(cache), blob_of(cache).stat().st_size // 2)


def _flip_blob_in_secret(cache: Path) -> None:
    blob = blob_of(cache)
    status = blob.stat()
    flip(blob, 100)
    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))


def _truncate_blob(cache: Path) -> None:
    os.truncate(blob_of(cache), 1000)


def _empty_blob(cache: Path) -> None:
    os.truncate(blob_of(cache), 0)


def _no_blob(cache: Path) -> None:
    blob_of(cache).unlink()


def _directory_for_blob(cache: Path) -> None:
    blob = blob_of(cache)
    blob.unlink()
    blob.mkdir()


def _link_for_blob(cache: Path) -> None:
    blob = blob_of(cache)
    blob.rename(cache / "moved")
    blob.symlink_to("nowhere")


def _no_index(cache: Path) -> None:
    for path in cache.glob("index.sqlite*"):
        path.unlink()


def _truncate_index(cache: Path) -> None:
    os.truncate(cache / "index.sqlite", 9000)


def _empty_index(cache: Path) -> None:
    os.truncate(cache / "index.sqlite", 0)


def _noise(cache: Path) -> None:
    (cache / "index.sqlite").write_bytes(counter_bytes("noise", 50_000))


def _lying_traces(cache: Path) -> None:
    """The seal detects rows that were changed on disk."""
    connection = sqlite3.connect(cache / "index.sqlite")
    with connection:
        rows = connection.execute("SELECT key, results FROM trace").fetchall()
        for key, results in rows:
            connection.execute("UPDATE trace SET results=? WHERE key=?", (results[:-20] + bytes(20), key))
        connection.execute("UPDATE directory SET records=randomblob(length(records))")
        connection.execute("UPDATE chunk SET spot=zeroblob(length(spot))")
    connection.close()


def _swapped_chunks(cache: Path) -> None:
    """Every chunk has the position of another one."""
    connection = sqlite3.connect(cache / "index.sqlite")
    with connection:
        rows = connection.execute("SELECT key, spot FROM chunk ORDER BY key").fetchall()
        spots = [spot for _, spot in rows]
        for (key, _), spot in zip(rows, spots[1:] + spots[:1], strict=True):
            connection.execute("UPDATE chunk SET spot=? WHERE key=?", (spot, key))
        connection.execute("DELETE FROM trace")
    connection.close()


def _nothing_but_the_index(cache: Path) -> None:
    shutil.rmtree(cache / "oci")


HARMS: list[Harm] = [
    _flip_blob,
    _flip_blob_in_secret,
    _truncate_blob,
    _empty_blob,
    _no_blob,
    _directory_for_blob,
    _link_for_blob,
    _no_index,
    _truncate_index,
    _empty_index,
    _noise,
    _lying_traces,
    _swapped_chunks,
    _nothing_but_the_index,
]


@pytest.mark.parametrize("is_changed", [False, True], ids=["same", "changed"])
@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__.strip("_"))
def test_a_damaged_cache_gives_the_layer_of_a_cold_pack(
    cache: Path, tree: Path, tmp_path: Path, harm: Harm, is_changed: bool
) -> None:
    pack_warm(cache, tree)
    pack_warm(cache, tree)  # again, so that stat records prove all of it
    next_tick(tmp_path)
    harm(cache)
    if is_changed:
        (tree / "lib" / "f040").write_bytes(b"changed")
    cold = pack_cold(tree)
    for _ in range(3):
        warm = pack_warm(cache, tree)
        assert (warm.layer, warm.blob) == cold
        assert {code for code, _ in warm.warnings} <= {"cache-corrupt", "cache-unusable"}
    if harm is not _directory_for_blob or is_changed:
        assert warm.explanation.outcome == "whole"
        assert warm.warnings == []


def test_index_with_random_damage(cache: Path, tree: Path, tmp_path: Path) -> None:
    pack_warm(cache, tree)
    index = cache / "index.sqlite"
    whole = index.read_bytes()
    cold = pack_cold(tree)[1]
    dice = random.Random(7)
    for _ in range(25):
        for path in cache.glob("index.sqlite*"):
            path.unlink()
        index.write_bytes(whole)
        for _ in range(dice.choice([1, 10, 100])):
            flip(index, dice.randrange(len(whole)), dice.choice([1, 16]))
        assert pack_warm(cache, tree).blob == cold


def test_read_only_cache_is_one_warning(tree: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(["-t", "tmpfs", "none"], disk):
        pack_warm(disk / "cache", tree)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        warm = pack_warm(disk / "cache", tree)
    assert [code for code, _ in warm.warnings] == ["cache-unusable"]
    assert warm.blob == pack_cold(tree)[1]


def test_later_schema_is_one_warning(cache: Path, tree: Path) -> None:
    pack_warm(cache, tree)
    connection = sqlite3.connect(cache / "index.sqlite")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    before = (cache / "index.sqlite").read_bytes()
    warm = pack_warm(cache, tree)
    assert [code for code, _ in warm.warnings] == ["cache-newer"]
    assert warm.blob == pack_cold(tree)[1]
    assert (cache / "index.sqlite").read_bytes() == before


@pytest.mark.parametrize("room_kib", [16, 64, 128, 200, 400, 1000, 3000, 6000, 8200, 8400, 9000, 12_000, 17_000])
def test_full_disk(tree: Path, tmp_path: Path, room_kib: int) -> None:
    """At each size, another write hits the full disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    cold = pack_cold(tree)[1]
    with mounted(["-t", "tmpfs", "-o", f"size={room_kib}k", "none"], disk):
        for number in range(3):
            warm = pack_warm(disk / "cache", tree)
            assert warm.blob == cold
            assert {code for code, _ in warm.warnings} <= {"cache-unusable"}
            assert len(warm.warnings) <= 1, number
        assert list(disk.glob("cache/incoming/*")) == []


def test_the_output_needs_the_room_more(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that would fill the disk is abandoned without a warning."""
    monkeypatch.setattr("detlayer.packing.cache_copy._CHECK_BYTES", 1 << 20)
    monkeypatch.setattr("detlayer.store.blobs.Incoming.free_bytes", lambda self: 1 << 20)
    warm = pack_warm(tmp_path / "cache", tree)
    assert warm.blob == pack_cold(tree)[1]
    assert warm.warnings == []
    assert list((tmp_path / "cache" / "incoming").iterdir()) == []
    assert pack_warm(tmp_path / "cache", tree).explanation.outcome == "cold"


# -- many processes

PACK = """
import sys
from detlayer.cli import run
sys.exit(run(["pack", sys.argv[1] + ":/app", "-c", "gzip:1", "-o", sys.argv[2], "--cache-dir", sys.argv[3], "-q"]))
"""


def start(tree: Path, output: Path, cache: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PACK, tree, output, cache], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_processes_pack_the_same_and_other_trees_at_once(cache: Path, tree: Path, tmp_path: Path) -> None:
    other = make_tree(tmp_path / "other", {"x": counter_bytes("x", 3 << 20), "y": "1"})
    colds = {path: pack_cold(f"{path}:/app")[1] for path in (tree, other)}
    for _ in range(2):
        running = [
            (one, tmp_path / f"{number}.tgz", start(one, tmp_path / f"{number}.tgz", cache))
            for number, one in enumerate([tree, other, tree, other])
        ]
        for one, output, process in running:
            out, err = process.communicate()
            assert (process.returncode, err) == (0, b""), out
            assert output.read_bytes() == colds[one]
    assert list((cache / "leases").iterdir()) == []
    assert list((cache / "incoming").iterdir()) == []


def test_killed_at_any_moment(cache: Path, tree: Path, tmp_path: Path) -> None:
    """kill -9, repeatedly while the tree changes: the cache is never wrong afterwards."""
    dice = random.Random(11)
    output = tmp_path / "out.tgz"
    for number in range(ROUNDS):
        (tree / "lib" / f"f{number % 80:03}").write_bytes(b"%d" % number * dice.randrange(1, 5000))
        process = start(tree, output, cache)
        try:
            process.wait(timeout=dice.uniform(0.05, 0.5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        if number % 4 == 3:
            warm = pack_warm(cache, f"{tree}:/app", ahead_s=0)
            assert warm.blob == pack_cold(f"{tree}:/app")[1]
            assert warm.warnings == []
    with Store(str(cache), reporter=Words()) as store:
        collect(store, max_age_s=86400)
        assert list((cache / "incoming").iterdir()) == []
        health = examine(store)
        assert health.is_sound
        assert health.corrupt == []


# -- collecting


def test_what_a_running_process_uses_stays(cache: Path, tree: Path) -> None:
    layer = pack_warm(cache, tree).layer
    with Store(str(cache)) as user, Store(str(cache)) as cleaner:
        assert user.blobs.pin(layer.digest)
        kept = collect(cleaner, max_bytes=0)
        assert (kept.blobs, kept.in_use) == (0, 1)
        assert user.blobs.is_intact(layer.digest)
        user.close()
        assert collect(cleaner, max_bytes=0).blobs == 1
    assert pack_warm(cache, tree).explanation.outcome == "cold"


def test_a_lease_of_a_killed_process_holds_nothing(cache: Path, tree: Path) -> None:
    layer = pack_warm(cache, tree).layer
    script = (
        "import os, signal, sys\n"
        "from detlayer.oci.types import Digest\n"
        "from detlayer.store import Store\n"
        "store = Store(sys.argv[1])\n"
        "assert store.blobs.pin(Digest(sys.argv[2]))\n"
        "store.blobs.incoming().write(b'half')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, cache, layer.digest.hex], check=False)
    assert len(list((cache / "leases").iterdir())) == len(list((cache / "incoming").iterdir())) == 1
    with Store(str(cache)) as store:
        assert collect(store, max_bytes=0).blobs == 1
    assert list((cache / "leases").iterdir()) == []
    assert list((cache / "incoming").iterdir()) == []


def test_half_written_blobs_go_with_the_next_pack(cache: Path, tree: Path) -> None:
    (cache / "incoming").mkdir(parents=True)
    (cache / "incoming" / "0123456789abcdef-000000000000").write_bytes(b"half")
    with Store(str(cache)) as other:
        writing = other.blobs.incoming()
        pack_warm(cache, tree)
        assert len(list((cache / "incoming").iterdir())) == 1
        writing.discard()


def test_the_least_recently_used_goes_first(cache: Path, tmp_path: Path) -> None:
    trees = [make_tree(tmp_path / name, {"x": counter_bytes(name, 100_000)}) for name in "abc"]
    digests = [pack_warm(cache, one, ahead_s=at * 10_000).layer.digest for at, one in enumerate(trees)]
    pack_warm(cache, trees[0], ahead_s=50_000)
    with Store(str(cache)) as store:
        assert collect(store, max_bytes=250_000).blobs == 1
        assert [store.blobs.has(one) for one in digests] == [True, False, True]
        assert make_room(store, 1 << 30) is None
        done = make_room(store, 150_000)
        assert done is not None
        assert done.blobs == 1
        assert [store.blobs.has(one) for one in digests] == [True, False, False]


def test_start_up_does_not_grow_with_the_store(cache: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pack does not list the blobs."""
    pack_warm(cache, tree)
    monkeypatch.setattr("detlayer.store.blobs.Blobs.all", lambda self: pytest.fail("blobs were listed"))
    assert pack_warm(cache, tree).explanation.is_scanned


def test_verify_finds_and_drops(cache: Path, tree: Path) -> None:
    layer = pack_warm(cache, tree).layer
    _flip_blob(cache)
    with Store(str(cache)) as store:
        found = examine(store)
        assert found.corrupt == [layer.digest]
        assert not found.is_sound
        assert examine(store).is_sound
        assert store.index.rows("SELECT count(*) FROM chunk") == [(0,)]
        assert not store.blobs.has(Digest(layer.digest.hex))


def test_a_blob_is_synced_before_it_is_believed(cache: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPEC 10.4: what a power cut may have damaged is read again; a pack does not wait for the disk."""
    synced: list[int] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    first = pack_warm(cache, tree)
    blob = blob_of(cache).stat().st_ino
    assert blob not in synced
    assert pack_warm(cache, tree).blob == first.blob
    assert synced.count(blob) == 1
    assert pack_warm(cache, tree).blob == first.blob
    assert synced.count(blob) == 1


@pytest.mark.parametrize("results", [b"\xff", b"null", b"blake3:none", b"../../../beside", b"digest", b"diff_id"])
def test_traces_that_are_none(cache: Path, tree: Path, tmp_path: Path, results: bytes) -> None:
    """As in an imported file: an invalid digest names no file, in particular none to be removed."""
    beside = tmp_path / "beside"
    beside.write_text("not ours")
    pack_warm(cache, tree)
    with Store(str(cache)) as store:
        for key, step in store.index.rows("SELECT key, step FROM trace"):
            made = results
            if step.startswith("pack/1") and results in (b"digest", b"diff_id"):
                known = msgspec.json.decode(store.traces.get(key, 0) or b"")
                made = msgspec.json.encode({**known, results.decode(): "../../../../beside"})
            store.traces.put(Trace(key, step, made), 0)
    other = tmp_path / "other"
    shutil.copytree(tree, other)
    for one in (tree, other):
        warm = pack_warm(cache, one)
        assert (warm.layer, warm.blob) == pack_cold(one)
        assert warm.warnings == []
    assert beside.read_text() == "not ours"

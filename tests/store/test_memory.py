"""The store's memory of registries: facts of bounded age, uploads, documents; failures are cache misses."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from detlayer.oci.ports import BlobLocation, Memory, Session
from detlayer.oci.references import RepositoryName
from detlayer.oci.types import Digest, digest_of
from detlayer.store import Store
from detlayer.store.index import SCHEMA
from tests.layers import Words
from tests.privileges import mounted

APP = RepositoryName("registry.example:5000", "team/app")
LIB = RepositoryName("registry.example:5000", "team/lib")
ONE, TWO = digest_of(b"one"), digest_of(b"two")


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def words() -> Words:
    return Words()


def open_store(path: Path, clock: Clock, words: Words) -> Store:
    return Store(str(path / "cache"), reporter=words, clock=clock)


def test_facts_last_from_run_to_run(tmp_path: Path, clock: Clock, words: Words) -> None:
    with open_store(tmp_path, clock, words) as store:
        memory: Memory = store.memory
        memory.remember("user:a", [BlobLocation(APP, ONE, "uploaded"), BlobLocation(LIB, ONE, "seen")])
        clock.now += 10
        memory.remember("user:a", [BlobLocation(LIB, TWO, "mounted")])
    with open_store(tmp_path, clock, words) as store:
        memory = store.memory
        assert sorted(memory.locations(APP.registry, "user:a", [ONE])) == [
            BlobLocation(APP, ONE, "uploaded"),
            BlobLocation(LIB, ONE, "seen"),
        ]
        assert memory.locations(APP.registry, "user:a", [ONE, TWO])[0] == BlobLocation(LIB, TWO, "mounted")
        assert memory.locations(APP.registry, "anonymous", [ONE]) == []
        assert memory.locations("other.example", "user:a", [ONE]) == []
        memory.forget("user:a", APP, [ONE])
        assert memory.locations(APP.registry, "user:a", [ONE]) == [BlobLocation(LIB, ONE, "seen")]
        memory.remember("user:b", [BlobLocation(LIB, ONE, "uploaded")])
        memory.remember("user:a", [BlobLocation(APP, ONE, "uploaded")])
        memory.forget("user:a", LIB)
        assert memory.locations(APP.registry, "user:a", [ONE, TWO]) == [BlobLocation(APP, ONE, "uploaded")]
        assert memory.locations(APP.registry, "user:b", [ONE]) == [BlobLocation(LIB, ONE, "uploaded")]
    assert words.warnings == []


@pytest.mark.parametrize("later_s", [6 * 3600 + 1, -3600], ids=["old", "clock-set-back"])
def test_facts_end(tmp_path: Path, clock: Clock, words: Words, later_s: int) -> None:
    with open_store(tmp_path, clock, words) as store:
        store.memory.remember("a", [BlobLocation(APP, ONE, "seen")])
        clock.now += later_s
        assert store.memory.locations(APP.registry, "a", [ONE]) == []
        store.memory.remember("a", [BlobLocation(APP, TWO, "seen")])
        assert store.index.rows("SELECT count(*) FROM place") == [(1,)]


def test_many_digests_at_once(tmp_path: Path, clock: Clock, words: Words) -> None:
    digests = [digest_of(b"%d" % number) for number in range(1500)]
    with open_store(tmp_path, clock, words) as store:
        store.memory.remember("a", [BlobLocation(APP, one, "seen") for one in digests])
        assert len(store.memory.locations(APP.registry, "a", digests)) == 1500


def test_sessions(tmp_path: Path, clock: Clock, words: Words) -> None:
    with open_store(tmp_path, clock, words) as store:
        memory: Memory = store.memory
        assert memory.session("a", APP, ONE) is None
        memory.keep_session("a", APP, ONE, Session("/v2/x?_state=1", 0))
        memory.keep_session("a", APP, ONE, Session("/v2/x?_state=2", 4096))
        assert memory.session("a", APP, ONE) == Session("/v2/x?_state=2", 4096)
        assert memory.session("b", APP, ONE) is None
        assert memory.session("a", LIB, ONE) is None
        memory.keep_session("a", APP, TWO, Session("/v2/y", 1))
        memory.keep_session("a", APP, ONE, None)
        assert memory.session("a", APP, ONE) is None
        clock.now += 25 * 3600
        assert memory.session("a", APP, TWO) is None


def test_documents_are_what_their_digest_says(tmp_path: Path, clock: Clock, words: Words) -> None:
    data = b'{"schemaVersion":2}'
    with open_store(tmp_path, clock, words) as store:
        assert store.memory.document(digest_of(data)) is None
        store.memory.keep_document(data)
        store.memory.keep_document(data)
        assert store.memory.document(digest_of(data)) == data
        Path(store.blobs.path(digest_of(data))).write_bytes(b'{"schemaVersion":3}')
        assert store.memory.document(digest_of(data)) is None
        store.memory.keep_document(data)
        assert store.memory.document(digest_of(data)) == data
    assert [code for code, _ in words.warnings] == ["cache-corrupt"]


def test_nothing_is_touched_before_a_question(tmp_path: Path, clock: Clock, words: Words) -> None:
    with open_store(tmp_path, clock, words) as store:
        assert store.memory.document(ONE) is None
        store.memory.remember("a", [])
        store.memory.forget("a", APP, [])
    assert list(tmp_path.iterdir()) == []
    script = "import sys; from detlayer.store import Store; Store('x'); print('sqlite3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"


def test_nobody_else_may_look(tmp_path: Path, clock: Clock, words: Words) -> None:
    with open_store(tmp_path, clock, words) as store:
        store.memory.keep_document(b"{}")
        store.memory.remember("a", [BlobLocation(APP, ONE, "seen")])
        assert stat.S_IMODE(os.stat(store.directory).st_mode) == 0o700
        assert stat.S_IMODE(os.stat(store.index.path).st_mode) == 0o600


def test_threads_share_a_memory(tmp_path: Path, clock: Clock, words: Words) -> None:
    with open_store(tmp_path, clock, words) as store, ThreadPoolExecutor(8) as pool:

        def use(number: int) -> list[BlobLocation]:
            one = digest_of(b"%d" % number)
            store.memory.remember("a", [BlobLocation(APP, one, "seen")])
            store.memory.keep_session("a", APP, one, Session("/x", number))
            store.memory.keep_document(b"%d" % (number % 5))
            return store.memory.locations(APP.registry, "a", [one])

        assert [len(found) for found in pool.map(use, range(100))] == [1] * 100
    assert words.warnings == []


PROCESS = """
import sys
from detlayer.oci.references import RepositoryName
from detlayer.oci.types import digest_of
from detlayer.oci.ports import BlobLocation
from detlayer.store import Store
who = sys.argv[2]
class Loud:
    def progress(self, entries, tar_bytes): raise AssertionError
    def warning(self, code, message): raise AssertionError(message)
with Store(sys.argv[1], reporter=Loud()) as store:
    name = RepositoryName("r.example", "a")
    for number in range(30):
        store.memory.remember("a", [BlobLocation(name, digest_of(f"{who}:{number}".encode()), "seen")])
        store.memory.keep_document(b"%d" % number)
"""


def test_processes_share_a_memory(tmp_path: Path) -> None:
    """They start at the same time in a directory that does not exist yet."""
    cache = tmp_path / "cache"
    running = [subprocess.Popen([sys.executable, "-c", PROCESS, str(cache), str(who)]) for who in range(6)]
    assert [process.wait() for process in running] == [0] * 6
    with Store(str(cache)) as store:
        assert store.index.rows("SELECT count(*) FROM place") == [(180,)]
        assert {store.memory.document(digest_of(b"%d" % number)) for number in range(30)} == {
            b"%d" % number for number in range(30)
        }
    assert list((cache / "leases").iterdir()) == []


# -- faults


def filled(path: Path, clock: Clock, words: Words) -> Path:
    with open_store(path, clock, words) as store:
        store.memory.remember("a", [BlobLocation(APP, digest_of(b"%d" % number), "seen") for number in range(2000)])
    return path / "cache" / "index.sqlite"


@pytest.mark.parametrize("keep", [0, 10, 100, 5000, 20_000, -1000])
def test_a_truncated_index_is_made_anew(tmp_path: Path, clock: Clock, words: Words, keep: int) -> None:
    file = filled(tmp_path, clock, words)
    file.write_bytes(file.read_bytes()[:keep])
    with open_store(tmp_path, clock, words) as store:
        store.memory.locations(APP.registry, "a", [digest_of(b"%d" % number) for number in range(2000)])
        store.memory.remember("a", [BlobLocation(APP, ONE, "seen")])
        store.memory.remember("a", [BlobLocation(APP, ONE, "seen")])
        assert store.memory.locations(APP.registry, "a", [ONE]) == [BlobLocation(APP, ONE, "seen")]
    assert words.warnings == []


def test_an_index_of_noise_is_made_anew(tmp_path: Path, clock: Clock, words: Words) -> None:
    file = filled(tmp_path, clock, words)
    file.write_bytes(b"no database at all" * 5000)
    with open_store(tmp_path, clock, words) as store:
        store.memory.remember("a", [BlobLocation(APP, ONE, "seen")])
        assert store.memory.locations(APP.registry, "a", [ONE]) == [BlobLocation(APP, ONE, "seen")]
    assert words.warnings == []


def test_damage_that_shows_late_is_mended(tmp_path: Path, clock: Clock, words: Words) -> None:
    file = filled(tmp_path, clock, words)
    data = bytearray(file.read_bytes())
    data[8192:] = bytes(len(data) - 8192)
    file.write_bytes(data)
    with open_store(tmp_path, clock, words) as store:
        digests = [digest_of(b"%d" % number) for number in range(2000)]
        assert store.memory.locations(APP.registry, "a", digests) == []
        store.memory.remember("a", [BlobLocation(APP, ONE, "seen")])
        store.memory.remember("a", [BlobLocation(APP, ONE, "seen")])
        assert store.memory.locations(APP.registry, "a", [ONE]) == [BlobLocation(APP, ONE, "seen")]
    assert words.warnings == []


def test_two_that_find_it_broken_agree(tmp_path: Path, clock: Clock, words: Words) -> None:
    """One replaces it, the other uses the result: no file in use is removed."""
    file = filled(tmp_path, clock, words)
    with open_store(tmp_path, clock, words) as one, open_store(tmp_path, clock, words) as two:
        assert one.index.is_usable
        assert two.index.is_usable
        one.index._let_go()
        two.index._let_go()
        file.write_bytes(b"noise" * 5000)
        one.index._open()
        two.index._open()
        one.memory.remember("a", [BlobLocation(APP, ONE, "seen")])
        assert two.memory.locations(APP.registry, "a", [ONE]) == [BlobLocation(APP, ONE, "seen")]
    assert words.warnings == []


def test_a_later_schema_is_left_alone(tmp_path: Path, clock: Clock, words: Words) -> None:
    file = filled(tmp_path, clock, words)
    connection = sqlite3.connect(file)
    connection.execute(f"PRAGMA user_version={SCHEMA + 1}")
    connection.close()
    before = file.read_bytes()
    with open_store(tmp_path, clock, words) as store:
        store.memory.remember("a", [BlobLocation(APP, ONE, "seen")])
        assert store.memory.locations(APP.registry, "a", [ONE]) == []
        store.memory.keep_session("a", APP, ONE, Session("/x", 1))
    assert [code for code, _ in words.warnings] == ["cache-newer"]
    assert file.read_bytes() == before


def test_an_earlier_schema_is_replaced(tmp_path: Path, clock: Clock, words: Words) -> None:
    file = filled(tmp_path, clock, words)
    file.unlink()
    connection = sqlite3.connect(file)
    connection.executescript("CREATE TABLE other (x); PRAGMA user_version=0;")
    connection.close()
    with open_store(tmp_path, clock, words) as store:
        store.memory.remember("a", [BlobLocation(APP, ONE, "seen")])
        assert store.memory.locations(APP.registry, "a", [ONE]) == [BlobLocation(APP, ONE, "seen")]
    assert words.warnings == []


def use_all(store: Store) -> None:
    store.memory.remember("a", [BlobLocation(APP, ONE, "seen")])
    assert store.memory.locations(APP.registry, "a", [ONE]) == []
    store.memory.forget("a", APP, [ONE])
    store.memory.keep_session("a", APP, ONE, Session("/x", 1))
    assert store.memory.session("a", APP, ONE) is None
    store.memory.keep_document(b"{}")
    assert store.memory.document(digest_of(b"{}")) is None


def test_read_only_is_one_warning(tmp_path: Path, clock: Clock, words: Words) -> None:
    with mounted(["-t", "tmpfs", "-o", "ro", "none"], tmp_path):
        use_all(open_store(tmp_path, clock, words))
    assert [code for code, _ in words.warnings] == ["cache-unusable"]


def test_a_directory_that_turned_read_only_is_one_warning(tmp_path: Path, clock: Clock, words: Words) -> None:
    cache = tmp_path / "disk"
    cache.mkdir()
    with mounted(["-t", "tmpfs", "none"], cache):
        filled(cache, clock, words)
        subprocess.run(["mount", "-o", "remount,ro", cache], check=True)
        use_all(open_store(cache, clock, words))
    assert [code for code, _ in words.warnings] == ["cache-unusable"]


def test_no_directory_is_one_warning(tmp_path: Path, clock: Clock, words: Words) -> None:
    (tmp_path / "cache").write_text("a file")
    use_all(open_store(tmp_path, clock, words))
    assert [code for code, _ in words.warnings] == ["cache-unusable"]


def test_a_full_disk_is_one_warning(tmp_path: Path, clock: Clock, words: Words) -> None:
    with mounted(["-t", "tmpfs", "-o", "size=256k", "none"], tmp_path):
        with open_store(tmp_path, clock, words) as store:
            for number in range(200):
                digests = [digest_of(b"%d:%d" % (number, each)) for each in range(100)]
                store.memory.remember("a", [BlobLocation(APP, one, "seen") for one in digests])
            store.memory.keep_document(os.urandom(1 << 20))
        assert [code for code, _ in words.warnings] == ["cache-unusable"]
        assert list(tmp_path.glob("cache/incoming/*")) == []


def test_a_locked_index_is_a_miss(tmp_path: Path, clock: Clock, words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detlayer.store.index._BUSY_S", 0.01)
    filled(tmp_path, clock, words)
    with open_store(tmp_path, clock, words) as store, open_store(tmp_path, clock, words) as other:
        assert other.index.is_usable
        other.index._connection.execute("BEGIN IMMEDIATE")  # type: ignore[union-attr]
        store.memory.remember("a", [BlobLocation(APP, ONE, "seen")])
        assert store.memory.locations(APP.registry, "a", [ONE]) == []
        assert store.memory.locations(APP.registry, "a", [digest_of(b"7")]) != []
        other.index._connection.execute("ROLLBACK")  # type: ignore[union-attr]
        store.memory.remember("a", [BlobLocation(APP, ONE, "seen")])
        assert store.memory.locations(APP.registry, "a", [ONE]) == [BlobLocation(APP, ONE, "seen")]
    assert [code for code, _ in words.warnings] == ["cache-locked"]


def test_hex_of_a_digest_is_what_is_kept(tmp_path: Path, clock: Clock, words: Words) -> None:
    with open_store(tmp_path, clock, words) as store:
        store.memory.remember("a", [BlobLocation(APP, ONE, "seen")])
        assert store.index.rows("SELECT digest FROM place") == [(ONE.hex,)]
        assert Digest(ONE.hex) == ONE


def test_threads_that_are_late_open_nothing_again(tmp_path: Path, clock: Clock, words: Words) -> None:
    """Files left by an interrupted run."""
    store = open_store(tmp_path, clock, words)
    with store:
        store.memory.remember("user:a", [BlobLocation(APP, ONE, "uploaded")])
    store.memory.remember("user:a", [BlobLocation(APP, TWO, "uploaded")])
    store.memory.keep_session("user:a", APP, TWO, Session("https://registry.example/u", 1))
    assert store.memory.locations(APP.registry, "user:a", [ONE, TWO]) == []
    with open_store(tmp_path, clock, words) as again:
        assert again.memory.locations(APP.registry, "user:a", [ONE, TWO]) == [BlobLocation(APP, ONE, "uploaded")]
    assert words.warnings == []


def test_an_index_that_stays_locked_is_waited_for_once(
    tmp_path: Path, clock: Clock, words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Facts that can't be written are lost. The user is told once, and nobody waits again."""
    monkeypatch.setattr("detlayer.store.index._BUSY_S", 0.01)
    facts = [BlobLocation(APP, digest_of(bytes([number])), "uploaded") for number in range(5)]
    with open_store(tmp_path, clock, words) as store:
        store.memory.remember("user:a", facts[:1])
        other = sqlite3.connect(tmp_path / "cache" / "index.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        waits = "SELECT timeout FROM pragma_busy_timeout"
        assert store.index.rows(waits) == [(10,)]
        for fact in facts[1:3]:
            store.memory.remember("user:a", [fact])
            assert store.index.rows(waits) == [(0,)]
        assert [code for code, _ in words.warnings] == ["cache-locked"]
        other.execute("ROLLBACK")
        store.memory.remember("user:a", facts[3:4])
        assert store.index.rows(waits) == [(10,)]
        other.close()
        known = {one.digest for one in store.memory.locations(APP.registry, "user:a", [one.digest for one in facts])}
        assert known == {facts[0].digest, facts[3].digest}

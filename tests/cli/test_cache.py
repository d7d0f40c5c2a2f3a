"""Transcripts of `detlayer cache`, and what `pack` prints about the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from detlayer.store import Store
from tests.cli.test_pack import Caller, call, detlayer
from tests.packing.cached_packs import next_tick
from tests.privileges import program
from tests.trees import make_tree
from tests.vectors import counter_bytes

__all__ = ["call"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_tree(tmp_path / "app", {"a": "1", "b": counter_bytes("b", 100_000)})
    make_tree(tmp_path / "lib", {"c": counter_bytes("c", 50_000)})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETLAYER_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def pack(call: Caller, tree: str = "app", *more: str) -> str:
    found = call("pack", tree, "-o", f"{tree}.tgz", *more)
    assert found.code == 0, found.err
    return found.out.strip()


def test_explain(project: Path, call: Caller) -> None:
    first = call("pack", "app", "-o", "x.tgz", "-q", "--explain")
    assert first.err.startswith("reused nothing: the cache has no gzip-libdeflate-6 layer\n")
    next_tick(project)
    (project / "app" / "a").write_text("22")
    second = call("pack", "app", "-o", "x.tgz", "-q", "--explain")
    assert second.err == (
        "reused nothing: the tree has changed\n"
        "  files known by their stat records: 0; read: 2, unchanged 1\n"
        "  a has a different size\n"
    )
    third = call("pack", "app", "-o", "x.tgz", "-q", "--explain")
    assert third.err.startswith("reused the whole layer: nothing was compressed\n  outputs that were up to date: 1\n")
    assert third.out == second.out


def test_where_the_cache_is(project: Path, call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(call, "app", "--cache-dir", "mine")
    assert (project / "mine" / "oci" / "oci-layout").exists()
    assert not (project / "cache").exists()
    pack(call, "app", "--no-cache")
    assert not (project / "cache").exists()
    pack(call)
    assert (project / "cache" / "index.sqlite").exists()
    monkeypatch.delenv("DETLAYER_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "xdg"))
    pack(call)
    assert (project / "xdg" / "detlayer" / "index.sqlite").exists()


def test_info(project: Path, call: Caller) -> None:
    pack(call)
    pack(call, "lib")
    found = json.loads(call("cache", "info", "--json").out)
    assert (found["blobs"], found["trees"], found["in_use"]) == (2, 2, 0)
    assert found["blob_bytes"] > 100_000
    assert call("cache", "info").out.startswith(f"directory  {project / 'cache'}\nblobs      2, ")


def test_gc_verify_and_clear(project: Path, call: Caller) -> None:
    digest = pack(call)
    pack(call, "lib")
    assert call("cache", "gc").out.startswith("removed 0 blobs")
    assert json.loads(call("cache", "gc", "--max-size", "60K", "--json").out)["blobs"] == 1
    pack(call)
    blob = project / "cache" / "oci" / "blobs" / "sha256" / digest.removeprefix("sha256:")
    blob.write_bytes(bytes(blob.stat().st_size))
    found = call("cache", "verify")
    assert found.code == 1
    assert found.out.startswith(f"corrupt, removed: {digest}\n")
    assert call("cache", "verify").code == 0
    assert call("cache", "clear").out.endswith("0 are left, 0 bytes\n")
    assert pack(call) == digest


def test_gc_keeps_blobs_in_use(project: Path, call: Caller) -> None:
    from detlayer.oci.types import parse_digest

    digest = pack(call)
    with Store(str(project / "cache")) as store:
        store.blobs.pin(parse_digest(digest))
        found = call("cache", "gc", "--max-size", "0")
        assert found.out.startswith("removed 0 blobs")
        assert found.err == "1 more blobs are in use and were kept\n"


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["gc", "--max-size", "much"], 2, "cache-size"),
        (["gc", "--max-age", "long"], 2, "cache-age"),
        (["export", "x.tar", "--only", "app"], 2, "cache-only"),
        (["export", "x.tar", "--only", "sha256:" + "0" * 64], 7, "cache-lacks"),
        (["import", "nothing"], 2, "cache-file"),
        (["import", "app.tgz"], 3, "tar-garbage"),
        (["info", "--cache-dir", "app.tgz"], 7, "cache-closed"),
        (["export", "-", "--json"], 2, "stdout-twice"),
        (["polish"], 2, "usage"),
    ],
)
def test_errors(project: Path, call: Caller, arguments: list[str], code: int, error: str) -> None:
    pack(call)
    found = call("cache", *arguments)
    assert found.code == code, found.err
    assert error in found.err or error == "tar-garbage"
    assert not (project / "x.tar").exists()


def test_export_is_deterministic_and_import_warms_the_cache(project: Path, call: Caller) -> None:
    """As in CI: the checkout and its times are new, and nothing is compressed."""
    digest = pack(call)
    pack(call, "lib")
    assert call("cache", "export", "one.tar").code == 0
    next_tick(project)
    os.utime(project / "app" / "a")
    assert call("cache", "export", "two.tar").code == 0
    assert (project / "one.tar").read_bytes() == (project / "two.tar").read_bytes()
    assert call("cache", "import", "one.tar", "--cache-dir", "new").out == "imported 2 new blobs\n"
    assert call("cache", "import", "one.tar", "--cache-dir", "new").out == "imported 0 new blobs\n"
    call("cache", "export", "three.tar", "--cache-dir", "new")
    assert (project / "one.tar").read_bytes() == (project / "three.tar").read_bytes()
    subprocess.run(["cp", "-r", "app", "checkout"], check=True)
    found = call("pack", "checkout", "-o", "x.tgz", "--cache-dir", "new", "--explain")
    assert found.out.strip() == digest
    assert found.err.startswith("reused the whole layer: nothing was compressed\n")


def test_export_of_what_a_build_used(project: Path, call: Caller) -> None:
    pack(call)
    pack(call, "lib", "--descriptor", "lib.json")
    digest = json.loads((project / "lib.json").read_text())["digest"]
    assert call("cache", "export", "some.tar", "--only", "lib.json").out == "exported 1 blobs to some.tar\n"
    call("cache", "export", "same.tar", "--only", digest)
    assert (project / "some.tar").read_bytes() == (project / "same.tar").read_bytes()
    with tarfile.open(project / "some.tar") as archive:
        names = archive.getnames()
    assert names == [
        "blobs",
        "blobs/sha256",
        f"blobs/sha256/{digest.removeprefix('sha256:')}",
        "detlayer-cache.json",
        "index.json",
        "oci-layout",
    ]


def test_export_to_stdout(project: Path) -> None:
    environment = {"DETLAYER_CACHE_DIR": str(project / "cache")}
    detlayer("pack", "app", "-o", "app.tgz", env=environment)
    script = "detlayer cache export - | detlayer cache import - --cache-dir new"
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    done = subprocess.run(
        ["sh", "-c", script], env={**environment, "PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "imported 1 new blobs\n"


@pytest.mark.parametrize("harm", ["blob", "json", "format", "cut", "escape", "none"])
def test_import_of_an_invalid_file(project: Path, call: Caller, harm: str) -> None:
    """A manipulated file imports only blobs that match their digests."""
    pack(call)
    call("cache", "export", "good.tar")
    data = bytearray((project / "good.tar").read_bytes())
    at = data.index(b'{"format":"detlayer-cache/1"')
    match harm:
        case "blob":
            data[3000] ^= 1
        case "json":
            data[at] = 0x5B
        case "format":
            data[data.index(b"cache/1") + 6] = 0x39
        case "cut":
            del data[20_000:]
        case "escape":
            name = data.index(b"blobs/sha256/", 1024)
            data[name : name + 20] = b"../../../../escape.."
        case _:
            data = bytearray(1024)
    (project / "bad.tar").write_bytes(data)
    found = call("cache", "import", "bad.tar", "--cache-dir", "new")
    assert found.code == 3, found.err
    assert list((project / "new").glob("incoming/*")) == []
    with Store(str(project / "new")) as store:
        assert store.index.rows("SELECT count(*) FROM trace") == [(0,)]
        for one, _ in store.blobs.all():
            assert store.blobs.check(one)


def test_other_tools_read_the_layout(project: Path, call: Caller) -> None:
    pack(call)
    done = subprocess.run(
        [program("umoci"), "ls", "--layout", str(project / "cache" / "oci")], capture_output=True, check=True
    )
    assert done.stdout == b""

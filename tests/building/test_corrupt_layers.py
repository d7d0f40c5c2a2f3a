"""A cached blob changes without its stat record: it is made again, and never copied to an output."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detlayer.cli import run
from detlayer.oci.types import Digest
from detlayer.store import LostBlobError, Store
from detlayer.store.maintenance import examine
from detlayer.store.stat_record import stat_record_of
from detlayer.store.verified_files import prove
from tests.building.project_bench import APP, Bench, Built
from tests.layers import Words
from tests.packing.cached_packs import pack_cold, pack_warm
from tests.privileges import program
from tests.trees import make_tree
from tests.vectors import counter_bytes

Rot = Callable[[Path, Digest], None]


def prove_again(cache: Path, digest: Digest) -> None:
    """Make the index trust the current contents of a file, as if its stat record were unchanged."""
    with Store(str(cache)) as store:
        path = Path(store.blobs.path(digest))
        stamp = stat_record_of(path.stat())
        proof = prove(stamp, stamp[2] + 10**12, digest)
        store.index.write(("UPDATE blob SET proof=? WHERE digest=?", [(proof, digest.hex)]))
        assert store.blobs.is_intact(digest)


def flip_first(cache: Path, digest: Digest) -> None:
    _rewrite(cache, digest, lambda data: bytes([data[0] ^ 1]) + data[1:])


def flip_middle(cache: Path, digest: Digest) -> None:
    _rewrite(cache, digest, lambda data: data[: len(data) // 2] + b"\xff\x00" + data[len(data) // 2 + 2 :])


def flip_last(cache: Path, digest: Digest) -> None:
    _rewrite(cache, digest, lambda data: data[:-1] + bytes([data[-1] ^ 1]))


def zeros(cache: Path, digest: Digest) -> None:
    _rewrite(cache, digest, lambda data: bytes(len(data)))


def cut_short(cache: Path, digest: Digest) -> None:
    _rewrite(cache, digest, lambda data: data[:-10])


def longer(cache: Path, digest: Digest) -> None:
    _rewrite(cache, digest, lambda data: data + b"more")


def _rewrite(cache: Path, digest: Digest, change: Callable[[bytes], bytes]) -> None:
    path = cache / "oci" / "blobs" / "sha256" / digest.hex
    path.write_bytes(change(path.read_bytes()))
    prove_again(cache, digest)


ROTS: list[Rot] = [flip_first, flip_middle, flip_last, zeros, cut_short, longer]
rots = pytest.mark.parametrize("rot", ROTS, ids=lambda rot: rot.__name__)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    files = {f"f{number:03}": counter_bytes(str(number), 40_000) for number in range(80)}
    return make_tree(tmp_path / "tree", {"lib": files, "large": counter_bytes("large", 5 << 20)})


# -- pack


@rots
@pytest.mark.parametrize("where", ["file", "stream", "layout", "both", "device"])
def test_pack_never_copies_a_corrupt_layer(cache: Path, tree: Path, tmp_path: Path, rot: Rot, where: str) -> None:
    layer, blob = pack_cold(tree)
    pack_warm(cache, tree)
    rot(cache, layer.digest)
    out, layout, stream = tmp_path / "out.tar.gz", tmp_path / "layout", io.BytesIO()
    outputs: dict[str, dict[str, Any]] = {
        "file": {"output": out},
        "stream": {"output": stream},
        "layout": {"output": None, "oci_layout": layout},
        "both": {"output": out, "oci_layout": layout},
        "device": {"output": "/dev/null", "oci_layout": layout},
    }
    warm = pack_warm(cache, tree, **outputs[where])
    assert warm.layer == layer
    assert [code for code, _ in warm.warnings] == ["cache-corrupt"]
    assert warm.explanation.outcome != "whole"
    written = [stream.getvalue()] if where == "stream" else []
    written += [out.read_bytes()] if where in ("file", "both") else []
    if where in ("layout", "both", "device"):
        written.append((layout / "blobs" / "sha256" / layer.digest.hex).read_bytes())
    assert written == [blob] * len(written)
    again = pack_warm(cache, tree, output=tmp_path / "again.tar.gz")
    assert (again.layer, again.warnings, again.explanation.outcome) == (layer, [], "whole")
    assert (tmp_path / "again.tar.gz").read_bytes() == blob


def test_a_kept_output_is_written_again_with_the_others(cache: Path, tree: Path, tmp_path: Path) -> None:
    """The tree may have changed between the cache lookup and the pack."""
    layer, blob = pack_cold(tree)
    pack_warm(cache, tree, output=tmp_path / "out.tar.gz")
    pack_warm(cache, tree, output=tmp_path / "out.tar.gz")
    flip_middle(cache, layer.digest)
    warm = pack_warm(cache, tree, output=tmp_path / "out.tar.gz", oci_layout=tmp_path / "layout")
    assert warm.explanation.kept_outputs == 0
    assert (tmp_path / "out.tar.gz").read_bytes() == blob
    assert (tmp_path / "layout" / "blobs" / "sha256" / layer.digest.hex).read_bytes() == blob


def test_chunks_of_a_corrupt_blob_are_not_copied(cache: Path, tree: Path) -> None:
    layer, _ = pack_cold(tree)
    pack_warm(cache, tree)
    flip_middle(cache, layer.digest)
    (tree / "new").write_text("x")
    assert pack_warm(cache, tree).blob == pack_cold(tree)[1]


def test_a_blob_that_is_lost_while_it_goes_to_a_stream(cache: Path, tree: Path) -> None:
    """Written bytes can't be undone: an error, and no further bytes after the wrong ones."""
    layer, _ = pack_cold(tree)
    pack_warm(cache, tree)

    class Stream(io.BytesIO):
        def write(self, data: Any, /) -> int:
            if not self.tell():
                zeros(cache, layer.digest)
            return super().write(data)

    stream = Stream()
    with pytest.raises(LostBlobError) as caught:
        pack_warm(cache, tree, output=stream)
    assert caught.value.code == "cache-corrupt"
    assert len(stream.getvalue()) < layer.size_bytes


# -- blobs


@rots
@pytest.mark.parametrize("offset", [0, 1, 1000])
def test_no_reader_completes_a_corrupt_blob(cache: Path, rot: Rot, offset: int) -> None:
    data = counter_bytes("x", 300_000)
    words = Words()
    with Store(str(cache), reporter=words) as store:
        digest = store.blobs.put(data)
        rot(cache, digest)
        body = store.blobs.body(digest)
        assert body is not None
        got = list[bytes]()
        with pytest.raises(LostBlobError), body.open(offset) as file:
            got.extend(iter(lambda: file.read(70_000), b""))
        assert len(b"".join(got)) < body.size_bytes - offset
        assert not store.blobs.has(digest)
        assert store.blobs.body(digest) is None
        assert [code for code, _ in words.warnings] == ["cache-corrupt"]


@pytest.mark.parametrize("offset", [0, 1, 299_999, 300_000])
def test_a_reader_gives_the_rest_of_an_intact_blob(cache: Path, offset: int) -> None:
    data = counter_bytes("x", 300_000)
    with Store(str(cache)) as store:
        body = store.blobs.body(store.blobs.put(data))
        assert body is not None
        with body.open(offset) as file:
            assert b"".join(iter(lambda: file.read(70_000), b"")) == data[offset:]


def test_a_blob_replaced_by_another_process_is_kept(cache: Path) -> None:
    """One process reads a corrupt blob after another one has replaced it."""
    data = counter_bytes("x", 300_000)
    with Store(str(cache)) as store:
        digest = store.blobs.put(data)
        flip_last(cache, digest)
        body = store.blobs.body(digest)
        assert body is not None
        path = Path(store.blobs.path(digest))
        path.with_name("new").write_bytes(data)
        with body.open() as file:
            path.with_name("new").rename(path)
            with pytest.raises(LostBlobError):
                list(iter(lambda: file.read(70_000), b""))
        assert store.blobs.get(digest) == data


def test_verify_counts_unreadable_blobs(cache: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _ = pack_cold(tree)
    pack_warm(cache, tree)
    real = open

    def failing(path: Any, *rest: Any, **options: Any) -> Any:
        if str(path).endswith(layer.digest.hex):
            raise OSError(5, os.strerror(5))
        return real(path, *rest, **options)

    with Store(str(cache)) as store:
        monkeypatch.setattr("builtins.open", failing)
        health = examine(store)
        monkeypatch.undo()
        assert health.corrupt == [layer.digest]
        assert not store.blobs.has(layer.digest)


@rots
def test_export_omits_corrupt_blobs(cache: Path, tree: Path, tmp_path: Path, rot: Rot) -> None:
    """An exported cache has only blobs that match their digests, and their traces."""
    layer, _ = pack_cold(tree)
    pack_warm(cache, tree)
    other = make_tree(tmp_path / "other", {"a": "x"})
    kept = pack_warm(cache, other).layer
    rot(cache, layer.digest)
    assert run(["cache", "export", str(tmp_path / "cache.tar"), "--cache-dir", str(cache)]) == 0
    assert run(["cache", "import", str(tmp_path / "cache.tar"), "--cache-dir", str(tmp_path / "new")]) == 0
    with Store(str(tmp_path / "new")) as store:
        assert {digest.hex for digest, _ in store.blobs.all()} == {kept.digest.hex}
    assert pack_warm(tmp_path / "new", tree).layer == layer


# -- build

OUTPUTS = ["push", "oci:{}", "oci-archive:{}.tar", "docker-archive:{}.tar"]


def arguments(output: str, name: str) -> tuple[str, ...]:
    if output == "push":
        return ("--push",)
    return ("--output", output.format(name), *(("--platform", "linux/amd64") if "docker" in output else ()))


def layers_of(bench: Bench, digest: str) -> list[Digest]:
    """The layers of all platforms, including those of the base."""
    cache = bench.path.parent / "cache"
    found: list[Digest] = []
    todo = [digest.removeprefix("sha256:")]
    while todo:
        document = json.loads((cache / "oci" / "blobs" / "sha256" / todo.pop()).read_bytes())
        todo += [one["digest"].removeprefix("sha256:") for one in document.get("manifests", ())]
        found += [Digest(one["digest"].removeprefix("sha256:")) for one in document.get("layers", ())]
    return [one for one in dict.fromkeys(found) if (cache / "oci" / "blobs" / "sha256" / one.hex).exists()]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("rot", [flip_first, flip_last], ids=lambda rot: rot.__name__)
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_build(bench: Bench, output: str, rot: Rot, compression: str) -> None:
    """Every layer is corrupt, including those of the base: one run makes all of them again, with a warning for each."""
    bench.write(APP.replace("[images.app]\n", f'[images.app]\ncompression = "{compression}"\n'))
    first = bench.build(*arguments("oci:{}" if output == "push" else output, "first"))
    assert first.code == 0, first.errors
    cache = bench.path.parent / "cache"
    corrupt = layers_of(bench, first.digest)
    assert len(corrupt) >= 3
    for digest in corrupt:
        rot(cache, digest)
    second = bench.build(*arguments(output, "second"), "--tag", "other")
    assert second.code == 0, second.errors
    assert second.digest == first.digest
    said = [line for line in second.errors.splitlines() if "cache-corrupt" in line]
    assert len(said) == len(set(said)) > 0
    assert "failed" not in second.states.values()
    check_output(bench, output, second)
    third = bench.build(*arguments(output, "third"))
    assert (third.code, third.digest) == (0, first.digest)
    assert "cache-corrupt" not in third.errors


def check_output(bench: Bench, output: str, built: Built) -> None:
    """Read the output with another tool, which checks digests."""
    if output == "push":
        source = [f"docker://{bench.server.address}/team/app:other", "--src-tls-verify=false"]
    else:
        source = [output.format(bench.path / "second")]
    if output.startswith("oci"):
        source[0] += ":other"
    target = bench.path.parent / "copied"
    done = subprocess.run(
        [program("skopeo"), "--insecure-policy", "--override-arch", "amd64", "copy", *source, f"dir:{target}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

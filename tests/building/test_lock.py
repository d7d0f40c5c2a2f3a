"""detlayer.lock: a locked build gives the recorded bases and layers, or reports the differences."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from detlayer.building.lock_file import parse_lock
from detlayer.errors import ConfigError
from tests.building.project_bench import APP, Bench


@pytest.fixture
def locked(bench: Bench) -> Bench:
    assert bench.command("lock").code == 0
    return bench


def edit(bench: Bench, change: Callable[[dict[str, Any]], object]) -> None:
    path = bench.path / "detlayer.lock"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_lock_has_bases_and_layers_for_each_platform(locked: Bench) -> None:
    document = json.loads((locked.path / "detlayer.lock").read_text())
    base = document["bases"][f"{locked.server.address}/base:1"]
    assert base["digest"] == locked.server.tags("base")["1"]
    assert sorted(base["platforms"]) == ["linux/amd64", "linux/arm64"]
    assert sorted(document["images"]["app"]["deps"]) == ["linux/amd64", "linux/arm64"]
    assert sorted(document["images"]["app"]["source"]["any"]) == ["codecClass", "diffId", "digest", "key"]
    before = (locked.path / "detlayer.lock").read_bytes()
    assert locked.command("lock").code == 0
    assert (locked.path / "detlayer.lock").read_bytes() == before


def test_a_locked_build_uses_the_locked_base(locked: Bench) -> None:
    first = locked.build("--locked", "--push")
    assert first.code == 0, first.errors
    locked.push_base("moved")
    again = locked.build("--locked", "--push")
    assert (again.code, again.digest, again.ran()) == (0, first.digest, set())
    assert again.asked == ["HEAD /v2/team/app/manifests/latest"]  # no request for the base
    assert locked.build().digest != first.digest
    fresh = locked.build("--locked", "--no-cache")
    assert (fresh.code, fresh.digest) == (0, first.digest)


def test_a_new_lock_moves_images_to_the_new_base(locked: Bench) -> None:
    locked.build("--locked", "--push")
    moved = locked.push_base("moved")
    assert locked.command("lock").code == 0
    built = locked.build("--locked", "--push")
    assert built.code == 0, built.errors
    kinds = {step.partition(" ")[0] for step in built.ran()}
    assert kinds == {"configure", "assemble", "index", "publish"}
    base = f"{locked.server.address}/base:1"
    reasons = built.reasons("configure app linux/amd64")
    assert any(one["what"] == "base.manifest" for one in reasons)
    assert {"kind": "input", "what": "base.digest", "after": moved}.items() <= next(
        one for one in built.reasons("index app") if one["what"] == "base.digest"
    ).items(), base


def test_offline_uses_the_lock_or_the_cache(bench: Bench) -> None:
    first = bench.build()
    offline = bench.build("--offline")
    assert (offline.code, offline.digest, offline.requests) == (0, first.digest, [])
    assert bench.command("lock").code == 0
    assert bench.build("--offline").digest == first.digest
    assert bench.build("--offline", "--locked").digest == first.digest


@pytest.mark.parametrize("change", ["source", "lock"])
def test_differences_from_the_lock_are_errors(locked: Bench, change: str) -> None:
    if change == "source":
        (locked.path / "src/main").write_text("other")
    else:
        edit(locked, lambda lock: lock["images"]["app"]["source"]["any"].update(diffId="sha256:" + "0" * 64))
    built = locked.command("build", "--locked", "--push")
    assert built.code == 6
    assert "error[lock-differs]: layer source of app" in built.errors
    assert locked.server.tags("team/app") == {}


def test_another_codec_class_with_the_same_tar_is_accepted(locked: Bench) -> None:
    """SPEC 6.3: then the digest is expected to differ."""

    def change(lock: dict[str, Any]) -> None:
        lock["images"]["app"]["source"]["any"].update(codecClass="f" * 16, digest="sha256:" + "0" * 64)

    edit(locked, change)
    assert locked.build("--locked").code == 0
    assert locked.command("verify", "--locked").code == 0


def test_a_base_that_differs_from_the_lock(locked: Bench) -> None:
    edit(
        locked,
        lambda lock: next(iter(lock["bases"].values()))["platforms"].update({"linux/amd64": "sha256:" + "0" * 64}),
    )
    built = locked.command("build", "--locked")
    assert built.code == 6
    assert "error[lock-differs]" in built.errors


@pytest.mark.parametrize(
    "change",
    [
        lambda lock: lock["bases"].clear(),
        lambda lock: next(iter(lock["bases"].values()))["platforms"].pop("linux/arm64"),
        lambda lock: lock["images"]["app"].pop("deps"),
        lambda lock: lock["images"].clear(),
    ],
)
def test_a_lock_that_lacks_something(locked: Bench, change: Callable[[dict[str, Any]], object]) -> None:
    edit(locked, change)
    built = locked.command("build", "--locked")
    assert built.code == 2
    assert "error[lock-incomplete]" in built.errors
    assert "detlayer lock" in built.errors
    assert locked.command("verify", "--locked").code == 1


@pytest.mark.parametrize("text", ["", "[]", '{"format": "detlayer-lock/9", "bases": {}, "images": {}}', "[" * 100_000])
def test_invalid_locks(bench: Bench, text: str) -> None:
    (bench.path / "detlayer.lock").write_text(text)
    built = bench.command("build", "--locked")
    assert built.code == 2
    assert "error[lock-invalid]" in built.errors
    with pytest.raises(ConfigError):
        parse_lock(
            b'{"format": "detlayer-lock/1", "bases": {"a": {"digest": "x", "platforms": {}}}, "images": {}}', "x"
        )


def test_verify_reports_differences(locked: Bench) -> None:
    good = locked.command("verify", "--locked")
    assert (good.code, good.lines, good.requests) == (0, [], [])
    (locked.path / "src/main").write_text("other")
    bad = locked.command("verify", "--locked", "--json")
    assert bad.code == 1
    document = json.loads(bad.lines[-1])
    assert not document["ok"]
    assert any("layer source of app: diff_id sha256:" in one for one in document["differences"])
    locked.write(APP.replace('name = "deps"', 'name = "others"'))
    lines = locked.command("verify", "--locked").lines
    assert "layer others of app linux/amd64: not locked" in lines
    assert "layer deps of app: locked, but no longer built" in lines
    assert locked.command("verify", "--locked", "src").code == 2

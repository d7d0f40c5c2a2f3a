"""Random edits between builds: a warm build gives the result of a cold one, and runs no unneeded step."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from detlayer.building import Build, BuildOptions
from detlayer.building.graph import Outcome
from detlayer.building.project_files import ProjectFiles
from detlayer.building.settings import load
from detlayer.store import Store

PROJECT = """
[layers.common]
sources = ["{here}/common:/opt/common"]
compression = "{common}"
[images.one]
platforms = ["linux/amd64", "linux/arm64"]
env = { LEVEL = "{env}" }
layers = ["common", { name = "own", sources = ["{here}/one:/srv"], owner = "{owner}", allow-empty = true }]
[images.two]
layers = ["common", { name = "own", sources = ["{here}/two-{arch}:/srv"], allow-empty = true }]
"""
NAMES = ("common/a", "common/b", "one/a", "one/deep/b", "two-amd64/a", "two-amd64/b")

_edits = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(NAMES), st.sampled_from(["", "x", "y", "z" * 3000])),
    st.tuples(st.just("remove"), st.sampled_from(NAMES), st.just("")),
    st.tuples(st.just("touch"), st.sampled_from(NAMES), st.integers(1, 10**9)),
    st.tuples(st.just("env"), st.just(""), st.sampled_from(["a", "b"])),
    st.tuples(st.just("owner"), st.just(""), st.sampled_from(["0:0", "5:6"])),
    st.tuples(st.just("common"), st.just(""), st.sampled_from(["gzip", "gzip:1", "zstd"])),
)


class Scene:
    def __init__(self, here: Path) -> None:
        self.here = here
        self.settings = {"env": "a", "owner": "0:0", "common": "gzip"}
        for name in NAMES:
            (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "common/always").write_text("there")

    def edit(self, kind: str, name: str, value: Any) -> None:
        path = self.here / name
        if kind == "write":
            path.write_text(value)
        elif kind == "remove":
            path.unlink(missing_ok=True)
        elif kind == "touch":
            if path.is_file():
                os.utime(path, (value, value))
        else:
            self.settings[kind] = value

    def build(self, cache: Path) -> tuple[dict[str, str], Outcome]:
        text = PROJECT.replace("{here}", str(self.here))
        for key, value in self.settings.items():
            text = text.replace("{" + key + "}", value)
        (self.here / "detlayer.toml").write_text(text)
        project = load(str(self.here / "detlayer.toml"), ProjectFiles(), environment={})
        with Store(str(cache)) as store, Build(project.choose(()), BuildOptions(), store, None) as wired:
            report = wired.run()
        assert report.errors == []
        return {one.name: str(one.digest) for one in report.images}, report.outcome


@settings(max_examples=25)
@given(st.lists(st.lists(_edits, max_size=3), min_size=1, max_size=5))
def test_a_warm_build_equals_a_cold_one(rounds: list[list[tuple[str, str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        scene = Scene(Path(place) / "project")
        warm, cold = Path(place) / "warm", Path(place) / "cold"
        for edits in rounds:
            for edit in edits:
                scene.edit(*edit)
            digests, outcome = scene.build(warm)
            assert digests == scene.build(cold)[0]
            shutil.rmtree(cold)
            # Steps that ran had a reason, and a repeated build runs none.
            assert all(one.reasons for one in outcome.steps.values() if one.state == "ran")
            again, repeated = scene.build(warm)
            assert again == digests
            assert {one.state for one in repeated.steps.values()} == {"hit"}

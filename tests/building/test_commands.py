"""Projects from Python: load, build and lock with one call each, as on the command line; errors have a location."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import detlayer
from detlayer.building import Build
from tests.building.project_bench import APP, Bench, directory
from tests.trees import make_tree


@pytest.fixture
def store(tmp_path: Path) -> Iterator[detlayer.Store]:
    with detlayer.Store(tmp_path / "own") as opened:
        yield opened


def test_a_build_equals_that_of_the_command_line(bench: Bench) -> None:
    told = bench.build("--push")
    bench.server.clear()
    with directory(bench.path):
        report = detlayer.build(detlayer.load_project(), options=detlayer.BuildOptions(push=True))
    assert [str(image.digest) for image in report.images] == [told.digest]
    assert report.errors == []
    assert [one.state for one in report.outcome.steps.values() if one.step.kind == "pack"] == ["hit"] * 3
    assert report.requests == len(bench.server.requests)
    assert bench.server.tags("team/app")["latest"] == told.digest


def test_a_store_and_registries_of_the_caller_stay_open(bench: Bench, store: detlayer.Store) -> None:
    with directory(bench.path), detlayer.Registries.from_environment() as registries:
        project = detlayer.load_project("detlayer.toml")
        options = detlayer.BuildOptions(push=True)
        made = [detlayer.build(project, ["app"], store=store, registries=registries, options=options) for _ in range(2)]
    assert made[0].images == made[1].images
    assert made[0].images[0].references == (detlayer.parse_reference(f"{bench.server.address}/team/app:latest"),)
    assert {one.state for one in made[1].outcome.steps.values() if one.step.kind != "resolve"} == {"hit"}


def test_a_lock_equals_that_of_the_command_line(bench: Bench, store: detlayer.Store) -> None:
    assert bench.command("lock").code == 0
    with directory(bench.path):
        text = detlayer.lock(detlayer.load_project(), store=store).to_text()
    assert text == (bench.path / "detlayer.lock").read_text()
    report = detlayer.build(
        detlayer.load_project(bench.path / "detlayer.toml"),
        options=detlayer.BuildOptions(policy="locked", is_offline=True),
        store=store,
    )
    assert report.errors == []
    assert (report.images[0].error, report.requests) == (None, 0)


def test_a_lock_raises_what_a_build_reports(bench: Bench, store: detlayer.Store) -> None:
    bench.write(APP.replace("base:1", "base:gone"))
    project = detlayer.load_project(bench.path / "detlayer.toml")
    report = detlayer.build(project, store=store)
    assert (report.images[0].digest, report.images[0].error) == (None, report.errors[0])
    with pytest.raises(detlayer.NotFoundError):
        detlayer.lock(project, store=store)


def test_a_project_is_found_upwards_and_read_with_an_environment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.write('variables = ["TAG"]\n' + APP + '\n[images.b]\ntags = ["${TAG}"]')
    monkeypatch.delenv("TAG", raising=False)
    with directory(bench.path / "src"):
        project = detlayer.load_project(environment={"TAG": "7", "SOURCE_DATE_EPOCH": "9"})
        assert project.file == os.path.join("..", "detlayer.toml")
        assert (project.images["b"].tags, project.images["b"].created) == (("7",), 9)
        with pytest.raises(detlayer.ConfigError) as caught:
            detlayer.load_project()
    error = caught.value
    assert (error.code, error.file, error.key) == ("variable-unset", "../detlayer.toml", "images.b.tags[0]")
    assert (bench.path / "detlayer.toml").read_text().splitlines()[(error.line or 0) - 1] == 'tags = ["${TAG}"]'


@pytest.mark.parametrize("text", ["[tool.detlayer]\nimags = 1", "[tool.detlayer]\nvariables = ['A']\nextends = '${A}'"])
def test_a_pyproject_with_an_invalid_table_is_found(tmp_path: Path, text: str) -> None:
    make_tree(tmp_path, {"pyproject.toml": text, "inner": {"pyproject.toml": "[tool.detlayer\n", "x": {}}})
    with directory(tmp_path / "inner" / "x"), pytest.raises(detlayer.ConfigError) as caught:
        detlayer.load_project(environment={})
    assert caught.value.file == "../../pyproject.toml"
    assert (caught.value.key or "").startswith("tool.detlayer.")
    assert caught.value.line == text.count("\n") + 1


def test_errors_of_a_build_name_the_setting(bench: Bench, store: detlayer.Store) -> None:
    bench.write('[images.a]\ngit = true\n[[images.a.layers]]\nsources = ["src:/srv"]')
    file = str(bench.path / "detlayer.toml")
    project = detlayer.load_project(file)
    with pytest.raises(detlayer.ConfigError) as caught:
        detlayer.build(project, store=store, options=detlayer.BuildOptions(push=True))
    assert (caught.value.code, caught.value.file, caught.value.key) == ("no-reference", file, "images.a.repositories")
    with pytest.raises(detlayer.ConfigError) as caught:
        detlayer.build(project, store=store)
    assert (caught.value.code, caught.value.file, caught.value.key) == ("git-missing", file, "images.a.git")


def test_a_build_runs_git_when_it_makes_its_steps(
    bench: Bench, store: detlayer.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write('[images.a]\ngit = true\n[[images.a.layers]]\nsources = ["src:/srv"]')
    monkeypatch.setenv("PATH", "")
    images = detlayer.load_project(bench.path / "detlayer.toml").choose(())
    with Build(images, detlayer.BuildOptions(), store, None) as build:
        with pytest.raises(detlayer.ConfigError) as caught:
            build.run()
        assert caught.value.code == "git-missing"


def test_a_broken_lock_and_settings_of_one_image_name_their_file(bench: Bench, store: detlayer.Store) -> None:
    lock = bench.path / "detlayer.lock"
    lock.write_text("[]")
    with pytest.raises(detlayer.ConfigError) as caught:
        detlayer.build(
            detlayer.load_project(bench.path / "detlayer.toml"),
            store=store,
            options=detlayer.BuildOptions(policy="locked"),
        )
    assert (caught.value.code, caught.value.file) == ("lock-invalid", str(lock))
    settings = bench.path / "image.toml"
    settings.write_text('cmd = ["a"]\nports = [0]\n')
    with pytest.raises(detlayer.ConfigError) as caught:
        detlayer.assemble_image(bench.path / "oci", settings=settings)
    assert (caught.value.file, caught.value.key, caught.value.line) == (str(settings), "ports", 2)

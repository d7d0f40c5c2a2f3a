"""A first detlayer.toml: every kind of project gets a valid file, with dependencies in a separate layer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from detlayer.building.project_files import ProjectFiles, find_project
from detlayer.building.settings import load
from detlayer.building.settings.starter import ECOSYSTEMS, detect_ecosystem, write_starter
from detlayer.cli import run
from detlayer.cli.init import init
from detlayer.errors import ConfigError
from tests.trees import Spec, make_tree

PROJECTS: dict[str, Spec] = {
    "python": {
        "pyproject.toml": '[project]\nname = "My-App"',
        "requirements.txt": "",
        "src": {"my_app": {"__main__.py": ""}},
    },
    "node": {"package.json": '{"main": "./lib/main.js"}', "node_modules": {}},
    "jvm": {"pom.xml": "<project/>"},
    "dotnet": {"Shop.Api.csproj": '<Project Sdk="Microsoft.NET.Sdk.Web"/>'},
    "go": {"go.mod": "module example.org/x"},
}


@pytest.mark.parametrize("kind", ECOSYSTEMS)
def test_each_kind_gets_a_file_that_loads(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = make_tree(tmp_path / "My App!", PROJECTS[kind])
    monkeypatch.chdir(here)
    assert run(["init"]) == 0
    project = load(find_project(), ProjectFiles(), environment={})
    image = project.images["my-app"]
    assert [str(one) for one in image.platforms] == ["linux/amd64", "linux/arm64"]
    assert [layer.name for layer in image.layers] == (
        ["application"] if kind == "go" else ["dependencies", "application"]
    )
    assert image.runtime.entrypoint
    entrypoints = {
        "python": "My_App",
        "node": "lib/main.js",
        "dotnet": "/opt/app/Shop.Api.dll",
        "go": "/usr/bin/my-app",
        "jvm": "Main",
    }
    assert image.runtime.entrypoint[-1] == entrypoints[kind]


@pytest.mark.parametrize("sign", ["build.gradle", "build.gradle.kts", "build.sbt"])
def test_other_builds_of_the_jvm(sign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_tree(tmp_path / "shop", {sign: ""}))
    assert run(["init"]) == 0
    image = load(find_project(), ProjectFiles(), environment={}).images["shop"]
    assert [layer.name for layer in image.layers] == ["dependencies", "application"]


def test_an_existing_file_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_tree(tmp_path / "x", {"detlayer.toml": "mine", "go.mod": ""}))
    with pytest.raises(ConfigError) as caught:
        CliRunner().invoke(init, [], catch_exceptions=False)
    assert caught.value.code == "config-exists"
    assert Path("detlayer.toml").read_text() == "mine"


def test_an_unknown_kind_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_tree(tmp_path / "x", {"README": ""}))
    with pytest.raises(ConfigError) as caught:
        CliRunner().invoke(init, [], catch_exceptions=False)
    assert caught.value.code == "project-unknown"
    assert "jvm" in caught.value.hint
    assert not Path("detlayer.toml").exists()
    assert run(["init", "--kind", "node"]) == 0


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["build.gradle.kts", "package.json"], "jvm"),
        (["requirements.txt"], "python"),
        (["package.json", "pyproject.toml"], "python"),
        (["x.sln", "package.json"], "dotnet"),
        ([], None),
    ],
)
def test_detection(names: list[str], kind: str | None) -> None:
    assert detect_ecosystem(names) == kind


@pytest.mark.parametrize("kind", ECOSYSTEMS)
@pytest.mark.parametrize("junk", [None, b"", b"\xff\xfe", b"[" * 100_000, b'{"main": 3}'])
def test_unreadable_files_are_ignored(kind: str, junk: bytes | None) -> None:
    names = [*PROJECTS[kind], "build.gradle"] if kind == "jvm" else list(PROJECTS[kind])
    text = write_starter(kind, "é", names, lambda name: junk)  # type: ignore[arg-type]
    assert "[images.app]" in text


def test_the_file_is_found_upwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree: Spec = {"pyproject.toml": "[tool.detlayer.images.a]", "a": {"pyproject.toml": "[tool.other]", "b": {"x": ""}}}
    monkeypatch.chdir(make_tree(tmp_path / "x", tree) / "a" / "b")
    assert find_project() == "../../pyproject.toml"
    (tmp_path / "x" / "a" / "detlayer.toml").touch()
    assert find_project() == "../detlayer.toml"


def test_no_file_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/proc")
    with pytest.raises(ConfigError) as caught:
        find_project()
    assert caught.value.code == "config-missing"


def test_members_are_directories_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(
        tmp_path,
        {
            "detlayer.toml": 'members = ["s/*"]',
            "s": {"b": {"detlayer.toml": "[images.b]"}, "a": {"detlayer.toml": "[images.a]"}, "file": ""},
        },
    )
    monkeypatch.chdir(tmp_path)
    assert list(load("detlayer.toml", ProjectFiles(), environment={}).images) == ["a", "b"]


def test_a_path_without_a_regular_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("detlayer.toml")
    for text in ("detlayer.toml", ".", "a\0b"):
        with pytest.raises(ConfigError) as caught:
            ProjectFiles().read(text)
        assert caught.value.code == "config-unreadable"

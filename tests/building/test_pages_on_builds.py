"""The docs on builds are correct: the tutorial and the examples for make and ninja run, and every key is listed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from detlayer.building.settings import load, schema
from detlayer.building.settings.toml_tables import FileTable, ImageTable, LayerTable
from tests.building.project_bench import Bench
from tests.building.test_settings import MemoryFiles
from tests.privileges import program
from tests.trees import make_tree
from tests.vectors import ROOT

DOCS = ROOT / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with the `detlayer` command."""
    command = tmp_path / "bin" / "detlayer"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m detlayer "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    return command


def shell(script: str, cwd: Path) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tutorial_runs_unchanged(bench: Bench, path: Path, tmp_path: Path) -> None:
    """Except for the address of the registry and the name of the base."""
    bench.push_base(name="python:3-slim")
    script = "\n".join(blocks("tutorial.md", "sh"))
    assert script.count("detlayer ") > 10
    script = script.replace("127.0.0.1:5000", bench.server.address)
    script = script.replace("docker.io/library/python:3-slim", f"{bench.server.address}/python:3-slim")
    said = shell(script, tmp_path)
    digests = re.findall(rf"^{bench.server.address}/greet@(sha256:\S+)$", said, re.MULTILINE)
    assert len(digests) == 4
    assert digests[0] == digests[1] != digests[2] == digests[3]
    assert bench.server.tags("greet") == {"latest": digests[-1]}


def test_make_does_what_the_page_says(path: Path, tmp_path: Path) -> None:
    program("make")
    here = make_tree(
        tmp_path / "p", {"src": {"a": "1"}, "site-packages": {"b": "2"}, "image.toml": 'entrypoint = ["/a"]'}
    )
    (here / "Makefile").write_text(blocks("steps.md", "make")[0])
    first = shell("make -j4", here)
    assert len(re.findall("^sha256:", first, re.MULTILINE)) == 5
    assert "sha256:" not in shell("make", here)
    (here / "src/a").write_text("other")
    changed = shell("make", here)
    assert "pack src" in changed
    assert "pack site-packages" not in changed
    shell("detlayer verify oci:image:latest", here)


def test_ninja_does_what_the_page_says(path: Path, tmp_path: Path) -> None:
    program("ninja")
    here = make_tree(tmp_path / "p", {"src": {"a": "1"}, "image.toml": "", "build": {}})
    (here / "build.ninja").write_text(blocks("steps.md", "ninja")[0])
    assert "[3/3]" in shell("ninja", here)
    assert "no work to do" in shell("ninja", here)
    os.utime(here / "src/a", (1, 1))
    (here / "src/a").write_text("other")
    assert "[3/3]" in shell("ninja", here)
    (here / "src/b").write_text("new")  # a directory is a dependency, too
    assert "[3/3]" in shell("ninja", here)


def test_python_does_what_the_pages_say(bench: Bench, tmp_path: Path) -> None:
    built = bench.build("--no-cache")
    said = subprocess.run(
        [sys.executable, "-c", blocks("build.md", "python")[0]],
        cwd=bench.path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(f"{built.digest} [")
    assert bench.server.tags("team/app") == {"latest": built.digest}
    here = make_tree(tmp_path / "p", {"src": {"a": "1"}, "image.toml": 'entrypoint = ["/a"]'})
    subprocess.run([sys.executable, "-c", blocks("steps.md", "python")[0]], cwd=here, check=True)
    assert Bench(here, bench.server, bench.capfd).command("verify", "oci:image:latest").code == 0


@pytest.mark.parametrize("command", ["build", "graph", "lock", "schema", "init", "image"])
def test_help_examples_run_as_they_stand(bench: Bench, command: str) -> None:
    shown = CliRunner().invoke(getattr(import_module(f"detlayer.cli.{command}"), command), ["--help"]).output
    examples = [line.strip() for line in shown.splitlines() if line.strip().startswith("detlayer ")]
    assert examples
    make_tree(bench.path, {"dist": {"a": "1"}, "image.toml": "", "services": {"api": {}}, "arm64.json": ""})
    (bench.path / "services/detlayer.toml").write_text("[images.a]")
    if command == "init":
        (bench.path / "detlayer.toml").unlink()
        (bench.path / "package.json").write_text("{}")
    for example in examples:
        arguments = shlex.split(example)[1:]
        if "arm64.json" in arguments:
            bench.expect(
                "image", "app.json", "--oci", "image", "--platform", "linux/arm64", "--descriptor", "arm64.json"
            )
        bench.expect(*arguments)


@pytest.mark.parametrize("table", [FileTable, ImageTable, LayerTable])
def test_every_key_is_on_the_page(table: type[msgspec.Struct]) -> None:
    page = (DOCS / "build.md").read_text()
    for field in msgspec.structs.fields(table):
        name = field.encode_name
        assert f"`{name}`" in page or f"`{name}.NAME`" in page, name


@pytest.mark.parametrize("page", ["build.md", "tutorial.md"])
def test_every_example_loads(page: str) -> None:
    text = (DOCS / page).read_text()
    examples = [
        *blocks(page, "toml"),
        *re.findall(r"> detlayer\.toml <<'END'\n(.*?)^END", text, re.MULTILINE | re.DOTALL),
    ]
    assert examples
    environment: Mapping[str, str] = {}
    for example in examples:
        assert load("detlayer.toml", MemoryFiles({"detlayer.toml": example}), environment=environment).images


def test_the_schema_names_every_key() -> None:
    tables = schema()["$defs"]
    for table in (FileTable, ImageTable, LayerTable):
        assert set(tables[table.__name__]["properties"]) == {one.encode_name for one in msgspec.structs.fields(table)}

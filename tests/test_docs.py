"""The documents keep their word: the README's first command, every error code, every `--help` example."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.contracts.assertions import broken_tags, seed
from tests.contracts.fixtures import StartStrict
from tests.contracts.images import Layout, layer_tar, platforms
from tests.contracts.strict import StrictRegistry
from tests.images import docker_saved as saved

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def test_readme_example_has_the_digest_that_it_shows(tmp_path: Path) -> None:
    """SPEC 1.2: the digest in the README is the one that everybody gets."""
    readme = (ROOT / "README.md").read_text()
    command = re.search(r"pip install \. && detlayer (pack .*) -o hello\.tar\.gz", readme)
    assert command is not None
    run = subprocess.run(
        [sys.executable, "-m", "detlayer", *shlex.split(command[1]), "-o", str(tmp_path / "hello.tar.gz")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"prints `{run.stdout.strip()}`" in readme


def test_every_cited_clause_is_in_the_spec() -> None:
    clauses = set(re.findall(r"^(?:#+ )?(\d+(?:\.\d+)?)[ .]", (ROOT / "SPEC.md").read_text(), re.MULTILINE))
    assert {"3.4", "4.10", "6.1", "8"} <= clauses
    cited = {number for source in SOURCES for number in re.findall(r"SPEC (\d+(?:\.\d+)?)", source.read_text())}
    assert cited <= clauses


def test_help_examples_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detlayer.cli.pack import pack

    shown = CliRunner().invoke(pack, ["--help"]).output
    examples = [line.strip() for line in shown.splitlines() if line.strip().startswith("detlayer pack ")]
    assert examples
    here = tmp_path / "project"
    here.mkdir()
    (here / "main.py").write_text("print('hi')\n")
    monkeypatch.chdir(here)
    for example in examples:
        words = shlex.split(example)
        run = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        assert "sha256:" in run.stdout


REGISTRIES = re.compile(r"127\.0\.0\.1:5000|(?:registry|old|new)\.example\b")


@pytest.fixture
def registry(start_strict: StartStrict, tmp_path: Path) -> StrictRegistry:
    """A registry that has what the examples pull; in tmp_path is what they push."""
    server = start_strict()
    index = platforms(Layout(tmp_path / "image"), 2, 2)
    layout = Layout(tmp_path / "image")
    layout.tag(index, "app")
    saved.save(tmp_path / "app.tar", saved.Image([layer_tar("one", 3000)]))
    for name, tag in (("app", "dev"), ("app", "1.2"), ("base", "12")):
        seed(server, name, layout, index, tag)
    return server


def run_example(example: str, registry: StrictRegistry, here: Path) -> str:
    """Run a line of a document in a shell, with our registry in place of the one that it names; returns stdout."""
    assert REGISTRIES.search(example), example
    line = REGISTRIES.sub(registry.address, example)
    line = re.sub(r"^detlayer ", f"{shlex.quote(sys.executable)} -m detlayer ", line)
    environment = {**os.environ, "HOME": str(here), "DETLAYER_CACHE_DIR": str(here / "cache")}
    done = subprocess.run(
        ["sh", "-c", line],
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{example}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("command", ["plan", "push", "resolve", "pull"])
def test_help_examples_run_against_a_registry(command: str, registry: StrictRegistry, tmp_path: Path) -> None:
    shown = CliRunner().invoke(getattr(import_module(f"detlayer.cli.{command}"), command), ["--help"]).output
    examples = [line.strip() for line in shown.splitlines() if line.strip().startswith(f"detlayer {command} ")]
    assert len(examples) >= 2
    for example in examples:
        stdout = run_example(example, registry, tmp_path)
        assert ("> plan.json" in example) == (not stdout)
    assert broken_tags(registry) == {}


def test_examples_of_the_page_on_pushing_run(registry: StrictRegistry, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "push.md").read_text()
    lines = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines() if line]
    assert len(lines) >= 3
    registry.storage.repository("app").tags.pop("1.2")
    for line in lines:
        run_example(line, registry, tmp_path)
    assert broken_tags(registry) == {}


def test_python_of_the_page_on_pushing_runs(registry: StrictRegistry, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "push.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "127.0.0.1:5000" in program
    done = subprocess.run(
        [sys.executable, "-c", REGISTRIES.sub(registry.address, program)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    requests, digest = done.stdout.split()
    assert registry.tags("team/app") == {"1.2": digest}
    assert int(requests) == len(registry.requests)


def test_every_option_of_registries_is_documented() -> None:
    pages = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    for command in ("plan", "push", "resolve", "pull"):
        params = getattr(import_module(f"detlayer.cli.{command}"), command).params
        names = {name for one in params for name in one.opts if name.startswith("--")}
        assert [name for name in sorted(names) if name not in pages] == []

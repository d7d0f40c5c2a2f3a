"""The documents keep their word: the README's first command, every error code, every `--help` example."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from detlayer.finding import TRAPS

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


def test_every_error_code_is_documented() -> None:
    text = "".join(path.read_text() for path in SOURCES)
    codes = set(re.findall(r'(?:Error|warning)\(\s*"([a-z0-9]+(?:-[a-z0-9]+)*)"', text))
    codes |= set(re.findall(r'code, message(?:, hint)? = "([a-z0-9-]+)"', text))
    assert len(codes) > 35
    documented = (ROOT / "docs" / "errors.md").read_text()
    assert [code for code in sorted(codes) if f"`{code}`" not in documented] == []


def test_every_trap_is_documented_and_nothing_else() -> None:
    documented = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs" / "traps.md").read_text(), re.MULTILINE)
    assert documented == list(TRAPS)


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

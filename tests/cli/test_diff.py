"""`detlayer diff` from the command line: what is printed, and the exit code (docs/diff.md)."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

import detlayer


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command: Sequence[str | Path] = [sys.executable, "-m", "detlayer", "diff", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in ("same", "gone" if name == "a" else "new", "text"):
            (tmp_path / name / file).write_text(f"in {name}\n" if file == "text" else "x")
            os.utime(tmp_path / name / file, (1, 1))
    return tmp_path / "a", tmp_path / "b"


def test_output_for_people(trees: tuple[Path, Path]) -> None:
    done = run(*trees)
    assert done.returncode == 1
    assert done.stderr == ""
    assert done.stdout == (
        "- gone (file, 1 bytes)\n"
        "+ new (file, 1 bytes)\n"
        "~ text (content from offset 3): line 1 'in a' → 'in b' [content]\n"
        "differs (content 3); find what wrote the entries or bytes named above\n"
    )


def test_equal_trees_print_one_line(trees: tuple[Path, Path]) -> None:
    done = run(trees[0], trees[0])
    assert (done.returncode, done.stdout, done.stderr) == (0, "same: 3 entries\n", "")


def test_quiet(trees: tuple[Path, Path]) -> None:
    done = run("-q", *trees)
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 1)


def test_json(trees: tuple[Path, Path]) -> None:
    done = run("--json", *trees)
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert (document["type"], document["verdict"]) == ("result", "entries")
    assert document["counts"] == {"content": 3}
    assert [one["path"] for one in document["differences"]] == ["gone", "new", "text"]
    assert document["differences"][2]["offset"] == 3
    assert document["a"] == {"entries": 3, "kind": "tree", "name": str(trees[0])}


def test_long_lists_are_capped(tmp_path: Path) -> None:
    for name, mtime in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        for number in range(30):
            (tmp_path / name / f"{number:02}").write_text("")
            os.utime(tmp_path / name / f"{number:02}", (mtime, mtime))
    text = run(tmp_path / "a", tmp_path / "b").stdout
    assert text.count("mtime 1 → 2 [mtime]") == 20
    assert "  and 10 more changed [mtime]; --all shows them\n" in text
    assert text.splitlines()[-1].startswith("differs (mtime 30); `pack` normalizes values")
    text = run("--all", tmp_path / "a", tmp_path / "b").stdout
    assert text.count("mtime 1 → 2 [mtime]") == 30
    assert run("--normalized", tmp_path / "a", tmp_path / "b").returncode == 0


def test_compressor(trees: tuple[Path, Path], tmp_path: Path) -> None:
    """SPEC 6.3."""
    for name, compression in (("a", "gzip:6"), ("b", "gzip:9")):
        detlayer.pack(
            [trees[0]], output=tmp_path / f"{name}.tar.gz", options=detlayer.PackOptions(compression=compression)
        )
    done = run(tmp_path / "a.tar.gz", tmp_path / "b.tar.gz")
    assert done.returncode == 1
    assert done.stdout.startswith("~ blob: codec gzip-libdeflate-6 (class ")
    assert done.stdout.splitlines()[-1].startswith("tar equal, compressor differs: the diff_id is the same")


def test_unreadable(trees: tuple[Path, Path], tmp_path: Path) -> None:
    """SPEC 9: an unreadable input gives one line and exit 3, never a traceback."""
    good = tmp_path / "a.tar.gz"
    detlayer.pack([trees[0]], output=good)
    bad = tmp_path / "bad"
    bad.write_bytes(good.read_bytes()[:-30])
    for path in (bad, tmp_path / "nowhere", f"oci:{tmp_path}"):
        done = run(path, f"oci:{tmp_path}" if "oci:" in str(path) else good)
        assert done.returncode == 3
        assert done.stdout == ""
        assert done.stderr.startswith("error[")
        assert "Traceback" not in done.stderr
    assert run(good, f"oci:{tmp_path}").returncode == 2
    assert run(good).returncode == 2


def test_names_are_printed_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x\n\x1b[31m").write_text("")
    done = run(tmp_path / "a", tmp_path / "b")
    assert done.stdout.splitlines()[0] == r"+ x\n\x1b[31m (file, 0 bytes)"


def test_help_examples_run_as_they_stand(trees: tuple[Path, Path]) -> None:
    from detlayer.cli.diff import diff

    shown = CliRunner().invoke(diff, ["--help"]).output
    examples = re.findall(r"^ +detlayer (diff .*)$", shown, re.MULTILINE)
    assert len(examples) == 2
    for example in examples:
        done = run(*shlex.split(example)[1:], cwd=trees[0])
        assert done.returncode == 0, done.stderr
        assert "same" in done.stdout

"""Transcripts of `detlayer normalize` and `detlayer inspect`: exit, stdout, stderr."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import detlayer


def run(*arguments: str, stdin: bytes = b"", cwd: Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "detlayer", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=cwd, check=False)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "big").write_bytes(b"x" * 3000)
    (tree / "a\nb").write_text("y")
    (tree / "link").symlink_to("big")
    (tree / "big").chmod(0o755)
    return tmp_path


def test_normalize_prints_the_digest_alone(here: Path) -> None:
    tar = subprocess.run(["tar", "-cz", "-C", "tree", "."], cwd=here, capture_output=True, check=True).stdout
    done = run("normalize", "-", "-o", "out.tar.gz", stdin=tar, cwd=here)
    packed = detlayer.pack([str(here / "tree")])
    assert (done.returncode, done.stdout) == (0, f"{packed.digest}\n".encode())
    assert done.stderr.startswith(b"normalized 3 entries, ")


def test_normalize_writes_what_json_says(here: Path) -> None:
    detlayer.pack([str(here / "tree")], output=here / "in.tar")
    done = run("normalize", "in.tar", "-o", "out.tar.zst", "--json", "--descriptor", "d.json", "-q", cwd=here)
    assert done.stdout == (here / "d.json").read_bytes()
    document = json.loads(done.stdout)
    assert document["mediaType"].endswith("tar+zstd")
    assert document["size"] == (here / "out.tar.zst").stat().st_size


def test_errors_leave_no_output(here: Path) -> None:
    (here / "bad").write_bytes(b"\x1f\x8b" + bytes(100))
    done = run("normalize", "bad", "-o", "out.tar", cwd=here)
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr.startswith(b"error[blob-corrupt]: ")
    assert not (here / "out.tar").exists()
    assert run("normalize", "missing", "-o", "out.tar", cwd=here).returncode == 3
    assert run("normalize", "bad", cwd=here).returncode == 2


def test_a_layer_may_replace_itself(here: Path) -> None:
    """The output only appears once all input was read."""
    subprocess.run(["tar", "-cf", "l.tar", "-C", "tree", "."], cwd=here, check=True)
    assert run("normalize", "l.tar", "-o", "l.tar", cwd=here).returncode == 0
    assert str(detlayer.pack([str(here / "tree")]).diff_id).endswith(
        subprocess.run(["sha256sum", "l.tar"], cwd=here, capture_output=True, check=True, text=True).stdout.split()[0]
    )


def test_inspect_text(here: Path) -> None:
    detlayer.pack([f"{here / 'tree'}:/srv"], output=here / "l.tar.gz")
    done = run("inspect", "l.tar.gz", "--top", "1", cwd=here)
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 0
    assert lines[0] == "drwxr-xr-x 0:0            0 2000-01-01 00:00:00 srv/"
    assert lines[1] == "-rw-r--r-- 0:0            1 2000-01-01 00:00:00 srv/a\\nb"
    assert lines[2] == "-rwxr-xr-x 0:0        3,000 2000-01-01 00:00:00 srv/big"
    assert lines[3] == "lrwxrwxrwx 0:0            0 2000-01-01 00:00:00 srv/link -> big"
    assert lines[5].startswith("digest    sha256:")
    assert lines[-1].split() == ["2.9", "KiB", "srv/"]


def test_inspect_json_lines(here: Path) -> None:
    layer = detlayer.pack([f"{here / 'tree'}:/srv"], output=here / "l.tar.gz")
    *entries, result = map(json.loads, run("inspect", "l.tar.gz", "--json", cwd=here).stdout.splitlines())
    assert [entry["path"] for entry in entries] == ["srv", "srv/a\nb", "srv/big", "srv/link"]
    assert entries[3]["target"] == "big"
    assert (result["type"], result["digest"], result["entries"]) == ("result", str(layer.digest), 4)
    summary = run("inspect", "-", "--json", "-s", stdin=(here / "l.tar.gz").read_bytes(), cwd=here).stdout.splitlines()
    assert [json.loads(line) for line in summary] == [result]


def test_inspect_of_an_invalid_layer(here: Path) -> None:
    done = run("inspect", "-", "--json", stdin=b"no tar" * 200, cwd=here)
    assert done.returncode == 3
    assert json.loads(done.stdout)["code"] == "header-checksum"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_inspect_prints_utf8_in_any_locale(here: Path, options: list[str]) -> None:
    (here / "tree" / "é日").touch()
    detlayer.pack([str(here / "tree")], output=here / "in.tar")
    done = subprocess.run(
        [sys.executable, "-m", "detlayer", "inspect", "in.tar", *options],
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        cwd=here,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert "é日".encode() in done.stdout


@pytest.mark.parametrize(
    ("command", "exit_code", "said"),
    [
        ("inspect in.tar >&-", 0, ""),
        ("inspect in.tar --json >&-", 0, ""),
        ("inspect in.tar >/dev/full", 7, "output-closed"),
        ("--help >/dev/full", 7, "output-closed"),
        ("--version >/dev/full", 7, "output-closed"),
        ("pack --help >/dev/full", 7, "output-closed"),
        ("inspect - <&-", 2, "stdin-closed"),
        ("normalize - -o out.tar <&-", 2, "stdin-closed"),
    ],
)
def test_streams_that_are_closed_or_full(here: Path, command: str, exit_code: int, said: str) -> None:
    detlayer.pack([str(here / "tree")], output=here / "in.tar")
    shell = ["sh", "-c", f"{shlex.quote(sys.executable)} -m detlayer {command}"]
    done = subprocess.run(shell, capture_output=True, text=True, cwd=here, check=False)
    assert (done.returncode, said in done.stderr, "bug" in done.stderr) == (exit_code, True, False)

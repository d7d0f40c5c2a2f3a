"""Transcripts of `detlayer pack`: exit code, stdout, stderr, and files on disk."""

from __future__ import annotations

import atexit
import fcntl
import gzip
import hashlib
import importlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from detlayer import __version__
from detlayer.cli import run
from detlayer.oci.types import canonical_json
from detlayer.packing import packer
from tests.layers import pack_tree
from tests.tar_headers import read_headers, read_members
from tests.trees import File, list_files, make_tree
from tests.vectors import counter_bytes

COMMAND = [sys.executable, "-m", "detlayer"]
CACHE = tempfile.mkdtemp(prefix="detlayer-tests-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
ENVIRONMENT = {"PATH": os.environ["PATH"], "DETLAYER_CACHE_DIR": CACHE}


@dataclass(frozen=True)
class Transcript:
    code: int
    out: str
    err: str


def detlayer(
    *arguments: str | Path | bytes, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Transcript:
    """Run it as a process."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env={**ENVIRONMENT, **(env or {})},
        capture_output=True,
        check=False,
        timeout=120,
    )
    return Transcript(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Caller:
    return Caller(capfd)


class Caller:
    """Runs a command in this process, which is faster."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *arguments: str | Path) -> Transcript:
        self._capture.readouterr()
        code = run([str(argument) for argument in arguments])
        return Transcript(code, *self._capture.readouterr())


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small tree in `app`, in the current directory."""
    make_tree(
        tmp_path / "app", {"run": File(b"#!/bin/sh\n", 0o700), "lib": {"a.o": "1", "keep.o": "2"}, "README": "hello\n"}
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


DIGEST = r"sha256:[0-9a-f]{64}\n"
SUMMARY = r"packed 5 entries, \S+ KiB, into out.tar.gz: \d+ bytes of gzip-libdeflate-6 in \d+\.\d s\n"


# -- success


def test_digest_alone_on_stdout(app: Path) -> None:
    found = detlayer("pack", "app", "-o", "out.tar.gz", cwd=app)
    assert found.code == 0
    assert re.fullmatch(DIGEST, found.out)
    assert re.fullmatch(SUMMARY, found.err)
    assert found.out.strip() == "sha256:" + hashlib.sha256((app / "out.tar.gz").read_bytes()).hexdigest()
    assert list_files(app)[-1] == "out.tar.gz"


def test_same_as_the_library(app: Path, call: Caller) -> None:
    assert call("pack", "app:/srv", "-o", "out.tar").out.strip() == str(pack_tree("app:/srv").layer.digest)


def test_json(app: Path, call: Caller) -> None:
    """SPEC 7.2: one document on one line; --descriptor writes the same."""
    found = call("pack", "app", "-o", "out.tar.zst", "--descriptor", "d.json", "--json")
    assert found.code == 0
    document = json.loads(found.out)
    assert found.out.encode() == canonical_json(document) + b"\n" == (app / "d.json").read_bytes()
    blob = (app / "out.tar.zst").read_bytes()
    assert document["mediaType"] == "application/vnd.oci.image.layer.v1.tar+zstd"
    assert (document["digest"], document["size"]) == ("sha256:" + hashlib.sha256(blob).hexdigest(), len(blob))
    about = {name.removeprefix("dev.detlayer."): value for name, value in document["annotations"].items()}
    assert (about["entries"], about["files"], about["codec"], about["chunks"]) == ("5", "4", "zstd-3", "1")
    assert about.keys() >= {"diff-id", "key", "tar-format", "chunk-format", "codec-format", "codec-class", "tar-bytes"}
    assert found.err.startswith("packed 5 entries")


def test_stdout_gets_the_blob(app: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "pack", "app", "-o", "-"], env=ENVIRONMENT, cwd=app, capture_output=True, check=True
    )
    assert [header.path for header in read_headers(gzip.decompress(done.stdout))] == [
        b"README",
        b"lib/",
        b"lib/a.o",
        b"lib/keep.o",
        b"run",
    ]
    assert b"into stdout" in done.stderr


def test_oci_layout(app: Path, call: Caller) -> None:
    digest = call("pack", "app", "--oci", "image").out.strip().removeprefix("sha256:")
    assert hashlib.sha256((app / "image" / "blobs" / "sha256" / digest).read_bytes()).hexdigest() == digest


def test_quiet_and_verbose(app: Path, call: Caller) -> None:
    quiet = call("pack", "app", "-o", "a.tar", "-q")
    assert (quiet.code, quiet.err) == (0, "")
    assert re.fullmatch(DIGEST, quiet.out)
    verbose = call("pack", "app", "-o", "a.tar", "-v")
    for word in ("digest ", "diff_id ", "key ", "codec class ", "chunks "):
        assert f"\n  {word}" in verbose.err


def test_quiet_still_warns(app: Path, call: Caller) -> None:
    make_tree(app / "app", {"readme": ""})
    found = call("pack", "app", "-o", "a.tar", "-q")
    assert found.err.startswith("warning[case-collision]: README and readme differ only in case")
    assert found.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("o.tar", "none"),
        ("o.tar.gz", "gzip-libdeflate-6"),
        ("o.tgz", "gzip-libdeflate-6"),
        ("o.tar.zst", "zstd-3"),
        ("o", "gzip-libdeflate-6"),
    ],
)
def test_suffix(app: Path, call: Caller, name: str, codec: str) -> None:
    """SPEC 6.2."""
    assert f" of {codec} in " in call("pack", "app", "-o", name).err


@pytest.mark.parametrize("compression", ["gzip:1", "gzip-stored"])
def test_suffix_matches_the_family(app: Path, call: Caller, compression: str) -> None:
    assert call("pack", "app", "-o", "o.tgz", "-c", compression).code == 0


@pytest.mark.parametrize(
    ("arguments", "paths"),
    [
        (["--exclude", "*.o"], ["README", "lib", "run"]),
        (["--exclude", "*.o", "--include", "keep.o"], ["README", "lib", "lib/keep.o", "run"]),
        (["--include", "keep.o", "--exclude", "*.o"], ["README", "lib", "run"]),
        (["--exclude", "*", "--include", "run", "--exclude", "run", "--include", "README"], ["README"]),
        (["--exclude=*.o", "--include", "*.o", "--exclude=keep.o"], ["README", "lib", "lib/a.o", "run"]),
    ],
)
def test_order_of_patterns(app: Path, call: Caller, arguments: list[str], paths: list[str]) -> None:
    """SPEC 4.9: the last match wins, in the order of the command line."""
    assert call("pack", "app", "-o", "a.tar", *arguments).code == 0
    assert [member.name for member in read_members((app / "a.tar").read_bytes())] == paths


def test_options_set_the_values_of_entries(app: Path, call: Caller) -> None:
    """SPEC 4.1 to 4.4."""
    options = ["--mtime", "5", "--owner", "7:8", "--chmod", "*.o=600", "--chown", "/run=9:10", "--whiteout", "/x/gone"]
    assert call("pack", "app", "-o", "a.tar", *options).code == 0
    found = {member.name: member for member in read_members((app / "a.tar").read_bytes())}
    assert (found["lib/a.o"].mode, found["lib/a.o"].uid, found["lib/a.o"].gid, found["lib/a.o"].mtime) == (
        0o600,
        7,
        8,
        5,
    )
    assert (found["run"].mode, found["run"].uid, found["run"].gid) == (0o755, 9, 10)
    assert (found["x/.wh.gone"].uid, found["x"].uid) == (0, 0)


def test_clamp_takes_source_date_epoch(app: Path, call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPEC 4.1."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000")
    assert call("pack", "app", "-o", "a.tar", "--mtime", "clamp").code == 0
    assert {member.mtime for member in read_members((app / "a.tar").read_bytes())} == {1000}


def test_source_date_epoch_alone_changes_nothing(app: Path, call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPEC 4.1."""
    before = call("pack", "app", "-o", "a.tar").out
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000")
    assert call("pack", "app", "-o", "a.tar").out == before


def test_jobs(app: Path, call: Caller) -> None:
    assert len({call("pack", "app", "-o", "a.tar", "-j", str(jobs)).out for jobs in range(1, 9)}) == 1


def test_version_and_help() -> None:
    assert detlayer("--version") == Transcript(0, f"detlayer {__version__}\n", "")
    for arguments in (["--help"], ["pack", "--help"], ["-h"]):
        found = detlayer(*arguments)
        assert (found.code, found.err) == (0, "")
        assert "detlayer pack .:/srv/app --exclude .git -o ../app.tar.gz" in found.out


def test_the_example_runs(app: Path) -> None:
    assert detlayer("pack", ".:/srv/app", "--exclude", ".git", "-o", "../app.tar.gz", cwd=app / "app").code == 0
    assert (
        detlayer("pack", ".:/srv/app", "--owner", "1000:1000", "--oci", "../image", "--json", cwd=app / "app").code == 0
    )


# -- usage and configuration: exit 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["-o", "o.tar.gz", "-c", "zstd"], "compression-contradicts"),
        (["-o", "o.tar", "-c", "gzip"], "compression-contradicts"),
        (["-o", "o.tar.zst", "-c", "none"], "compression-contradicts"),
        (["-o", "O.TAR.GZ", "-c", "none"], "compression-contradicts"),
        (["-o", "o", "-c", "gzip:0"], "compression-level"),
        (["-o", "o", "-c", "gzip:13"], "compression-level"),
        (["-o", "o", "-c", "zstd:99"], "compression-level"),
        (["-o", "o", "-c", "xz"], "compression-unknown"),
        (["-o", "-", "--json"], "stdout-twice"),
        ([], "no-output"),
        (["--descriptor", "d"], "no-output"),
        (["--oci", "image", "--depfile", "d"], "depfile-target"),
        (["-o", "o", "--mtime", "yesterday"], "mtime-invalid"),
        (["-o", "o", "--mtime", "-1"], "mtime-invalid"),
        (["-o", "o", "--mtime", "8589934592"], "mtime-invalid"),
        (["-o", "o", "--mtime", "1.5"], "mtime-invalid"),
        (["-o", "o", "--mtime", ""], "mtime-invalid"),
        (["-o", "o", "--mtime", "\u0665"], "mtime-invalid"),
        (["-o", "o", "--mtime", "clamp"], "mtime-invalid"),
        (["-o", "o", "--mtime", "clamp:"], "mtime-invalid"),
        (["-o", "o", "--mtime", "clamp:x"], "mtime-invalid"),
        (["-o", "o", "--mtime", "source:5"], "mtime-invalid"),
        (["-o", "o", "--owner", "root"], "owner-invalid"),
        (["-o", "o", "--owner", "4294967295"], "owner-invalid"),
        (["-o", "o", "--chmod", "x"], "rule-invalid"),
        (["-o", "o", "--chmod", "x=rwx"], "mode-invalid"),
        (["-o", "o", "--chown", "x=root"], "owner-invalid"),
        (["-o", "o", "--exclude", "a\\"], "pattern-invalid"),
        (["-o", "o", "--include", "!a"], "pattern-invalid"),
        (["-o", "o", "--ignore-file", "missing"], "ignore-file"),
        (["-o", "o", "--whiteout", "/"], "destination-invalid"),
        (["-o", "o", "--opaque", "../x"], "destination-invalid"),
        (["-o", "app/o.tar"], "output-in-source"),
        (["-o", "o", "--special", "maybe"], "usage"),
        (["-o", "o", "--jobs", "0"], "usage"),
        (["-o", "o", "--jobs", "many"], "usage"),
        (["-o", "o", "--no-such-option"], "usage"),
        (["-o"], "usage"),
    ],
)
def test_configuration_errors(app: Path, call: Caller, arguments: list[str], code: str) -> None:
    """Exit 2, the code, a hint, nothing on stdout and nothing on disk."""
    before = list_files(app)
    found = call("pack", "app", *arguments)
    assert (found.code, bool(found.out)) == (2, "--json" in arguments)
    assert found.err.startswith(f"error[{code}]: ")
    assert "\n  hint: " in found.err
    assert list_files(app) == before


def test_bad_source_date_epoch(app: Path) -> None:
    found = detlayer("pack", "app", "-o", "o", "--mtime", "clamp", cwd=app, env={"SOURCE_DATE_EPOCH": "now"})
    assert found.code == 2
    assert "invalid time 'now' (SOURCE_DATE_EPOCH)" in found.err


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["nonsense", "--json"], ["pack"], ["--nonsense"], ["pack", "--json"]]
)
def test_usage(call: Caller, arguments: list[str]) -> None:
    found = call(*arguments)
    assert found.code == 2
    assert found.err.startswith("error[usage]: ")
    assert "--help`" in found.err
    assert bool(found.out) == ("--json" in arguments)


def test_no_command_shows_the_commands(call: Caller) -> None:
    found = call()
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith("Usage: detlayer")
    assert "pack" in found.err


def test_stdout_is_a_terminal(app: Path) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [*COMMAND, "pack", "app", "-o", "-"],
        cwd=app,
        env=ENVIRONMENT,
        stdout=theirs,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 2
    assert b"error[stdout-terminal]" in done.stderr


# -- the tree: exit 3


@pytest.mark.parametrize(
    ("make", "code"), [("fifo", "special-files"), (".wh.x", "whiteout-name"), ("missing", "source-missing")]
)
def test_tree_errors(app: Path, call: Caller, make: str, code: str) -> None:
    """Exit 3 and no output file, of any kind; an older one is kept."""
    if make == "fifo":
        os.mkfifo(app / "app" / "zz")
    elif make == ".wh.x":
        (app / "app" / "zz").mkdir()
        (app / "app" / "zz" / make).touch()
    (app / "old.tar").write_text("old")
    before = list_files(app)
    source = "nowhere" if make == "missing" else "app"
    found = call("pack", source, "-o", "old.tar", "--descriptor", "d", "--depfile", "m")
    assert (found.code, found.out) == (3, "")
    assert found.err.startswith(f"error[{code}]: ")
    assert "\n  hint: " in found.err
    assert list_files(app) == before
    assert (app / "old.tar").read_text() == "old"


def test_tree_error_leaves_no_layout(app: Path, call: Caller) -> None:
    os.mkfifo(app / "app" / "zz")
    assert call("pack", "app", "--oci", "image").code == 3
    assert not (app / "image").exists()


def test_json_error(app: Path, call: Caller) -> None:
    found = call("pack", "nowhere", "-o", "a.tar", "--json")
    document = json.loads(found.out)
    assert found.code == 3
    assert (document["type"], document["code"]) == ("error", "source-missing")
    assert document["message"] in found.err
    assert document["hint"] in found.err
    assert found.out.count("\n") == 1


def test_names_are_escaped(app: Path) -> None:
    """File names can't print extra lines or colours to the terminal."""
    os.mkfifo(app / "app" / "fi\nfo\x1b[31m")
    found = detlayer("pack", "app", "-o", "a.tar", cwd=app)
    assert "fi\\nfo\\x1b[31m" in found.err
    assert "\x1b" not in found.err
    for arguments in (
        ["no\nwhere", "-o", "x"],
        ["app", "-o", "a\nb/x"],
        ["app", "-o", "x", "--a\nb"],
        ["app", "-o", "x", "--chmod", "a\nb"],
    ):
        found = detlayer("pack", *arguments, cwd=app)
        assert found.code in (2, 3, 7)
        assert len(found.err.splitlines()) == 2, found.err


def test_output_name_is_escaped_in_the_summary(app: Path) -> None:
    found = detlayer("pack", "app", "-o", "a\nb.tar", cwd=app)
    assert found.code == 0
    assert len(found.err.splitlines()) == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_json_is_utf8_on_any_terminal(app: Path, encoding: str) -> None:
    """RFC 8259: and no terminal encoding turns an error into a traceback."""
    found = detlayer("pack", "日本", "-o", "x", "--json", cwd=app, env={"PYTHONIOENCODING": encoding})
    assert found.code == 3
    assert json.loads(found.out)["code"] == "source-missing"
    assert "Traceback" not in found.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["pack", b"\xff", "-o", "x"],
        ["pack", "app", "-o", b"x\xff"],
        [b"\xff"],
        ["pack", b"--\xff"],
        ["pack", "app", "-c", b"\xff"],
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_arguments_that_are_not_utf8(app: Path, arguments: list[str | bytes], as_json: bool) -> None:
    found = detlayer(*arguments, *(["--json"] if as_json else []), cwd=app)
    assert found.code in (0, 2, 3)
    assert "Traceback" not in found.err
    if as_json:
        json.loads(found.out)


# -- the output: exit 7


@pytest.mark.parametrize(
    ("name", "code"),
    [("missing/o.tar", "output-directory-missing"), ("app", "output-is-directory"), ("/dev/full", "disk-full")],
)
def test_output_errors(app: Path, call: Caller, name: str, code: str) -> None:
    found = call("pack", "app", "-o", name)
    assert (found.code, found.out) == (7, "")
    assert found.err.startswith(f"error[{code}]: ")


def test_reader_goes_away(app: Path) -> None:
    """`detlayer … -o - | head -c 1`: exit 7, one error, no message from Python."""
    make_tree(app / "app", {"big": counter_bytes("big", 3 << 20)})
    with subprocess.Popen(
        [*COMMAND, "pack", "app", "-o", "-"], cwd=app, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == 7
    assert said.startswith("error[output-closed]: ")
    assert "Exception ignored" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize("where", ["/dev/full", "closed pipe"])
def test_digest_has_no_reader(app: Path, where: str) -> None:
    """The digest can't be printed: an output error, not a bug in detlayer, and not success."""
    if where == "closed pipe":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open(where, os.O_WRONLY)
    done = subprocess.run(
        [*COMMAND, "pack", "app", "-o", "a.tar", "-q"],
        cwd=app,
        env=ENVIRONMENT,
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 7
    assert b"Traceback" not in done.stderr
    assert b"detlayer-bug" not in done.stderr


def test_no_stdout_at_all(app: Path) -> None:
    script = f"exec '{sys.executable}' -m detlayer pack app -o - >&-"
    done = subprocess.run(["sh", "-c", script], cwd=app, env=ENVIRONMENT, stderr=subprocess.PIPE, check=False)
    assert done.returncode in (2, 7)
    assert b"detlayer-bug" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_stdout_that_does_not_block(app: Path, unbuffered: str) -> None:
    """A full non-blocking pipe accepts partial writes: the whole blob arrives, or the exit code reports it."""
    make_tree(app / "app", {"big": counter_bytes("big", 3 << 20)})
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETFL, fcntl.fcntl(writing, fcntl.F_GETFL) | os.O_NONBLOCK)
    with subprocess.Popen(
        [*COMMAND, "pack", "app", "-c", "none", "-o", "-", "-q"],
        cwd=app,
        env={**ENVIRONMENT, "PYTHONUNBUFFERED": unbuffered},
        stdout=writing,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(writing)
        code = process.wait() if unbuffered else None
        with open(reading, "rb") as pipe:
            got = pipe.read()
        code = process.wait() if code is None else code
    assert code == 7 or got == pack_tree(app / "app").blob


# -- a bug: exit 70


def test_bug(app: Path, call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, with the path of the traceback."""

    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr("detlayer.cli.pack.pack_sources", broken)
    monkeypatch.setattr(tempfile, "tempdir", str(app))
    found = call("pack", "app", "-o", "a.tar")
    assert (found.code, found.out) == (70, "")
    assert found.err.startswith("error[bug]: ZeroDivisionError: by nought\n  hint: ")
    (report,) = app.glob("detlayer-bug-*.txt")
    assert str(report) in found.err
    assert "in broken\n" in report.read_text()
    assert __version__ in report.read_text()


# -- interrupted: exit 130 and 143


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped(app: Path, number: int, code: int) -> None:
    """In the middle of a pack, with a blocked reader: no partial file is left, an older one is kept."""
    make_tree(app / "app", {"big": b""})
    with (app / "app" / "big").open("wb") as file:
        file.truncate(40 << 30)
    (app / "old.tar").write_text("old")
    before = list_files(app)
    command = [*COMMAND, "pack", "app", "-o", "old.tar", "-c", "none", "--descriptor", "d", "--progress", "plain"]
    with subprocess.Popen(command, cwd=app, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.readline()  # the first line of progress: the pack has started
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == b""
    assert b"Traceback" not in err
    assert b"warning[interrupted]: " in err
    assert list_files(app) == before
    assert (app / "old.tar").read_text() == "old"


# -- colour and progress


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colour(app: Path, environment: dict[str, str], coloured: bool) -> None:
    """Only on a terminal without NO_COLOR."""
    ours, theirs = pty.openpty()
    subprocess.run(
        [*COMMAND, "pack", "nowhere", "-o", "x"],
        cwd=app,
        env={**ENVIRONMENT, **environment},
        stderr=theirs,
        check=False,
    )
    os.close(theirs)
    said = os.read(ours, 10000)
    os.close(ours)
    assert b"source-missing" in said
    assert (b"\x1b[" in said) == coloured
    assert "\x1b" not in detlayer("pack", "nowhere", "-o", "x", cwd=app, env=environment).err


def test_no_bar_for_short_work(app: Path) -> None:
    found = detlayer("pack", "app", "-o", "a.tar", "--progress", "bar", cwd=app)
    assert len(found.err.splitlines()) == 1


def test_the_patched_function_exists() -> None:
    """The bug test patches the function that the command calls."""
    assert vars(importlib.import_module("detlayer.cli.pack"))["pack_sources"] is packer.pack


def test_stderr_without_a_reader(src: Path) -> None:
    """The exit code is unchanged: Python would exit with 120, because it can't flush its buffer."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "detlayer", "pack", str(src / "nothing"), "-o", os.devnull]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stderr is not None
        process.stderr.close()
        assert process.wait() == 3

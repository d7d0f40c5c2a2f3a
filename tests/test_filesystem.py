"""A temporary error is reported, not taken as a missing file, and nothing is written (only ENOENT and ENOTDIR mean that
a file is missing). The errors are injected into the real command."""

from __future__ import annotations

import errno
import json
import os
import py_compile
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from detlayer import filesystem
from detlayer.building.git_revision import describe
from detlayer.errors import ConfigError, OutputError
from detlayer.store import Store
from detlayer.store.maintenance import collect
from tests.layers import Words
from tests.privileges import program
from tests.trees import make_tree

ERRORS = ["EIO", "ESTALE", "ENOMEM"]
BUG = 70


def run(home: Path, *arguments: str, strace: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*strace, sys.executable, "-m", "detlayer", *arguments],
        cwd=home,
        env={**os.environ, "DETLAYER_CACHE_DIR": str(home / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@dataclass(frozen=True)
class Case:
    """A command, and the path whose lookup fails: as written in the command, or the listed directory."""

    spec: dict[str, Any]
    command: tuple[str, ...]
    path: str
    words: str
    calls: str = "newfstatat,readlink"
    inside: str = ""
    prepare: Callable[[Path], object] = field(default=lambda home: None)
    unchanged: tuple[str, ...] = ()


def compile_module(home: Path) -> None:
    timestamp = py_compile.PycInvalidationMode.TIMESTAMP
    py_compile.compile(str(home / "src" / "m.py"), doraise=True, invalidation_mode=timestamp)


def make_image(home: Path) -> None:
    """A layout with an image of another tool, and one whose name has a colon."""
    make_tree(home / "empty", {"f": "x"})
    for name in ("img", "img:v1"):
        done = run(home, "pack", "empty", "--no-cache", "--oci", name)
        assert done.returncode == 0, done.stderr
    manifests = [{"mediaType": "x/y", "digest": "sha256:" + "0" * 64, "size": 1}]
    (home / "img" / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))


def make_link(home: Path) -> None:
    (home / "target").mkdir()
    (home / "out.tar").symlink_to("target/out.tar")


PROJECT = '[images.app]\nplatforms = ["linux/amd64"]\n[[images.app.layers]]\nname = "a"\nsources = ["src:/app"]\n'
CASES = {
    "the source of bytecode": Case(
        {"src": {"m.py": "x = 1\n"}},
        ("pack", "src", "--no-cache", "-o", "out.tar"),
        "../m.py",
        "src/m.py",
        prepare=compile_module,
    ),
    "a file that was read": Case(
        {"src": {"a": "x"}},
        ("pack", "src", "--no-cache", "-o", "out.tar"),
        "{home}/src/a",
        "src/a",
        calls="newfstatat,fstat",
    ),
    "an ignore file": Case(
        {"src": {"a": "", "secret": "", ".detlayerignore": "secret\n"}},
        ("pack", "src", "--no-cache", "-o", "out.tar"),
        "src/.detlayerignore",
        ".detlayerignore",
    ),
    "an ignore file of a tree that is compared": Case(
        {"src": {"a": "", "secret": "", ".detlayerignore": "secret\n"}, "other": {"a": ""}},
        ("diff", "--normalized", "src", "other"),
        "src/.detlayerignore",
        ".detlayerignore",
    ),
    "what a source is": Case(
        {"file": "x"}, ("pack", "file:/etc/", "--no-cache", "-o", "out.tar"), "file", "file", calls="newfstatat"
    ),
    "an index": Case(
        {"src": {"a": "x"}},
        ("pack", "src", "--no-cache", "--oci", "img"),
        "{home}/img/index.json",
        "index.json",
        prepare=make_image,
        unchanged=("img/index.json",),
    ),
    "a symlink at the output": Case(
        {"src": {"a": "x"}},
        ("pack", "src", "--no-cache", "-o", "out.tar"),
        "out.tar",
        "out.tar",
        prepare=make_link,
    ),
    "whether the output lies in the source": Case(
        {"src": {"a": "x"}},
        ("pack", "src", "--no-cache", "-o", "src/out.tar"),
        "{home}/src",
        "src",
    ),
    "the project here": Case(
        {"detlayer.toml": PROJECT, "src": {"a": ""}, "sub": {"detlayer.toml": PROJECT, "src": {"b": ""}}},
        ("graph",),
        "{home}/sub/detlayer.toml",
        "detlayer.toml",
        inside="sub",
    ),
    "members": Case(
        {
            "detlayer.toml": 'members = ["parts/*"]\n' + PROJECT,
            "src": {"a": ""},
            "parts": {"one": {"detlayer.toml": PROJECT.replace("app", "one"), "src": {"a": ""}}},
        },
        ("graph",),
        "{home}/parts",
        "parts",
        calls="getdents64",
    ),
    "a layout's name": Case(
        {"src": {"a": "x"}},
        ("verify", "oci:img:v1"),
        "img:v1",
        "img:v1",
        prepare=make_image,
    ),
    "whether a target is a layer": Case(
        {"x.tar": "not a tar"}, ("verify", "x.tar"), "x.tar", "x.tar", calls="newfstatat"
    ),
    "what is compared": Case(
        {"src": {"a": ""}, "b": {"a": ""}}, ("diff", "src", "b"), "src", "src", calls="newfstatat"
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("error", ERRORS)
def test_an_error_is_not_an_absence(tmp_path: Path, name: str, error: str) -> None:
    """A single error, as when a mount hangs for a moment."""
    case = CASES[name]
    home = make_tree(tmp_path / "home", case.spec)
    case.prepare(home)
    kept = {one: (home / one).read_bytes() for one in case.unchanged}
    links = {one for one in home.iterdir() if one.is_symlink()}
    log = tmp_path / "log"
    path = case.path.format(home=home)
    inject = f"inject={case.calls}:error={error}:when=1"
    strace = (program("strace"), "-f", "-qq", "-o", str(log), "-P", path, "-e", f"trace={case.calls}", "-e", inject)
    done = run(home / case.inside, *case.command, strace=strace)
    assert "INJECTED" in log.read_text(errors="replace"), "nothing asked for it"
    assert done.returncode not in (0, BUG), (done.stdout, done.stderr)
    said = done.stderr + done.stdout
    assert case.words in said
    assert os.strerror(getattr(errno, error)) in said
    assert not (home / "out.tar").exists()
    assert {one: (home / one).read_bytes() for one in case.unchanged} == kept
    assert {one for one in home.iterdir() if one.is_symlink()} == links


def test_what_is_absent_is_no_error(tmp_path: Path) -> None:
    """ENOENT, ENOTDIR, and invalid paths."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "file" / "below"):
        assert filesystem.look(str(path)) is None
        assert not filesystem.is_dir(os.fsencode(path))
        assert not filesystem.is_file(str(path))
        assert filesystem.real_path(str(path)) == str(path)
    assert filesystem.look("a\0b") is None


def test_what_is_there_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    assert filesystem.is_file(str(tmp_path / "link"))
    assert filesystem.is_dir(str(tmp_path))
    assert filesystem.real_path(str(tmp_path / "link")) == str(tmp_path / "file")
    assert filesystem.real_path(str(tmp_path / "loop" / "x"))
    with pytest.raises(OSError, match="symbolic links"):
        filesystem.is_file(str(tmp_path / "loop"))


def test_an_output_whose_state_is_not_known_is_written_again(tmp_path: Path) -> None:
    """It was written, and then stat failed: that is not a deleted file."""
    spec: dict[str, Any] = {"detlayer.toml": PROJECT, "src": {"a": "x"}}
    output = ("build", "--output", "oci-archive:out.tar", "-j", "1")  # in one thread: the same calls in both runs
    log = tmp_path / "log"
    strace = (program("strace"), "-f", "-qq", "-o", str(log), "-P", "out.tar", "-e", "trace=newfstatat")
    assert run(make_tree(tmp_path / "first", spec), *output, strace=strace).returncode == 0
    calls = log.read_text().splitlines()
    seen = next(line for line in calls if "AT_SYMLINK_NOFOLLOW" not in line and line.endswith("= 0"))
    thread = [line for line in calls if line.split()[0] == seen.split()[0]]  # strace counts in each
    home = make_tree(tmp_path / "home", spec)
    inject = ("-e", f"inject=newfstatat:error=EIO:when={thread.index(seen) + 1}")
    done = run(home, *output, strace=(*strace, *inject))
    assert done.returncode == 0, done.stderr
    assert "INJECTED" in log.read_text()
    (home / "out.tar").unlink()
    assert run(home, *output).returncode == 0
    assert (home / "out.tar").exists()


def test_leases_that_cannot_be_listed_are_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection then removes nothing, since other processes may need it."""
    with Store(str(tmp_path / "cache"), reporter=Words()) as one:
        digest = one.blobs.put(b"needed")
        real = os.stat

        def stat(path: Any, **how: Any) -> os.stat_result:
            if os.fspath(path) in (str(tmp_path / "cache" / "leases"), os.fsencode(tmp_path / "cache" / "leases")):
                raise OSError(errno.EIO, "Input/output error", path)
            return real(path, **how)

        with Store(str(tmp_path / "cache"), reporter=Words()) as other:
            monkeypatch.setattr(os, "stat", stat)
            with pytest.raises(OutputError) as caught:
                collect(other, max_bytes=0)
            monkeypatch.undo()
        assert caught.value.code == "cache-closed"
        assert one.blobs.get(digest) == b"needed"


def test_a_remote_that_git_cannot_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as an image without a source."""
    git = program("git")
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=b", "commit", "-q", "--allow-empty", "-mx"],
    ):
        subprocess.run([git, "-C", str(tmp_path), *command], check=True)
    assert len(describe(str(tmp_path))) == 1
    shim = tmp_path / "bin" / "git"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\ncase "$*" in *config*) exit 128;; esac\nexec {git} "$@"\n')
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
    with pytest.raises(ConfigError) as caught:
        describe(str(tmp_path))
    assert caught.value.code == "git-missing"

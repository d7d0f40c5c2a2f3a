"""Temporary files (src/detlayer/output/temporary.py): a killed process leaves none, or the next run removes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from detlayer.images.layout_writer import LayoutWriter
from detlayer.layer.entry import TEMPORARY_NAME, is_temporary, without_temporaries
from detlayer.oci.types import Digest
from detlayer.output.files import FileOutput, LayoutOutput, write_file
from detlayer.output.temporary import Temporary, sweep
from tests.layers import pack_tree
from tests.privileges import program
from tests.trees import list_files, make_tree

ABANDONED = TEMPORARY_NAME % "0123456789ab"
DIGEST = Digest("ab" * 32)


def start_output(goal: Path, *, is_layout: bool = False, named: bool = False) -> subprocess.Popen[bytes]:
    """Start a process that begins an output and waits."""
    script = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        f"if {named}: del os.O_TMPFILE\n"
        "from detlayer.output.files import FileOutput, LayoutOutput\n"
        f"output = {'LayoutOutput' if is_layout else 'FileOutput'}(sys.argv[1])\n"
        "output.write(b'half')\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(goal)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def temporaries(path: Path) -> list[str]:
    return [name for name in list_files(path) if is_temporary(os.fsencode(os.path.basename(name)))]


def test_a_killed_process_leaves_no_file(tmp_path: Path) -> None:
    kill(start_output(tmp_path / "out"))
    assert list_files(tmp_path) == []


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path, temporary_files: str) -> None:
    kill(start_output(tmp_path / "out", named=True))
    assert len(temporaries(tmp_path)) == 1
    write_file(tmp_path / "out", b"new")
    assert list_files(tmp_path) == ["out"]


def test_the_next_run_leaves_what_is_in_use(tmp_path: Path, temporary_files: str) -> None:
    process = start_output(tmp_path / "out", named=True)
    try:
        write_file(tmp_path / "out", b"new")
        assert len(temporaries(tmp_path)) == 1
    finally:
        kill(process)


@pytest.mark.parametrize("is_named", [False, True])
def test_a_killed_layout_output_leaves_blobs_clean(tmp_path: Path, temporary_files: str, is_named: bool) -> None:
    layout = tmp_path / "layout"
    kill(start_output(layout, is_layout=True, named=is_named))
    assert os.listdir(layout / "blobs" / "sha256") == []
    assert len(temporaries(layout)) == is_named
    output = LayoutOutput(layout)
    output.write(b"x")
    output.settle()
    output.commit(DIGEST)
    assert sorted(list_files(layout)) == [
        *("blobs", "blobs/sha256", f"blobs/sha256/{DIGEST.hex}"),
        *("index.json", "oci-layout"),
    ]


@pytest.mark.parametrize("where", [".", "blobs/sha256", ".detlayer"])
def test_a_layout_is_swept_of_what_earlier_versions_left(tmp_path: Path, temporary_files: str, where: str) -> None:
    make_tree(tmp_path / "layout" / where, {ABANDONED: "half"})
    LayoutWriter(tmp_path / "layout").put(b"{}")
    assert temporaries(tmp_path) == []
    assert not (tmp_path / "layout" / ".detlayer").exists()


def test_umoci_collects_after_a_kill(tmp_path: Path) -> None:
    """Temporary files among the blobs made `umoci gc` fail."""
    layout = tmp_path / "layout"
    tree = make_tree(tmp_path / "tree", {"a": "x"})
    subprocess.run([sys.executable, "-m", "detlayer", "pack", tree, "--oci", layout], check=True, capture_output=True)
    kill(start_output(layout, is_layout=True, named=True))
    done = subprocess.run([program("umoci"), "gc", "--layout", layout], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_only_files_of_exactly_that_name_are_swept(tmp_path: Path) -> None:
    others = [ABANDONED.upper(), ABANDONED + "x", "x" + ABANDONED, ".detlayer-0123456789a.tmp", ".detlayer-xyz.tmp"]
    make_tree(tmp_path, dict.fromkeys(others, "mine"))
    outside = make_tree(tmp_path / "outside", {"file": "mine"})
    (tmp_path / (TEMPORARY_NAME % "00000000000a")).mkdir()
    (tmp_path / (TEMPORARY_NAME % "00000000000b")).symlink_to(outside / "file")
    os.mkfifo(tmp_path / (TEMPORARY_NAME % "00000000000c"))
    before = list_files(tmp_path)
    sweep(str(tmp_path))
    assert list_files(tmp_path) == before


def test_nothing_is_swept_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.delattr(os, "O_TMPFILE")
    make_tree(tmp_path, {ABANDONED: "half"})
    write_file(tmp_path / "out", b"new")
    assert sorted(list_files(tmp_path)) == [ABANDONED, "out"]


def test_a_sweep_between_making_and_locking_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may find a named file before its owner has locked it."""
    monkeypatch.delattr(os, "O_TMPFILE")
    real, calls = os.open, list[str]()

    def sweeping_open(path: str, flags: int, *rest: int, **options: int) -> int:
        fd = real(path, flags, *rest, **options)
        if flags & os.O_EXCL and not calls:
            calls.append(path)
            monkeypatch.setattr(os, "open", real)
            sweep(str(tmp_path))
        return fd

    monkeypatch.setattr(os, "open", sweeping_open)
    file = Temporary(str(tmp_path))
    os.write(file.fd, b"whole")
    file.publish(str(tmp_path / "out"))
    file.close()
    assert calls
    assert (tmp_path / "out").read_bytes() == b"whole"
    assert list_files(tmp_path) == ["out"]


def test_a_file_appears_meanwhile(tmp_path: Path, temporary_files: str) -> None:
    output = FileOutput(tmp_path / "out")
    output.write(b"ours")
    (tmp_path / "out").write_text("theirs")
    output.commit()
    output.discard()
    assert (tmp_path / "out").read_bytes() == b"ours"
    assert list_files(tmp_path) == ["out"]


@pytest.mark.parametrize("count", [1, 3])
def test_a_tree_never_has_temporary_files(src: Path, count: int) -> None:
    """They belong to other processes: with them, the same files would give another layer."""
    make_tree(src, {"a": "x", ".detlayer-": "kept", "d": {"b": "y"}})
    clean = pack_tree(src).layer.digest
    for number in range(count):
        name = TEMPORARY_NAME % f"{number:012x}"
        make_tree(src, {name: "half", "d": {name: "half"}})
    assert pack_tree(src).layer.digest == clean
    assert pack_tree(src, exclude=["!.detlayer-*"]).layer.digest == clean


def test_a_pack_beside_an_unfinished_one(tmp_path: Path, src: Path) -> None:
    """An excluded output inside its source, as in a project that packs itself."""
    make_tree(src, {"a": "x"})
    clean = pack_tree(src, exclude=["out.tar"]).layer.digest
    process = start_output(src / "out.tar", named=True)
    try:
        assert len(temporaries(src)) == 1
        for cache in ("none", "cold", "warm"):
            store = [] if cache == "none" else ["--cache-dir", str(tmp_path / "cache")]
            command = [sys.executable, "-m", "detlayer", "pack", str(src), "--exclude", "out.tar", *store]
            done = subprocess.run(
                [*command, "-o", str(src / "out.tar")] + (["--no-cache"] if not store else []),
                capture_output=True,
                text=True,
                check=True,
            )
            assert done.stdout.strip() == str(clean)
    finally:
        kill(process)


def test_names() -> None:
    names = [b".a", b".detlayer-000000000000.tmp", b".detlayer-x", b"a"]
    assert without_temporaries(names) == [b".a", b".detlayer-x", b"a"]
    assert without_temporaries([b"a", b"b"]) == [b"a", b"b"]
    assert is_temporary((TEMPORARY_NAME % os.urandom(6).hex()).encode())

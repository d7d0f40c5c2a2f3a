"""A read returns one state of a file, even if size and mtime are set back after a write (SPEC 9.1, 9.2)."""

from __future__ import annotations

import importlib.util
import io
import multiprocessing
import os
import py_compile
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from detlayer import diff
from detlayer.errors import TreeError
from detlayer.layer.entry import Mtime, Profile
from detlayer.layer.key import key_of
from detlayer.layer.writer import fingerprint
from detlayer.packing import packer
from detlayer.packing.options import PackOptions
from detlayer.tree import Source, copy_file, read_file
from tests.layers import pack_tree, walk_tree
from tests.privileges import need_user_xattrs
from tests.trees import make_tree

ROUNDS = int(os.environ.get("DETLAYER_EDIT_ROUNDS", "300"))
MIB = 1 << 20
SMALL, LARGE = 100_000, 9 * MIB  # read in one piece; read and packed in several
EARLIER = 1_000_000_000

Act = Callable[[Path], object]


def rewrite(path: Path) -> None:
    """Write other bytes, and set the mtime back."""
    status = path.stat()
    with path.open("r+b") as file:
        file.write(b"B" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def change_mode(path: Path) -> None:
    path.chmod(path.stat().st_mode ^ 0o020)


def add_link(path: Path) -> None:
    os.link(path, path.parent.parent / f"link{time.monotonic_ns()}")


@pytest.fixture
def tree(src: Path) -> Path:
    return make_tree(src, {"before": "x", "z": "x"})


def put(tree: Path, size: int) -> Path:
    path = tree / "file"
    path.write_bytes(b"A" * size)
    os.utime(path, (EARLIER, EARLIER))
    return path


def while_read(monkeypatch: pytest.MonkeyPatch, path: Path, act: Act, *, times: int = 1) -> list[int]:
    """Act once half of a piece is read, whenever the file is read from its start; returns the offsets."""
    real = os.readv
    inode, reads = path.stat().st_ino, list[int]()

    def readv(fd: int, buffers: Any) -> int:
        (view,) = buffers
        if os.fstat(fd).st_ino != inode:
            return real(fd, buffers)
        at = os.lseek(fd, 0, os.SEEK_CUR)
        if at:
            return real(fd, buffers)
        reads.append(at)
        count = real(fd, (view[: len(view) // 2],))
        if len(reads) <= times:
            act(path)
        return count

    monkeypatch.setattr(os, "readv", readv)
    return reads


def before_stat(monkeypatch: pytest.MonkeyPatch, path: Path, act: Act, *, at: int) -> None:
    """Act before the `at`th fstat of the file, counted from 1."""
    real = os.fstat
    inode = path.stat().st_ino
    seen = 0

    def fstat(fd: int) -> os.stat_result:
        nonlocal seen
        status = real(fd)
        if status.st_ino != inode:
            return status
        seen += 1
        if seen == at:
            act(path)
        return real(fd)

    monkeypatch.setattr(os, "fstat", fstat)


def test_a_small_file_is_read_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = while_read(monkeypatch, put(tree, SMALL), rewrite)
    assert pack_tree(tree).content("file") == b"B" * SMALL
    assert len(reads) == 2


def test_a_large_file_that_was_written_to_is_an_error(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    while_read(monkeypatch, put(tree, LARGE), rewrite)
    with pytest.raises(TreeError) as caught:
        pack_tree(tree)
    assert caught.value.code == "changed-while-read"
    assert "file was written to" in caught.value.message


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("act", [change_mode, add_link])
def test_what_leaves_the_content_alone_passes(tree: Path, monkeypatch: pytest.MonkeyPatch, act: Act, size: int) -> None:
    """SPEC 9.1: a new mode or link changes the ctime as well. The entry has the old values."""
    path = put(tree, size)
    wanted = pack_tree(tree).blob
    reads = while_read(monkeypatch, path, act)
    assert pack_tree(tree).blob == wanted
    assert len(reads) == 2


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("act", [rewrite, change_mode, add_link])
def test_twice_is_an_error(tree: Path, monkeypatch: pytest.MonkeyPatch, act: Act, size: int) -> None:
    while_read(monkeypatch, put(tree, size), act, times=2)
    with pytest.raises(TreeError) as caught:
        pack_tree(tree)
    assert caught.value.code == "changed-while-read"


def test_a_file_that_was_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tree, SMALL)
    while_read(monkeypatch, path, rewrite)
    assert pack_tree(f"{path}:/etc/").content("etc/file") == b"B" * SMALL


@pytest.mark.parametrize("act", [change_mode, rewrite])
def test_bytecode_that_is_read_again_is_retimed_again(tree: Path, monkeypatch: pytest.MonkeyPatch, act: Act) -> None:
    """SPEC 4.8."""
    module = make_tree(tree, {"m.py": "x = 1\n" * 100}) / "m.py"
    os.utime(module, (EARLIER, EARLIER))
    timestamp = py_compile.PycInvalidationMode.TIMESTAMP
    path = Path(py_compile.compile(str(module), doraise=True, invalidation_mode=timestamp) or "")
    assert path == Path(importlib.util.cache_from_source(str(module)))
    name = f"__pycache__/{path.name}"
    wanted = pack_tree(tree).content(name)
    while_read(monkeypatch, path, act)
    found = pack_tree(tree).content(name)
    assert found == (wanted if act is change_mode else b"B" * len(wanted))


class Unknowing:
    """An empty memory of contents."""

    def recall(self, entry: object) -> None:
        return

    def learn(self, entry: object, fingerprint: bytes) -> None:
        return


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_key_is_of_one_state(tree: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    path = put(tree, size)
    while_read(monkeypatch, path, rewrite)
    found = key_of(walk_tree(tree), Unknowing())
    monkeypatch.undo()
    assert found == pack_tree(tree).layer.key
    assert path.read_bytes() == b"B" * size


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_fingerprint_is_of_one_state(tree: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Unknown for a large file, which is then packed."""
    while_read(monkeypatch, put(tree, size), rewrite)
    found = fingerprint(walk_tree(tree))
    monkeypatch.undo()
    assert found == (fingerprint(walk_tree(tree)) if size == SMALL else None)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_diff_compares_one_state(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    path = put(tree, size)
    twin = tmp_path / "twin"
    twin.mkdir()
    for name in ("before", "z"):
        copy_file(os.fsencode(tree / name), os.fsencode(twin / name))
    (twin / "file").write_bytes(b"B" * size)
    while_read(monkeypatch, path, rewrite)
    assert diff(str(tree), str(twin), normalized=True).verdict == "same"


def test_a_copy_for_verify_is_of_one_state(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tree, SMALL)
    before_stat(monkeypatch, path, rewrite, at=2)
    copy_file(os.fsencode(path), os.fsencode(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == b"B" * SMALL


def test_a_copy_does_not_wait_for_the_writer_of_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        copy_file(os.fsencode(tmp_path / "fifo"), os.fsencode(tmp_path / "copy"))


def test_an_ignore_file_is_of_one_state(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tree / ".detlayerignore"
    path.write_text("before\n")
    status = path.stat()

    def change(path: Path) -> None:
        path.write_text("z\n#####\n"[: status.st_size])
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    before_stat(monkeypatch, path, change, at=2)
    assert read_file(os.fsencode(path)).startswith(b"z\n")


def test_a_symlink_has_the_values_and_target_of_one(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPEC 9.1: never the mtime of one symlink with the target of another."""
    link = tree / "link"
    link.symlink_to("one")
    os.utime(link, (EARLIER, EARLIER), follow_symlinks=False)
    real = os.readlink

    def readlink(path: Any, *, dir_fd: int | None = None) -> Any:
        link.unlink()
        link.symlink_to("two")
        return real(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "readlink", readlink)
    with pytest.raises(TreeError) as caught:
        pack_tree(tree, profile=Profile(mtime=Mtime("source")))
    assert caught.value.code == "changed-while-read"


def test_a_symlink_whose_ctime_alone_moves_passes(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "link").symlink_to("one")
    real = os.readlink
    moves = iter([True])

    def readlink(path: Any, *, dir_fd: int | None = None) -> Any:
        if next(moves, False):
            os.link(tree / "link", tree.parent / "beside", follow_symlinks=False)
        return real(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "readlink", readlink)
    assert pack_tree(tree).members["link"].linkname == "one"


@pytest.mark.parametrize("is_dir", [False, True])
def test_extended_attributes_are_of_one_state(tree: Path, monkeypatch: pytest.MonkeyPatch, is_dir: bool) -> None:
    need_user_xattrs(tree)
    path = put(tree, 10)
    if is_dir:
        path = make_tree(tree / "dir", {"f": ""})
    for name in ("user.a", "user.b"):
        os.setxattr(path, name, b"old")
    real = os.getxattr
    moves = iter([True])

    def getxattr(at: Any, name: Any, *, follow_symlinks: bool = True) -> bytes:
        value = real(at, name, follow_symlinks=follow_symlinks)
        if os.stat(at).st_ino == path.stat().st_ino and next(moves, False):
            for each in ("user.a", "user.b"):
                os.setxattr(path, each, b"new")
        return value

    monkeypatch.setattr(os, "getxattr", getxattr)
    entries = {entry.path: entry for entry in walk_tree(tree, profile=Profile(xattrs=("user.*",)))}
    assert entries[os.fsencode(path.name)].xattrs == ((b"user.a", b"new"), (b"user.b", b"new"))


def test_a_write_in_the_tick_of_the_last_change_is_seen(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPEC 9.2: if a file's clock stands still for a while, reading waits until it has moved on."""
    tick_ns = 5_000_000

    class Ticking:
        def __init__(self, status: os.stat_result) -> None:
            self._status = status

        @property
        def st_ctime_ns(self) -> int:
            return self._status.st_ctime_ns // tick_ns * tick_ns + 1

        def __getattr__(self, name: str) -> object:
            return getattr(self._status, name)

    path = put(tree, SMALL)
    lstat, fstat = os.lstat, os.fstat
    monkeypatch.setattr(os, "lstat", lambda *at, **how: Ticking(lstat(*at, **how)))
    monkeypatch.setattr(os, "fstat", lambda fd: Ticking(fstat(fd)))
    while_read(monkeypatch, path, rewrite)
    while time.time_ns() % tick_ns > tick_ns // 20:
        pass  # so that the following is within one tick
    os.utime(path, (EARLIER, EARLIER))
    packed = pack_tree(tree)
    assert packed.content("file") == b"B" * SMALL


# -- an editor


def keep_editing(paths: list[str], sizes: list[int], seed: int) -> None:
    """Rewrite files in place, each with one repeated byte, and set their mtimes back."""
    files = [os.open(path, os.O_WRONLY) for path in paths]
    byte = seed
    while True:
        for file, size in zip(files, sizes, strict=True):
            byte = byte % 250 + 1
            half = size // 2
            os.pwrite(file, bytes([byte]) * half, 0)
            os.pwrite(file, bytes([byte]) * (size - half), half)
            os.utime(file, (EARLIER, EARLIER))
        time.sleep(byte % 8 / 100)  # a file that changes all the time can't be packed


@pytest.fixture
def edited(src: Path) -> Iterator[Path]:
    """A tree that two processes write to all the time."""
    sizes = [4_000, 60_000, 400_000, 4_500_000]
    processes = []
    spawn = multiprocessing.get_context("spawn")
    for number in range(2):
        paths = [str(src / f"{number}-{size}") for size in sizes]
        for path, size in zip(paths, sizes, strict=True):
            Path(path).write_bytes(b"\1" * size)
            os.utime(path, (EARLIER, EARLIER))
        processes.append(spawn.Process(target=keep_editing, args=(paths, sizes, number * 100 + 1), daemon=True))
    try:
        for process in processes:
            process.start()
        yield src
    finally:
        for process in processes:
            process.kill()
            process.join()


@pytest.mark.slow
def test_an_editor_that_sets_mtimes_back_leaves_no_mixed_layer(edited: Path) -> None:
    """A file in the middle of a write has a new mtime; one with its old mtime is complete."""
    whole = refused = 0
    options = PackOptions(compression="none", profile=Profile(mtime=Mtime("source")))
    for _ in range(ROUNDS):
        stream = io.BytesIO()
        try:
            packer.pack([Source(os.fsencode(edited))], stream, options=options)
        except TreeError as error:
            assert error.code == "changed-while-read"
            refused += 1
            continue
        stream.seek(0)
        with tarfile.open(fileobj=stream) as archive:
            for member in archive:
                found = archive.extractfile(member)
                assert found is not None
                data = found.read()
                assert data.count(data[:1]) == len(data) or member.mtime != EARLIER
        whole += 1
    assert whole + refused == ROUNDS
    assert whole, "nothing was packed"
    assert refused, "nothing was in the way"

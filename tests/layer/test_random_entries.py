"""The same tree gives the same bytes, whatever else differs; and other programs read them (SPEC 3 to 6)."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from detlayer.tree import Selection
from tests import strategies
from tests.layers import pack_tree
from tests.privileges import program
from tests.strategies import TreeItem

COMPRESSIONS = ("none", "gzip:1", "zstd:1")


@contextmanager
def temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="detlayer-test-") as name:
        yield Path(name)


def build(
    root: Path,
    items: Sequence[TreeItem],
    *,
    shuffle: int = 0,
    mask: int = 0o022,
    times: int = 0,
    owners: int = 0,
    links: bool = False,
) -> Path:
    """Create the tree, varying everything that must not matter."""
    root.mkdir()
    rng = random.Random(shuffle)
    order = [item for item in items if item.kind == "dir"]
    rest = [item for item in items if item.kind != "dir"]
    if shuffle:
        rng.shuffle(rest)
    before = os.umask(mask)
    originals: dict[tuple[bytes, bool], Path] = {}
    try:
        for item in [*order, *rest]:
            path = root / item.path
            if item.kind == "dir":
                path.mkdir(mode=0o777)
            elif item.kind == "symlink":
                path.symlink_to(item.target)
            elif links and (item.data, item.executable) in originals:
                os.link(originals[item.data, item.executable], path)
            else:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o777 if item.executable else 0o666)
                os.write(fd, item.data)
                os.close(fd)
                originals[item.data, item.executable] = path
    finally:
        os.umask(before)
    for item in items:
        path = root / item.path
        if owners and os.geteuid() == 0:
            os.chown(path, rng.randrange(1, 60000), owners, follow_symlinks=False)
        if times:
            stamp = rng.randrange(0, 2 * 10**9)
            os.utime(path, ns=(stamp * 10**9, stamp * 10**9 + times), follow_symlinks=False)
    return root


def results(path: Path | str, *, jobs: int = 2) -> list[str]:
    """diff_id, key, and digest under each codec."""
    made = [pack_tree(path, compression=name, jobs=jobs).layer for name in COMPRESSIONS]
    return [str(made[0].diff_id), made[0].key, *(str(layer.digest) for layer in made)]


@given(
    items=strategies.trees(),
    shuffle=st.integers(1, 10**6),
    mask=st.sampled_from((0o000, 0o002, 0o022, 0o027, 0o077)),
    times=st.integers(1, 999_999_999),
    owners=st.integers(1, 60000),
    links=st.booleans(),
    jobs=st.integers(1, 8),
)
def test_what_is_not_the_tree_does_not_count(
    items: Sequence[TreeItem], shuffle: int, mask: int, times: int, owners: int, links: bool, jobs: int
) -> None:
    """Order of creation, umask, file times, owners, hard links, path and workers."""
    with temporary() as home:
        plain = build(home / "plain", items)
        (home / "else").mkdir()
        other = build(
            home / "else" / "where", items, shuffle=shuffle, mask=mask, times=times, owners=owners, links=links
        )
        assert results(plain) == results(other, jobs=jobs)


@given(items=strategies.trees())
@settings(max_examples=25)
def test_how_the_source_is_named_does_not_count(items: Sequence[TreeItem]) -> None:
    """Absolute, relative, through a symlink, with slashes and dots, from another directory."""
    with temporary() as home:
        tree = build(home / "tree", items)
        (home / "link").symlink_to("tree")
        wanted = results(tree)
        before = Path.cwd()
        try:
            os.chdir(home)
            assert all(results(name) == wanted for name in ("tree", "./tree/", "tree/.", "link"))
            os.chdir(tree)
            assert all(results(name) == wanted for name in (".", "../tree"))
        finally:
            os.chdir(before)


@given(items=strategies.trees())
@settings(max_examples=25)
def test_a_change_of_the_tree_does_count(items: Sequence[TreeItem]) -> None:
    """One more file, one other byte, one execute bit: another diff_id and another key each."""
    with temporary() as home:
        tree = build(home / "tree", items)
        seen = [pack_tree(tree).layer]
        added = tree / "added"
        added.write_bytes(b"x")
        seen.append(pack_tree(tree).layer)
        added.write_bytes(b"y")
        seen.append(pack_tree(tree).layer)
        added.chmod(0o755)
        seen.append(pack_tree(tree).layer)
        assert len({layer.diff_id for layer in seen}) == len({layer.key for layer in seen}) == 4


# -- in other processes

FIXED: tuple[TreeItem, ...] = (
    TreeItem("b", "dir"),
    TreeItem("b/é", "file", b"1"),
    TreeItem("b/e\u0301", "file", b"2", executable=True),
    TreeItem("b/日本", "symlink", target="語"),
    TreeItem("b/new\nline", "file", b"3"),
    TreeItem("A", "file", b"x" * 600),
    TreeItem("z\u00ff", "dir"),
    TreeItem("left-é", "file", b"4"),
    *(TreeItem(f"z\u00ff/{i}", "file", str(i).encode()) for i in range(200)),
)


def run_pack(tree: str | Path, cwd: Path, **environment: str) -> str:
    script = [sys.executable, "-m", "detlayer", "pack", tree, "--oci", "image", "--exclude", "left-é", "--json", "-q"]
    env = {"PATH": os.environ["PATH"], **environment}
    done = subprocess.run(script, cwd=cwd, env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    shutil.rmtree(cwd / "image")
    document = json.loads(done.stdout)
    assert document["annotations"]["dev.detlayer.entries"] == str(len(FIXED) - 1)
    return f"{document['annotations']['dev.detlayer.diff-id']} {document['digest']}"


def make_locale(home: Path) -> str:
    """Our own latin-1 locale: Debian installs none."""
    done = subprocess.run(
        [program("localedef"), "-i", "en_US", "-f", "ISO-8859-1", "--no-archive", home / "en_US.ISO-8859-1"],
        capture_output=True,
        check=False,
    )
    if done.returncode > 1:
        pytest.skip("localedef")
    return str(home)


@pytest.mark.parametrize(
    "environment",
    [
        {"TZ": "Pacific/Kiritimati"},
        {"TZ": "America/St_Johns"},
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C.UTF-8"},
        {"LC_ALL": "latin-1"},
        {"PYTHONHASHSEED": "1"},
        {"PYTHONHASHSEED": "4294967295"},
        {"PYTHONOPTIMIZE": "2"},
        {"SOURCE_DATE_EPOCH": "1"},
        {"HOME": "/nonexistent"},
    ],
    ids=str,
)
def test_the_environment_does_not_count(tmp_path: Path, environment: dict[str, str]) -> None:
    """Time zone, locale, hash seed and the like, each in a process of its own."""
    tree = build(tmp_path / "tree", FIXED)
    wanted = run_pack(tree, tmp_path)
    if environment.get("LC_ALL") == "latin-1":
        environment = {"LC_ALL": "en_US.ISO-8859-1", "LOCPATH": make_locale(tmp_path), "PYTHONUTF8": "0"}
    assert run_pack(tree, tmp_path, **environment) == wanted
    assert run_pack("tree", tmp_path, **environment) == wanted


@pytest.mark.parametrize("option", ["--shuffle-dirents=yes", "--reverse-dirents=yes", "--sort-dirents=yes"])
def test_readdir_order_does_not_count(tmp_path: Path, option: str) -> None:
    """SPEC 3.4."""
    disorderfs = program("disorderfs")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("disorderfs")
    tree = build(tmp_path / "tree", FIXED)
    wanted = results(tree)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    done = subprocess.run([disorderfs, "--quiet", option, tree, mounted], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("disorderfs")
    try:
        orders = {tuple(os.listdir(mounted / "z\u00ff")) for _ in range(3)}
        found = [results(mounted) for _ in range(3)]
    finally:
        subprocess.run([program("fusermount"), "-u", mounted], check=True)
    assert found == [wanted] * 3
    assert option != "--shuffle-dirents=yes" or len(orders) > 1


# -- other readers


def snapshot(root: Path) -> dict[str, tuple[str, object, int]]:
    """The contents of a tree: content or target, and the mode that detlayer writes."""
    found: dict[str, tuple[str, object, int]] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        mode = path.lstat().st_mode
        if path.is_symlink():
            found[name] = ("symlink", os.readlink(path), 0o777)
        elif path.is_dir():
            found[name] = ("dir", "", 0o755)
        else:
            found[name] = ("file", path.read_bytes(), 0o755 if mode & 0o100 else 0o644)
    return found


def extracted(root: Path) -> dict[str, tuple[str, object, int]]:
    """The same of an extracted tree, with its actual modes."""
    found = snapshot(root)
    return {
        name: (kind, what, mode if kind == "symlink" else (root / name).lstat().st_mode & 0o7777)
        for name, (kind, what, mode) in found.items()
    }


def extract(reader: str, blob: bytes, out: Path) -> None:
    out.mkdir()
    if reader == "tarfile":
        with tarfile.open(fileobj=io.BytesIO(blob), encoding="utf-8") as archive:
            archive.extractall(out, filter="fully_trusted")
        return
    options = ["--warning=no-timestamp"] if reader == "tar" else []
    command = [program(reader), "-xp", *options, "-f", "-", "-C", str(out)]
    done = subprocess.run(
        command, input=blob, env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("reader", ["tarfile", "tar", "bsdtar"])
@given(items=strategies.trees())
@settings(max_examples=25)
def test_readers_extract_the_tree(reader: str, items: Sequence[TreeItem]) -> None:
    """SPEC 5: equal contents, modes and link targets."""
    # libarchive composes names that it reads as UTF-8, so decomposed ones change.
    assume(reader != "bsdtar" or not any("\u0301" in item.path for item in items))
    with temporary() as home:
        tree = build(home / "tree", items)
        extract(reader, pack_tree(tree).blob, home / "out")
        assert extracted(home / "out") == snapshot(tree)


@pytest.mark.parametrize("reader", ["tar", "bsdtar"])
def test_readers_list_it(tmp_path: Path, reader: str) -> None:
    """SPEC 3.4: the names in our order, whole."""
    items = [
        TreeItem("a", "dir"),
        TreeItem("a/" + "n" * 150, "file", b"x"),
        TreeItem("é", "file"),
        TreeItem("a-b", "symlink", target="é"),
    ]
    blob = pack_tree(build(tmp_path / "tree", items)).blob
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    done = subprocess.run([program(reader), "-tf", "-"], input=blob, env=env, capture_output=True, check=True)
    listed = done.stdout.decode().replace("\\303\\251", "é").splitlines()
    assert listed == ["a/", "a/" + "n" * 150, "a-b", "é"]
    assert done.stderr == b""


@given(items=strategies.trees())
@settings(max_examples=25)
def test_packing_what_was_extracted_gives_the_same(items: Sequence[TreeItem]) -> None:
    """SPEC 4: normalizing is idempotent, through a disk and another reader."""
    with temporary() as home:
        first = pack_tree(build(home / "tree", items))
        extract("tarfile", first.blob, home / "out")
        assert pack_tree(home / "out").blob == first.blob


def test_hard_links_survive_a_reader(tmp_path: Path) -> None:
    """SPEC 4.7."""
    items = [
        TreeItem("a", "file", b"same"),
        TreeItem("b", "file", b"same"),
        TreeItem("c", "dir"),
        TreeItem("c/d", "file", b"same"),
    ]
    tree = build(tmp_path / "tree", items, links=True)
    blob = pack_tree(tree, selection=Selection(hardlinks="preserve")).blob
    for reader in ("tarfile", "tar", "bsdtar"):
        extract(reader, blob, tmp_path / reader)
        assert len({(tmp_path / reader / name).stat().st_ino for name in ("a", "b", "c/d")}) == 1

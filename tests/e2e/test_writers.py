"""Layers that other programs write: an audit reads them as Python does, and names what each leaves unnormalized."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import detlayer
from detlayer.checks.audit import LayerReport, audit
from detlayer.layer.decompress import BlobReader
from detlayer.layer.reader import Member, TarReader
from tests.privileges import need_root, program

_LONG = "long-" + "n" * 120


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree whose readdir order, times and modes are nobody's: files, links, long and accented names, a hole."""
    top = tmp_path / "tree"
    (top / "d" / "e").mkdir(parents=True)
    (top / "b").write_bytes(b"b" * 1000)
    (top / "a-b").write_bytes(b"dash")
    (top / "a").mkdir()
    (top / "a" / "z").write_bytes(b"z")
    (top / "d" / _LONG).write_bytes(b"long")
    (top / "d" / "e" / "empty").write_bytes(b"")
    (top / "link").symlink_to("d/e")
    (top / "long-link").symlink_to("d/" + _LONG)
    os.link(top / "b", top / "twin")
    with open(top / "hole", "wb") as hole:
        hole.write(b"x")
        hole.truncate(1 << 20)
        hole.seek(1 << 19)
        hole.write(b"middle")
    for path in sorted(top.rglob("*")):
        os.utime(path, (1763900000, 1763900000.25), follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(0o775 if path.is_dir() else 0o664)
        if os.geteuid() == 0:
            os.chown(path, 1, 1, follow_symlinks=False)  # who has a name everywhere: daemon, bin
    return top


# What each program leaves unnormalized in this tree, beyond what all do. Whether `entry-order` is among it depends on
# the file system, and `trailer` on how much the tree comes to.
_BY_CHANCE = {"entry-order", "trailer"}
_ALL = {"mtime", "umask", "owner"}
_NAMES = {"owner-names"}
_GNU = {"gnu-format", "devices-field"}
_PAX = {"pax-pid-name", "pax-times"}
_BSD = {"devices-field", "number-format", "path-form"} | _NAMES
_HERE = "-cf OUT -C TREE ."
WRITERS: dict[str, tuple[str, set[str]]] = {
    "tar": (f"tar {_HERE}", _GNU | _NAMES | {"path-form"}),
    "tar gnu": (f"tar --format=gnu {_HERE}", _GNU | _NAMES | {"path-form"}),
    "tar posix": (f"tar --format=posix {_HERE}", _PAX | _NAMES | {"path-form"}),
    "tar ustar": (f"tar --format=ustar --exclude=*long-* {_HERE}", _NAMES | {"path-form"}),
    "tar v7": (f"tar --format=v7 --exclude=*long-* {_HERE}", {"type-flag", "gnu-format", "path-form"}),
    "tar sparse": (f"tar --sparse {_HERE}", _GNU | _NAMES | {"path-form", "sparse"}),
    **{
        f"tar sparse posix {version}": (
            f"tar --sparse --format=posix --sparse-version={version} {_HERE}",
            _PAX | _NAMES | {"path-form", "sparse"},
        )
        for version in ("0.0", "0.1", "1.0")
    },
    "tar big owners": ("tar --owner=:3000000 --group=:4000000 -cf OUT -C TREE a-b", _GNU),
    "bsdtar": (f"bsdtar {_HERE}", _BSD | _PAX | {"sparse", "prefix-field", "mode", "header-bytes"}),
    "bsdtar pax": (f"bsdtar --format=pax {_HERE}", _BSD | _PAX | {"sparse", "prefix-field", "mode", "header-bytes"}),
    "bsdtar gnutar": (f"bsdtar --format=gnutar {_HERE}", _BSD - {"number-format"} | {"gnu-format"}),
    "bsdtar ustar": (f"bsdtar --format=ustar --exclude=*long-* {_HERE}", _BSD),
}
# The best that GNU tar's options can do: a PAX header keeps a name and the time of its own.
_TAMED = (
    "tar --sort=name --format=posix --mtime=@946684800 --owner=0 --group=0 --numeric-owner --blocking-factor=1 "
    "--mode=u=rwX,go=rX --hard-dereference "
    "--pax-option=exthdr.name=./@PaxHeader,delete=atime,delete=ctime,delete=mtime -cf OUT -C TREE a a-b b d hole"
)


def read_back(path: Path) -> tuple[LayerReport, list[Member]]:
    with open(path, "rb") as stream:
        report = audit(stream)
    with open(path, "rb") as stream:
        return report, list(TarReader(BlobReader(stream)))


def ours(data: bytes) -> Iterator[tuple[str, str, int, int, int, int, str, bytes]]:
    for member in TarReader([data]):
        entry = member.entry
        content = b"".join(member.views())
        assert len(content) == entry.size_bytes
        yield (
            os.fsdecode(entry.path),
            entry.kind,
            entry.mode,
            entry.uid,
            entry.gid,
            entry.mtime,
            os.fsdecode(entry.target),
            content,
        )


_KINDS = {tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "hardlink"}


def pythons(data: bytes) -> Iterator[tuple[str, str, int, int, int, int, str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for info in archive:
            kind = {tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "hardlink"}.get(
                info.type, "file"
            )
            stream = archive.extractfile(info) if kind == "file" else None
            yield (
                "" if info.name == "." else info.name.removeprefix("./"),
                kind,
                info.mode & 0o7777,
                info.uid,
                info.gid,
                int(info.mtime // 1),
                info.linkname.removeprefix("./") if kind in ("symlink", "hardlink") else "",
                stream.read() if stream is not None else b"",
            )


def check_same_reading(data: bytes) -> None:
    """Nothing is missed: what `tarfile` sees in an uncompressed tar is what we see."""
    mine, theirs = list(ours(data)), list(pythons(data))
    assert [item[0] for item in mine] == [item[0] for item in theirs]
    assert mine == theirs


def run_tar(command: str, tree: Path, out: Path) -> bytes:
    program(command.split(" ")[0])
    known = {"OUT": str(out), "TREE": str(tree)}
    subprocess.run([known.get(word, word) for word in command.split(" ")], check=True, capture_output=True)
    return out.read_bytes()


@pytest.mark.parametrize("name", WRITERS)
def test_tar_programs(name: str, tree: Path, tmp_path: Path) -> None:
    """SPEC 4, 5: what each leaves unnormalized is named, and nothing else; everything it wrote is read."""
    need_root("root")  # whose names and numbers would be others
    command, wanted = WRITERS[name]
    check_same_reading(run_tar(command, tree, tmp_path / "out.tar"))
    report, seen = read_back(tmp_path / "out.tar")
    assert report.entries == len(seen)
    assert set(report.findings.counts) - _BY_CHANCE == wanted | _ALL, report.findings.kept


def test_gnu_tar_with_the_options_of_the_hints(tree: Path, tmp_path: Path) -> None:
    """SPEC 4, 5: the hints of docs/traps.md do what they say."""
    check_same_reading(run_tar(_TAMED, tree, tmp_path / "out.tar"))
    report, _ = read_back(tmp_path / "out.tar")
    assert set(report.findings.counts) == {"pax-pid-name", "pax-times"}, report.findings.kept


@pytest.mark.parametrize("name", ["tar", "bsdtar"])
def test_extended_attributes(name: str, tree: Path, tmp_path: Path) -> None:
    try:
        os.setxattr(tree / "b", "user.note", b"\0raw\n=")
    except OSError:
        pytest.skip("user xattrs")
    out = tmp_path / "out.tar"
    options = ["--xattrs", "--format=posix"] if name == "tar" else ["--xattrs", "--format=pax"]
    subprocess.run([program(name), *options, "-cf", out, "-C", tree, "b"], check=True)
    report, seen = read_back(out)
    assert seen[0].entry.xattrs == ((b"user.note", b"\0raw\n="),)
    assert "xattrs" in report.findings.counts


@pytest.mark.parametrize(
    ("style", "wanted"),
    [
        (tarfile.USTAR_FORMAT, {"prefix-field"}),
        (tarfile.GNU_FORMAT, {"gnu-format"}),
        (tarfile.PAX_FORMAT, {"pax-times"}),
    ],
    ids=("ustar", "gnu", "pax"),
)
def test_python_tarfile(style: int, wanted: set[str], tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tar"
    (tree / "d" / ("p" * 60)).mkdir()
    (tree / "d" / ("p" * 60) / ("q" * 60)).write_bytes(b"divided")
    with tarfile.open(out, "w", format=style) as archive:
        for child in sorted(tree.rglob("*")):
            if style == tarfile.USTAR_FORMAT and "long-" in child.name:
                continue
            archive.add(child, str(child.relative_to(tree)), recursive=False)
    check_same_reading(out.read_bytes())
    report, _ = read_back(out)
    assert wanted | {"mtime", "umask", "trailer"} <= set(report.findings.counts)


def _layers(layout: Path) -> list[Path]:
    """The layer blobs of the only image of an OCI layout."""
    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads(_blob(layout, index["manifests"][-1]["digest"]).read_bytes())
    return [_blob(layout, layer["digest"]) for layer in manifest["layers"]]


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _check_normalized(layer: Path, tree: Path) -> None:
    """What `normalize` makes of another tool's layer is what `pack` writes from the tree."""
    assert detlayer.normalize(layer).diff_id == detlayer.pack([f"{tree}:/app"]).diff_id


def _check_layer(path: Path, wanted: set[str]) -> None:
    report, seen = read_back(path)
    with tarfile.open(path) as archive:
        names = archive.getnames()
    assert len(names) == len(seen)
    assert wanted <= set(report.findings.counts), report.findings.counts
    assert report.facts.digest is not None
    assert report.facts.digest.hex == path.name


def test_umoci(tree: Path, tmp_path: Path) -> None:
    """`umoci insert` writes a layer of its own."""
    umoci = program("umoci")
    layout = tmp_path / "layout"
    subprocess.run([umoci, "init", "--layout", layout], check=True)
    subprocess.run([umoci, "new", "--image", f"{layout}:new"], check=True)
    subprocess.run([umoci, "insert", "--image", f"{layout}:new", tree, "/app"], check=True, capture_output=True)
    (layer,) = _layers(layout)
    _check_layer(layer, {"mtime", "chunking", "umask"} if layer.stat().st_size > 1 << 22 else {"mtime", "umask"})
    _check_normalized(layer, tree)


def test_buildah(tree: Path, tmp_path: Path) -> None:
    """`buildah add` and commit into a layout."""
    buildah = program("buildah")
    if os.geteuid() != 0:
        pytest.skip("buildah (root)")
    env = {**os.environ, "BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}
    store = ["--root", str(tmp_path / "root"), "--runroot", str(tmp_path / "run")]

    def run(*words: str) -> str:
        done = subprocess.run([buildah, *store, *words], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    container = run("from", "scratch")
    run("add", container, str(tree), "/app")
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    run("commit", "--signature-policy", str(policy), container, f"oci:{tmp_path / 'layout'}:made")
    (layer,) = _layers(tmp_path / "layout")
    _check_layer(layer, {"mtime", "umask"})
    _check_normalized(layer, tree)

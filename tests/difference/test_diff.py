"""diff: directories, layers of any writer, and OCI layouts against each other (SPEC 1.2, 3, 4, 5, 6.3)."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import detlayer
from detlayer import DetlayerError, LayerError
from detlayer.difference import DiffReport, diff
from detlayer.difference.sides import LayerSide
from detlayer.errors import ConfigError, IntegrityError, TreeError
from detlayer.images.files import open_file
from detlayer.layer.codec import Codec
from detlayer.layer.ports import Silence

EPOCH = 946684800


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    (path / "pkg").mkdir(parents=True)
    (path / "pkg" / "m.py").write_text("x = 1\n")
    (path / "pkg-a").write_text("a\n")
    (path / "t.txt").write_text("text\n")
    (path / "link").symlink_to("t.txt")
    for found in (*path.rglob("*"), path):
        os.utime(found, (EPOCH, EPOCH), follow_symlinks=False)
        if not found.is_symlink():
            found.chmod(0o755 if found.is_dir() else 0o644)
    return path


def copy(tree: Path, name: str) -> Path:
    other = tree.with_name(name)
    subprocess.run(["cp", "-a", tree, other], check=True)
    return other


def packed(tree: Path, name: str, **options: Any) -> Path:
    path = tree.with_name(name)
    detlayer.pack([tree], output=path, options=detlayer.PackOptions(**options))
    return path


def lines(report: DiffReport) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(one.kind, one.path, one.traps) for one in report.differences]


def form_traps(report: DiffReport) -> set[str]:
    return {change.trap for change in report.form}


# -- directories


def test_equal_trees_and_layers_are_the_same(tree: Path) -> None:
    assert diff(tree, tree).verdict == "same"
    assert diff(tree, copy(tree, "other")).same
    assert diff(packed(tree, "a.tar"), packed(tree, "b.tar")).same


def test_directories_as_they_are(tree: Path) -> None:
    """SPEC 4: raw trees show what `pack` normalizes."""
    other = copy(tree, "other")
    (other / "t.txt").chmod(0o664)
    os.utime(other / "pkg", (1, 1))
    (other / "new").write_text("n")
    (other / "link").unlink()
    (other / "pkg" / "m.py").write_text("x = 2\n")
    os.utime(other / "pkg" / "m.py", (EPOCH, EPOCH))
    report = diff(tree, other)
    assert report.verdict == "entries"
    assert lines(report) == [
        ("removed", "link", ("content",)),
        ("added", "new", ("content",)),
        ("changed", "pkg", ("mtime",)),
        ("changed", "pkg/m.py", ("content",)),
        ("changed", "t.txt", ("umask",)),
    ]
    content = report.differences[3]
    assert content.offset == 4
    assert [change.field for change in content.changes] == ["line 1"]
    assert lines(diff(tree, other, normalized=True)) == [
        ("removed", "link", ("content",)),
        ("added", "new", ("content",)),
        ("changed", "pkg/m.py", ("content",)),
    ]


def test_hard_links_of_a_tree(tree: Path) -> None:
    """SPEC 4.7: hard links are compared, unless normalized."""
    other = copy(tree, "other")
    (other / "t.txt").unlink()
    (tree / "t.txt").write_text("a\n")
    os.link(other / "pkg-a", other / "t.txt")
    for path in (tree / "t.txt", other / "t.txt", tree, other):
        os.utime(path, (EPOCH, EPOCH))
    assert lines(diff(tree, other)) == [("changed", "t.txt", ("hardlink-form",))]
    assert diff(tree, other, normalized=True).same


def test_ignored_files_count_only_as_they_are(tree: Path) -> None:
    """SPEC 4.9: `.detlayerignore` selects the files, as in `pack`."""
    other = copy(tree, "other")
    (other / ".detlayerignore").write_text("*.log\n")
    (other / "x.log").write_text("noise")
    assert {one.path for one in diff(tree, other).differences} == {".detlayerignore", "x.log"}
    assert diff(tree, other, normalized=True).same


def test_a_tree_and_its_layer(tree: Path) -> None:
    """SPEC 4: a layer is its tree with normalized values, and equal to a tree that already has them."""
    layer = packed(tree, "a.tar.zst")
    assert diff(tree, layer, normalized=True).same
    if os.geteuid() == 0:
        assert diff(tree, layer).same


def test_few_contents_are_explained(tree: Path) -> None:
    other = copy(tree, "other")
    for name in ("t.txt", "pkg-a"):
        (other / name).write_text("other\n")
    report = diff(tree, other, normalized=True, explain_limit=1)
    assert [one.offset for one in report.differences] == [0, None]
    assert report.unexplained == 1
    assert report.differences[1].changes[0].field == "content"


def test_each_kind_of_file_is_explained_first(tree: Path) -> None:
    other = copy(tree, "other")
    for name in ("a.x", "b.x", "c.x", "z.y"):
        (tree / name).write_text("1")
        (other / name).write_text("2")
    report = diff(tree, other, normalized=True, explain_limit=2)
    assert [one.path for one in report.differences if one.offset is not None] == ["a.x", "z.y"]


# -- layers


def test_only_the_compressor_differs(tree: Path) -> None:
    """SPEC 6.3: "tar equal, compressor differs", not different content."""
    ours = packed(tree, "a.tar.gz")
    report = diff(ours, packed(tree, "b.tar.gz", compression="gzip:9"))
    assert report.verdict == "compressor"
    assert not report.differences
    assert report.a.diff_id == report.b.diff_id
    codec = report.blob[0]
    assert codec.field == "codec"
    assert codec.old.startswith("gzip-libdeflate-6 (class ")
    assert codec.new.startswith("gzip-libdeflate-9 (class ")
    report = diff(ours, packed(tree, "c.tar.zst"))
    assert report.verdict == "compressor"
    assert report.blob[0].new.startswith("zstd-3 (class ")


def test_gzip_of_another_writer(tree: Path) -> None:
    """SPEC 6.2: header and members are distinguished."""
    ours, plain = packed(tree, "a.tar.gz"), packed(tree, "a.tar").read_bytes()
    theirs = tree.with_name("b.tar.gz")
    theirs.write_bytes(gzip.compress(plain[:1000], mtime=5) + gzip.compress(plain[1000:], mtime=5))
    report = diff(ours, theirs)
    assert report.verdict == "compressor"
    found = {(change.trap, change.field): (change.old, change.new) for change in report.blob}
    assert found["gzip-header", "gzip header, mtime"] == ("0", "5")
    assert found["chunking", "number of members"] == ("1", "2")
    assert found["compressor-class", "codec"][1] == "gzip of another compressor"


def member(name: str, data: bytes = b"", **values: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(data), EPOCH
    for key, value in values.items():
        setattr(info, key, value)
    return info, data


def tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return path


def test_only_the_form_differs(tmp_path: Path) -> None:
    """SPEC 5: same entries and contents, other header bytes, order and trailer."""
    a = tar(tmp_path / "a.tar", member("a", b"1"), member("b", b"2"))
    b = tar(tmp_path / "b.tar", member("b", b"2"), member("a", b"1"))
    report = diff(a, b)
    assert (report.verdict, form_traps(report)) == ("form", {"entry-order"})
    gnu = tar(tmp_path / "gnu.tar", member("a", b"1"), member("b", b"2"), form=tarfile.GNU_FORMAT)
    report = diff(a, gnu)
    assert (report.verdict, "gnu-format" in form_traps(report)) == ("form", True)
    named = tar(tmp_path / "n.tar", member("a", b"1", uname="bob"), member("b", b"2"))
    (change,) = diff(a, named).form
    assert (change.trap, change.old, change.new) == ("owner-names", "zeros", "bob")
    twice = tar(tmp_path / "t.tar", member("a", b"0"), member("a", b"1"), member("b", b"2"))
    report = diff(a, twice)
    assert (report.verdict, "duplicate-path" in form_traps(report)) == ("form", True)
    trailer = tmp_path / "trailer.tar"
    trailer.write_bytes(a.read_bytes() + bytes(512))
    (change,) = diff(a, trailer).form
    assert change.trap == "trailer"
    assert diff(a, b, normalized=True).same


def test_form_that_nothing_is_known_of(tmp_path: Path) -> None:
    """SPEC 5.5: nonzero padding belongs to no field, but is found."""
    a = tar(tmp_path / "a.tar", member("a", b"1"))
    b = tmp_path / "b.tar"
    data = bytearray(a.read_bytes())
    data[1000] = 7
    b.write_bytes(data)
    (change,) = diff(a, b).form
    assert (change.trap, change.field) == ("header-bytes", "the tar from offset 1000")


@pytest.mark.parametrize("form", ["gnu", "posix", "ustar"])
def test_gnu_tar_unordered(tree: Path, form: str) -> None:
    """SPEC 3.4, 4: a layer of another tool in readdir order, compared with ours."""
    program = shutil.which("tar")
    if program is None:
        pytest.skip("tar")
    (tree / "t.txt").write_text("other\n" * 100)
    theirs = tree.with_name("theirs.tar")
    names = ["t.txt", "pkg-a", "link", "pkg"]
    command = [program, f"--format={form}", "--mtime=@946684800", "--owner=0", "--group=0", "-C", str(tree)]
    subprocess.run([*command, "-cf", str(theirs), *names], check=True)
    ours = packed(tree, "ours.tar.gz")
    report = diff(ours, theirs)
    assert report.verdict == "form"
    assert {"entry-order", "trailer"} <= form_traps(report)
    (tree / "t.txt").write_text("other\n" * 99 + "Other\n")
    (tree / "pkg-a").write_text("b\n")
    report = diff(ours, packed(tree, "new.tar"))
    assert lines(report) == [("changed", "pkg-a", ("content",)), ("changed", "t.txt", ("content",))]
    report = diff(theirs, packed(tree, "new.tar"))
    assert [(one.path, one.offset) for one in report.differences] == [("pkg-a", 0), ("t.txt", 594)]
    assert report.differences[1].changes[0].field == "line 100"


def test_parents_that_only_one_side_writes(tmp_path: Path) -> None:
    """SPEC 4.4."""
    entry = member("d/e/f", b"1")
    folders = [member(name, type=tarfile.DIRTYPE, mode=0o755) for name in ("d", "d/e")]
    a, b = tar(tmp_path / "a.tar", *folders, entry), tar(tmp_path / "b.tar", entry)
    assert lines(diff(a, b)) == [("removed", "d", ("parents",)), ("removed", "d/e", ("parents",))]
    assert lines(diff(b, a)) == [("added", "d", ("parents",)), ("added", "d/e", ("parents",))]


def test_special_files_and_hard_links(tmp_path: Path) -> None:
    a = tar(tmp_path / "a.tar", member("a", b"1"), member("h", b"1"), member("p"))
    link = member("h", type=tarfile.LNKTYPE, linkname="a")
    b = tar(tmp_path / "b.tar", member("a", b"1"), link, member("p", type=tarfile.FIFOTYPE))
    report = diff(a, b)
    assert lines(report) == [("changed", "h", ("hardlink-form",)), ("changed", "p", ("special-file",))]
    lost = member("h", type=tarfile.LNKTYPE, linkname="nowhere")
    report = diff(a, tar(tmp_path / "c.tar", member("a", b"1"), lost, member("p")))
    assert lines(report) == [("changed", "h", ("content", "hardlink-form"))]


def test_large_contents_are_compared_as_they_stream(tmp_path: Path) -> None:
    """No content above the bound is kept in memory; the offset is found anyway."""
    size = 90 << 20
    paths = []
    for name, tail in (("a", b"1"), ("b", b"2")):
        info = tarfile.TarInfo("big")
        info.size, info.mtime = size, EPOCH
        path = tmp_path / f"{name}.tar"
        with open(path, "wb") as file:
            file.write(info.tobuf(tarfile.USTAR_FORMAT))
            file.seek(size - 1, os.SEEK_CUR)
            file.write(tail)
            file.write(bytes(1024))
        paths.append(path)
    report = diff(*paths)
    (found,) = report.differences
    assert found.offset == size - 1
    assert found.changes[0].field == "content"


def test_memory_follows_the_number_of_entries(tmp_path: Path) -> None:
    size = 24 << 20
    for name in ("a", "b"):
        members = (member(f"f{number}", bytes(size)) for number in range(4))
        tar(tmp_path / f"{name}.tar", *members, member("z", name.encode()))
    tracemalloc.start()
    try:
        assert len(diff(tmp_path / "a.tar", tmp_path / "b.tar").differences) == 1
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


# -- what can't be read


def test_unreadable_inputs(tree: Path) -> None:
    good = packed(tree, "a.tar.gz")
    data = good.read_bytes()
    cases = {
        "blob-truncated": data[:-20],
        "blob-corrupt": data[:-6] + b"\0\0" + data[-4:],
        "blob-garbage": data + b"garbage",
        "header-checksum": b"no tar at all\n" * 100,
        "tar-truncated": packed(tree, "a.tar").read_bytes()[:700],
    }
    for code, blob in cases.items():
        bad = tree.with_name("bad")
        bad.write_bytes(blob)
        for pair in ((good, bad), (bad, tree)):
            with pytest.raises(LayerError) as caught:
                diff(*pair)
            assert caught.value.code == code
            assert str(bad) in caught.value.message


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_layer_breaks_it(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """SPEC 9: any bytes give a report or a detlayer error."""
    here = tmp_path_factory.getbasetemp() / "broken"
    here.mkdir(exist_ok=True)
    link = member("h", type=tarfile.LNKTYPE, linkname="a")
    long = member("d" * 120 + "/é", b"2" * 600, pax_headers={"SCHILY.xattr.user.a": "1"})
    form = data.draw(st.sampled_from((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)))
    members = (member("a", b"1"), link, member("l", type=tarfile.SYMTYPE, linkname="a"))
    good = tar(here / "good", *members, *((long,) if form != tarfile.USTAR_FORMAT else ()), form=form)
    raw = good.read_bytes()
    codec = data.draw(st.sampled_from(("none", "gzip-libdeflate-6", "gzip-stored", "zstd-3")))
    plain = codec == "none"
    blob = bytearray(Codec(codec).compressor()(memoryview(raw)))
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, min(len(blob), 6000) - 1))] = data.draw(st.integers(0, 255))
    if plain:  # with valid checksums, to get beyond that check
        for at in range(0, len(blob) - 511, 512):
            block = blob[at : at + 512]
            if any(block) and block[257:262] == b"ustar":
                blob[at + 148 : at + 156] = b"%06o\0 " % sum(block[:148] + b" " * 8 + block[156:])
    bad = here / "bad"
    bad.write_bytes(bytes(blob[: data.draw(st.integers(1, len(blob)))]) if data.draw(st.booleans()) else blob)
    for pair in ((good, bad), (bad, good)):
        for normalized in (False, True):
            with contextlib.suppress(DetlayerError):
                diff(*pair, normalized=normalized).to_document()


def test_inputs_that_are_no_files(tree: Path) -> None:
    os.mkfifo(fifo := tree.with_name("fifo"))
    for path in (fifo, tree.with_name("nowhere")):
        with pytest.raises(LayerError) as caught:
            diff(tree, path)
        assert caught.value.code == "input-unreadable"


# -- OCI layouts


def blob(layout: Path, data: bytes, media_type: str) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def layout(path: Path, layers: list[Path], tags: tuple[str, ...] = ("v1",), **config: Any) -> str:
    (path / "blobs" / "sha256").mkdir(parents=True)
    kind = "application/vnd.oci.image."
    described = [blob(path, layer.read_bytes(), kind + "layer.v1.tar+gzip") for layer in layers]
    settings = {"os": "linux", "architecture": "amd64", "config": config, "created": config.pop("created", "")}
    document = {"config": blob(path, json.dumps(settings).encode(), kind + "config.v1+json"), "layers": described}
    manifest = blob(path, json.dumps(document).encode(), kind + "manifest.v1+json")
    index = {"manifests": [{**manifest, "annotations": {"org.opencontainers.image.ref.name": tag}} for tag in tags]}
    (path / "index.json").write_text(json.dumps(index))
    return f"oci:{path}"


def test_layouts(tree: Path, tmp_path: Path) -> None:
    one = packed(tree, "1.tar.gz")
    nine = packed(tree, "9.tar.gz", compression="gzip:9")
    (tree / "t.txt").write_text("changed\n")
    other = packed(tree, "2.tar.gz")
    base = layout(tmp_path / "base", [one, one])
    assert diff(base, f"{base}:v1").same
    report = diff(base, layout(tmp_path / "c", [one, nine]))
    assert (report.verdict, [layer.verdict for layer in report.layers]) == ("compressor", ["compressor"])
    report = diff(base, layout(tmp_path / "d", [other, one]))
    assert report.verdict == "entries"
    (layer,) = report.layers
    assert lines(layer) == [("changed", "t.txt", ("content",))]
    assert layer.a.name == f"{base}, layer 1"
    report = diff(base, layout(tmp_path / "e", [one, one], Env=["A=1"], created="2024-01-01T00:00:00Z"))
    assert report.verdict == "config"
    assert [change.field for change in report.config] == ["config config", "config config.Env[0]", "config created"]
    times = [layout(tmp_path / day, [one], created=f"2024-01-{day}T00:00:00Z") for day in ("01", "02")]
    (change,) = diff(*times).config
    assert (change.trap, change.field) == ("time-in-content", "config created")
    report = diff(base, layout(tmp_path / "f", [one]))
    assert [(change.field, change.new) for change in report.config] == [("layer 2", "")]


def test_layouts_that_lie(tree: Path, tmp_path: Path) -> None:
    one = packed(tree, "1.tar.gz")
    (tree / "t.txt").write_text("changed\n")
    other = packed(tree, "2.tar.gz")
    base, changed = layout(tmp_path / "base", [one]), layout(tmp_path / "other", [other])
    with pytest.raises(LayerError, match="no image with the tag v9"):
        diff(base, f"{base}:v9")
    with pytest.raises(ConfigError):
        diff(base, tree)
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    stored = tmp_path / "other" / "blobs" / "sha256" / digest
    stored.write_bytes(one.read_bytes())
    with pytest.raises(IntegrityError):
        diff(base, changed)
    stored.unlink()
    with pytest.raises(LayerError):
        diff(base, changed)
    os.mkfifo(stored)
    with pytest.raises(LayerError):
        diff(base, changed)
    (tmp_path / "other" / "index.json").unlink()
    os.mkfifo(tmp_path / "other" / "index.json")
    with pytest.raises(LayerError, match="not a regular file"):
        diff(base, changed)
    (tmp_path / "other" / "index.json").unlink()
    for document in ("[]", "{", '{"manifests": [{"digest": "sha1:0"}]}', '{"manifests": 1}', "[" * 100_000):
        (tmp_path / "other" / "index.json").write_text(document)
        with pytest.raises(LayerError):
            diff(base, changed)


def test_indexes_that_name_one_image_again_and_again(tree: Path, tmp_path: Path) -> None:
    name = layout(tmp_path / "base", [packed(tree, "1.tar.gz")])
    manifests = json.loads((tmp_path / "base" / "index.json").read_text())["manifests"]
    for _ in range(3):
        index = blob(tmp_path / "base", json.dumps({"manifests": manifests * 900}).encode(), "")
        manifests = [index]
    (tmp_path / "base" / "index.json").write_text(json.dumps({"manifests": manifests * 900}))
    assert diff(name, name).same


def test_configs_that_are_no_json(tree: Path, tmp_path: Path) -> None:
    """An artifact's config can't be explained, but its digest shows that it differs."""
    one = packed(tree, "1.tar.gz")
    names = []
    for name, data in (("a", b"model"), ("b", b"other"), ("c", b"a longer model")):
        names.append(layout(tmp_path / name, [one]))
        index = json.loads((tmp_path / name / "index.json").read_text())
        stored = tmp_path / name / "blobs" / "sha256" / index["manifests"][0]["digest"][7:]
        manifest = json.loads(stored.read_text())
        manifest["config"] = blob(tmp_path / name, data, "application/x-model")
        index["manifests"] = [blob(tmp_path / name, json.dumps(manifest).encode(), index["manifests"][0]["mediaType"])]
        (tmp_path / name / "index.json").write_text(json.dumps(index))
    assert diff(names[0], names[0]).same
    report = diff(*names[:2])
    assert report.verdict == "config"
    assert [(change.trap, change.field) for change in report.config] == [("content", "manifest config.digest")]
    report = diff(names[0], names[2])
    assert [change.field for change in report.config] == ["manifest config.digest", "manifest config.size"]
    report = diff(names[0], layout(tmp_path / "d", [one]))  # the other one is JSON
    assert "manifest config.digest" in [change.field for change in report.config]


def test_more_images_than_are_held(tree: Path, tmp_path: Path) -> None:
    name = layout(tmp_path / "base", [packed(tree, "1.tar.gz")])
    index = json.loads((tmp_path / "base" / "index.json").read_text())
    index["manifests"] = [{**index["manifests"][0], "platform": {"os": str(number)}} for number in range(1001)]
    (tmp_path / "base" / "index.json").write_text(json.dumps(index))
    with pytest.raises(LayerError, match="over 1000 images"):
        diff(name, name)


@pytest.mark.parametrize("mode", ["w:", "w:gz"])
def test_archives_of_layouts(tree: Path, tmp_path: Path, mode: str) -> None:
    """A layout equals its archive; layers of both are read in parallel."""
    one = packed(tree, "1.tar.gz")
    (tree / "t.txt").write_text("changed\n")
    other = packed(tree, "2.tar.gz")
    names = []
    for name, layers in (("a", [one, one]), ("b", [one, other])):
        layout(tmp_path / name, layers)
        with tarfile.open(tmp_path / f"{name}.tar", mode) as archive:  # type: ignore[call-overload]
            archive.add(tmp_path / name, "")
        names.append(f"oci-archive:{tmp_path / name}.tar")
    assert diff(names[0], f"oci:{tmp_path}/a:v1").same
    open_files = len(os.listdir("/dev/fd"))
    report = diff(names[0], f"{names[1]}:v1")
    assert len(os.listdir("/dev/fd")) == open_files
    (layer,) = report.layers
    assert (layer.a.name, lines(layer)) == (f"{names[0]}, layer 2", [("changed", "t.txt", ("content",))])
    with pytest.raises(TreeError) as caught:
        diff(names[0], f"oci-archive:{tmp_path}/none.tar")
    assert caught.value.code == "layout-missing"


def test_a_layer_that_changes_between_passes(tree: Path, tmp_path: Path) -> None:
    one = LayerSide("one", partial(open_file, str(packed(tree, "1.tar"))), False, Silence(), max_expansion=200)
    one.summaries()
    os.utime(tree.with_name("1.tar"), (1, 1))
    with pytest.raises(LayerError) as caught:
        list(one.pieces())
    assert caught.value.code == "input-changed"

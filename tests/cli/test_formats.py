"""What looks like a layer, an archive or a layout is read as one, or refused with the command that converts it.

Whatever is packed as a file by mistake comes out the same twice: `verify` would say "reproducible" of anything.
"""

from __future__ import annotations

import gzip
import io
import json
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import detlayer
from detlayer.checks.audit import audit
from detlayer.errors import LayerError
from detlayer.images.files import find_kind
from detlayer.layer.formats import ArchiveSigns, format_of, is_layer
from tests.cli.command import CommandLine
from tests.images import docker_saved as saved
from tests.layer.handmade_tars import Bytes, member, sealed, tar
from tests.privileges import program

# Each makes OUT from `tree`; those of bsdtar know the format by --format, the others compress `plain.tar`.
FORMATS = {
    "xz": "xz -c plain.tar > OUT",
    "lzma": "xz --format=lzma -c plain.tar > OUT",
    "bzip2": "bzip2 -c plain.tar > OUT",
    "lz4": "lz4 -q -c plain.tar > OUT",
    "lz4 legacy": "lz4 -q -l -c plain.tar > OUT",
    "compress": "bsdtar -cZf OUT -C tree a b",
    "zip": "bsdtar --format=zip -cf OUT -C tree a b",
    "empty zip": "bsdtar --format=zip -cf OUT -T /dev/null",
    "7z": "bsdtar --format=7zip -cf OUT -C tree a b",
    "cpio": "bsdtar --format=newc -cf OUT -C tree a b",
    "cpio odc": "bsdtar --format=odc -cf OUT -C tree a b",
}
SUFFIXES = {"xz": ".tar.xz", "lzma": ".tar.lzma", "bzip2": ".tar.bz2", "lz4": ".tar.lz4", "compress": ".tar.Z"}


@pytest.fixture
def here(detlayer: CommandLine) -> Path:
    """Where commands run: a tree of two files, and a tar of it."""
    tree = detlayer.here / "tree"
    tree.mkdir()
    (tree / "a").write_text("a" * 2000)
    (tree / "b").write_text("b")
    subprocess.run(["tar", "-cf", "plain.tar", "-C", "tree", "a", "b"], cwd=detlayer.here, check=True)
    return detlayer.here


def make(name: str, here: Path, out: str) -> None:
    command = FORMATS[name].replace("OUT", shlex.quote(out))
    program(command.split(" ")[0])
    subprocess.run(command, shell=True, check=True, cwd=here)


def shell(hint: str, here: Path) -> subprocess.CompletedProcess[str]:
    """Run the command of a hint."""
    words = hint.replace("detlayer ", f"{sys.executable} -m detlayer ")
    return subprocess.run(words, shell=True, cwd=here, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("suffix", ["as usual", " 'x' y"])
@pytest.mark.parametrize("name", FORMATS)
def test_formats_that_layers_do_not_use(name: str, suffix: str, detlayer: CommandLine, here: Path) -> None:
    """They are detected by their bytes, not their names, and the commands in the hints work."""
    file = "x" + (SUFFIXES.get(name, "") if suffix == "as usual" else suffix)
    make(name, here, file)
    exit_code, code, message, hint = detlayer("verify", file).error
    assert (exit_code, code) == (3, "layer-format")
    assert f"{file} is in the format {name.split(' ')[-1 if 'empty' in name else 0]};" in message
    convert, _, keep = hint.partition("; or pack it as a file: ")
    done = shell(convert, here)
    made = here / (("x" if suffix == "as usual" else file) + ".tar.gz")
    if name != "empty zip":
        assert done.returncode == 0, done.stderr
        assert detlayer("inspect", made, "--json").result["entries"] == 2
        assert detlayer("verify", made).exit == 0
    done = shell(keep, here)
    assert (done.returncode, "reproducible" in done.stdout) == (0, True), done.stderr
    for arguments in (
        ("inspect", file),
        ("normalize", file, "-o", "out.tar"),
        ("diff", file, "plain.tar"),
        ("diff", "plain.tar", file),
        ("verify", "plain.tar", "--against", file),
        ("push", file, "127.0.0.1:1/x:1", "--as-blob"),
    ):
        assert detlayer(*arguments).failure == (3, "layer-format")
    assert not (here / "out.tar").exists()


@pytest.mark.parametrize("command", ["inspect", "normalize"])
def test_formats_on_stdin(command: str, detlayer: CommandLine, here: Path) -> None:
    make("xz", here, "x")
    options = ["-o", "out.tar"] if command == "normalize" else []
    words = [sys.executable, "-m", "detlayer", command, "-", *options]
    done = subprocess.run(words, input=(here / "x").read_bytes(), capture_output=True, cwd=here, check=False)
    assert done.returncode == 3
    assert b"error[layer-format]: the input is in the format xz" in done.stderr
    assert b"xz -dc FILE | detlayer normalize - -o layer.tar.gz" in done.stderr


def test_an_image_in_an_unknown_archive_format(detlayer: CommandLine, here: Path) -> None:
    image = saved.Image([(here / "plain.tar").read_bytes()])
    saved.save(here / "i.tar", image)
    subprocess.run("xz -c i.tar > i2.tar.xz", shell=True, check=True, cwd=here)
    exit_code, code, _, hint = detlayer("push", "docker-archive:i2.tar.xz", "127.0.0.1:1/x:1").error
    assert (exit_code, code, hint) == (3, "layer-format", "xz -dc i2.tar.xz > i2.tar")
    assert shell(hint, here).returncode == 0
    assert (here / "i2.tar").read_bytes() == (here / "i.tar").read_bytes()


NAMES = ["x.tar.xz", "x.TXZ", "x.tbz2", "x.tar.lz4", "x.tar.Z", "x.zip", "x.tzst"]


@pytest.mark.parametrize("name", NAMES)
def test_an_invalid_archive_is_not_packed_as_a_source(name: str, detlayer: CommandLine, here: Path) -> None:
    """Such as an empty file or an error page."""
    (here / name).write_bytes(b"")
    assert detlayer("verify", name).exit == 1
    (here / name).write_text("<html>not found</html>" * 100)
    assert detlayer("verify", name).failure == (3, "header-checksum")


@pytest.mark.parametrize("writer", ["tar --format=v7", "tar --format=gnu", "zstd --skippable"])
def test_layers_are_known_without_a_name(writer: str, detlayer: CommandLine, here: Path) -> None:
    """A pre-POSIX tar has no magic; zstd may begin with a skippable frame."""
    if writer.startswith("tar"):
        subprocess.run([*writer.split(" "), "-cf", "x", "-C", "tree", "a"], cwd=here, check=True)
    else:
        subprocess.run([program("zstd"), "-q", "plain.tar"], cwd=here, check=True)
        (here / "x").write_bytes(b"\x53\x2a\x4d\x18\4\0\0\0note" + (here / "plain.tar.zst").read_bytes())
    said = detlayer("verify", "x", "--json")
    assert said.exit == 1
    assert [one["kind"] for one in said.result["targets"]] == ["layer"]


PLAIN: dict[str, bytes] = {
    "script": b"#!/bin/sh\necho hi\n",
    "text of digits": b"070701,070702\n" * 100,
    "text that begins as an archive's": b"BZh9 is what bzip2 writes; LZIP, too\n" * 20,
    "empty": b"",
    "zeros": bytes(4096),
    "program": b"\x7fELF" + bytes(range(256)) * 8,
}


@pytest.mark.parametrize("name", PLAIN)
def test_other_files_are_sources(name: str, detlayer: CommandLine, here: Path) -> None:
    (here / "file").write_bytes(PLAIN[name])
    said = detlayer("verify", "file", "--runs", "1", "--json")
    assert (said.exit, [one["kind"] for one in said.result["targets"]]) == (0, ["sources"])
    assert detlayer("push", "file", "127.0.0.1:1/x:1", "--as-blob").failure == (3, "layer-format")


@pytest.mark.parametrize("path", [b"070701" + b"0" * 80, b"PK\3\4", b"BZh91AY&SY", b"LZIP\1", b"]"])
def test_a_tar_begins_with_a_name(path: bytes) -> None:
    """Any name is allowed: the first entry does not change the detected format."""
    for layer in (tar(member(path, b"1")), tar(sealed(member(path)[:257] + bytes(8) + member(path)[265:512]))):
        assert is_layer(layer[:512])
        assert audit(Bytes(layer)).entries == 1


def test_system_errors_are_not_taken_for_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that can't be examined is an error, and not treated as missing."""
    (tmp_path / "x").write_bytes(b"")
    assert find_kind(str(tmp_path / "none")) == find_kind(str(tmp_path / "x" / "below")) == find_kind("n" * 5000) == ""

    def failing(path: object) -> object:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("detlayer.images.files.look", failing)
    with pytest.raises(LayerError) as caught:
        find_kind(str(tmp_path / "x"))
    assert caught.value.code == "input-unreadable"


# -- layouts and archives of images


@pytest.fixture
def layout(detlayer: CommandLine, here: Path) -> Path:
    """An OCI layout of one image, tagged `v1`, made by detlayer, so it and a pack of it are canonical."""
    (here / "detlayer.toml").write_text(
        '[images.app]\nbase = "scratch"\nplatforms = ["linux/amd64"]\n'
        'layers = [{ name = "own", sources = ["tree:/app"] }]\ntags = ["v1"]\n'
    )
    for output in ("oci:layout", "oci-archive:image.tar", "docker-archive:saved.tar"):
        said = detlayer("build", "--output", output)
        assert said.exit == 0, said.stderr
    return here / "layout"


def archived(layout: Path, out: Path, mode: str) -> str:
    with tarfile.open(out, mode) as archive:  # type: ignore[call-overload]
        archive.add(layout, ".")
    return out.name


def kinds(detlayer: CommandLine, target: str) -> list[str]:
    said = detlayer("verify", target, "--json")
    assert said.exit == 0, said.stderr
    return [one["kind"] for one in said.result["targets"]]


def test_a_layout_is_known_without_its_prefix(detlayer: CommandLine, layout: Path) -> None:
    """It is packed only with an explicit destination."""
    for target in ("layout", "layout/", "oci:layout", "image.tar", archived(layout, layout.parent / "x.tgz", "w:gz")):
        assert kinds(detlayer, target) == ["layout"], target
    assert kinds(detlayer, "layout:/srv") == ["sources"]
    assert kinds(detlayer, "image.tar:/srv/image.tar") == ["sources"]
    blob = next((layout / "blobs" / "sha256").iterdir())
    blob.write_bytes(blob.read_bytes() + b" ")
    assert detlayer("verify", "layout").exit == 6
    (layout / "index.json").unlink()
    assert detlayer("verify", "layout").failure == (3, "layout-missing")


def test_a_tag_is_not_a_destination(detlayer: CommandLine, layout: Path) -> None:
    for target in ("layout:v1", "image.tar:v1"):
        exit_code, code, _, hint = detlayer("verify", target).error
        assert (exit_code, code) == (2, "target-ambiguous")
        image, _, source = hint.partition("; ")
        assert kinds(detlayer, image.removeprefix("image: ")) == ["layout"]
        assert kinds(detlayer, source.removeprefix("source: ")) == ["sources"]


Writer = Callable[[Path, Path], object]


def by_podman(here: Path, out: Path) -> None:
    subprocess.run(
        [program("skopeo"), "copy", "-q", f"oci:{here / 'layout'}:v1", f"docker-archive:{out}:x:1"], check=True
    )


def by_docker(style: saved.Style) -> Writer:
    return lambda here, out: saved.save(out, saved.Image([(here / "plain.tar").read_bytes()]), style=style)


def zipped(here: Path, out: Path) -> None:
    by_docker("plain")(here, here / "tmp.tar")
    out.write_bytes(gzip.compress((here / "tmp.tar").read_bytes()))


SAVED: dict[str, Writer] = {
    "docker 1.10": by_docker("plain"),
    "docker 1.13": by_docker("symlink"),
    "docker 24": by_docker("layout"),
    "skopeo": by_podman,
    "detlayer": lambda here, out: shutil.copy(here / "saved.tar", out),
    "gzip": zipped,
}


@pytest.mark.parametrize("writer", SAVED)
def test_an_archive_of_docker_save_is_not_a_layer(writer: str, detlayer: CommandLine, layout: Path) -> None:
    """The archive can be verified, but is never read as a layer."""
    SAVED[writer](layout.parent, layout.parent / "x y.tar")
    for name in ("x y.tar", "docker-archive:x y.tar"):
        exit_code, code, _, hint = detlayer("verify", name).error
        assert (exit_code, code) == (3, "image-archive")
        advice = hint.partition("; a single layer")[0]
    program("skopeo")
    done = shell(advice.replace("skopeo copy", "skopeo copy -q"), layout.parent)
    assert done.returncode in (0, 1), done.stderr  # skopeo recompresses, which may differ from SPEC
    assert "reproducible" in done.stdout
    assert detlayer("normalize", "x y.tar", "-o", "out.tar").failure == (3, "image-archive")
    assert not (layout.parent / "out.tar").exists()
    assert detlayer("verify", "plain.tar", "--against", "x y.tar").failure == (2, "against-invalid")
    assert detlayer("inspect", "x y.tar").exit == 0  # inspect lists it like any tar


def test_a_layer_of_an_archive_by_the_hint(detlayer: CommandLine, layout: Path) -> None:
    assert detlayer("normalize", "image.tar", "-o", "out.tar").failure == (3, "image-archive")
    hint = detlayer("normalize", "image.tar", "-o", "out.tar").error[3]
    whole, _, single = hint.partition("; a single layer: ")
    assert shell(whole, layout.parent).returncode == 0
    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads((layout / "blobs" / index["manifests"][0]["digest"].replace(":", "/")).read_bytes())
    name = "blobs/" + manifest["layers"][0]["digest"].replace(":", "/")
    done = shell(single.replace("NAME-IN-ARCHIVE", name), layout.parent)
    assert done.stdout.strip() == manifest["layers"][0]["digest"], done.stderr


def test_a_layer_is_not_mistaken_for_an_archive() -> None:
    """A single such name does not make an archive, nor do such names in subdirectories."""
    digest = b"0" * 64
    for names in (
        [b"manifest.json", b"index.json", b"repositories"],
        [b"oci-layout", b"srv/index.json"],
        [b"srv/manifest.json", b"srv/" + digest + b".json", b"srv/blobs/sha256/" + digest],
        [digest + b".json", digest + b"/layer.tar"],
        [b"manifest.json", digest[:-1] + b".json", digest + b".txt"],
    ):
        signs = ArchiveSigns()
        for name in names:
            signs.take(name)
        assert signs.kind == ""


def test_a_layout_within_an_image_is_a_layer(detlayer: CommandLine, layout: Path) -> None:
    """A layer of an image is read as a layer, even if it contains a layout."""
    here = layout.parent
    (here / "inner").mkdir()
    shutil.move(here / "detlayer.toml", here / "inner" / "detlayer.toml")
    toml = (here / "inner" / "detlayer.toml").read_text().replace("tree:/app", "../layout:/")
    (here / "inner" / "detlayer.toml").write_text(toml)
    assert detlayer("build", "-f", "inner/detlayer.toml", "--output", "oci:outer").exit == 0
    assert kinds(detlayer, "outer") == ["layout"]


def test_formats_by_their_first_bytes() -> None:
    assert [format_of(head) for head in (b"", b"\x1f", b"x" * 512, bytes(512))] == [""] * 4
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    assert format_of(stream.getvalue()[:512]) == "tar"
    assert detlayer.inspect(io.BytesIO(stream.getvalue())).entries == 1

"""Archives and layouts that others wrote are opened, and those that we write are taken: skopeo, podman, umoci."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from detlayer.images.archive_writer import write_docker_archive, write_oci_archive
from detlayer.images.layout_writer import LayoutWriter
from detlayer.images.source import OpenedImage, open_image
from detlayer.oci.documents import ConfigFacts, Document, Wanted, parse_config
from detlayer.oci.references import parse_reference
from detlayer.oci.types import Descriptor, Digest, digest_of
from detlayer.output.files import FileOutput
from tests.e2e.commands import pack, run
from tests.e2e.images import reference, write_image
from tests.e2e.test_oci_tools import copy, inspect, unpack
from tests.e2e.trees import expect_tree, read_tree
from tests.privileges import need_root, program
from tests.trees import make_tree

NAME = "example.org/team/app:v1"


@pytest.fixture
def tree(src: Path) -> Path:
    return make_tree(src, {"srv": {"greeting": "hello\n", "numbers": "".join(f"{n}\n" for n in range(50_000))}})


@pytest.fixture(params=["none", "gzip", "zstd"])
def layout(request: pytest.FixtureRequest, tree: Path, tmp_path: Path) -> Path:
    """An image whose first layer is its last, too."""
    path = tmp_path / "image"
    layer = pack(tree, "--oci", path, "-c", request.param)
    other = pack(f"{__file__}:/etc/", "--oci", path)
    write_image(path, [layer, other, layer])
    return path


@pytest.fixture
def podman() -> Iterator[list[str | Path]]:
    """podman with a storage of its own, whose path must be shorter than 50 characters."""
    need_root("podman as root")
    with tempfile.TemporaryDirectory(prefix="dl-", dir="/tmp") as home:
        yield [
            program("podman"),
            *("--root", f"{home}/root", "--runroot", f"{home}/runroot", "--storage-driver", "vfs"),
            *("--cgroup-manager", "cgroupfs", "--runtime", program("runc")),
        ]


@contextmanager
def output(path: Path) -> Iterator[FileOutput]:
    made = FileOutput(path)
    try:
        yield made
        made.settle()
        made.commit()
    finally:
        made.discard()


def write_archive(layout: Path, path: Path, kind: str) -> Document:
    with open_image(reference(layout)) as source, output(path) as sink:
        if kind == "oci-archive":
            write_oci_archive(sink, Wanted((source.root,)), source, tags=[NAME])
        else:
            write_docker_archive(sink, source.root, source, references=[parse_reference(NAME)])
        return source.root


def check(opened: OpenedImage) -> None:
    """Every blob is there and is what it should be."""
    assert opened.root.blobs
    for blob in opened.root.blobs:
        body = opened.body(blob)
        assert body is not None
        with body.open() as file:
            data = b"".join(iter(lambda: file.read(1 << 20), b""))
        assert (digest_of(data), len(data)) == (blob.digest, blob.size_bytes)


def facts(opened: OpenedImage) -> ConfigFacts:
    assert opened.root.config is not None
    return parse_config(opened.document(opened.root.config), "config")


# -- what others wrote


def test_skopeos_docker_archive(layout: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar"
    with open_image(reference(layout)) as source:
        if any(one.media_type.endswith("zstd") for one in source.root.layers):
            return  # "zstd compression is not supported for docker images", says skopeo
    run(program("skopeo"), "copy", "--insecure-policy", reference(layout), f"docker-archive:{archive}:{NAME}")
    with open_image(reference(layout)) as source, open_image(f"docker-archive:{archive}:{NAME}") as opened:
        assert source.root.config is not None
        assert opened.root.config is not None
        assert opened.document(opened.root.config) == source.document(source.root.config)
        check(opened)


def test_skopeos_oci_archive(layout: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar"
    copy(reference(layout), f"oci-archive:{archive}:{NAME}")
    with open_image(reference(layout)) as source, open_image(f"oci-archive:{archive}:v1") as opened:
        assert opened.root.data == source.root.data
        check(opened)


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_podman_saves(layout: Path, tmp_path: Path, podman: list[str | Path], kind: str) -> None:
    """What podman loaded from us and saves is opened by us again, with one config throughout."""
    write_archive(layout, tmp_path / "ours.tar", "docker-archive")
    assert NAME in run(*podman, "load", "-i", tmp_path / "ours.tar").decode()
    run(*podman, "save", "--format", kind, "-o", tmp_path / "theirs.tar", NAME)
    with open_image(reference(layout)) as source, open_image(f"{kind}:{tmp_path}/theirs.tar") as opened:
        assert source.root.config is not None
        assert opened.root.config is not None
        assert len(opened.root.layers) == 3
        if kind == "docker-archive":
            assert opened.document(opened.root.config) == source.document(source.root.config)
        check(opened)


def test_umocis_layout(tmp_path: Path) -> None:
    """A layout that umoci made new, with an image that has no layers."""
    umoci = program("umoci")
    run(umoci, "init", "--layout", tmp_path / "layout")
    run(umoci, "new", "--image", f"{tmp_path}/layout:empty")
    with open_image(f"oci:{tmp_path}/layout:empty") as opened:
        assert opened.root.layers == ()
        check(opened)


# -- what we write


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_skopeo_reads_our_archives(layout: Path, tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "archive.tar"
    root = write_archive(layout, archive, kind)
    with open_image(reference(layout)) as source:
        expected = facts(source)
    where = f"{kind}:{archive}:{NAME}"
    said = inspect(where)
    assert len(said["Layers"]) == 3
    if kind == "oci-archive":
        assert said["Digest"] == str(root.digest)
        assert said["Layers"] == [str(one.digest) for one in root.layers]
    there = tmp_path / "there"
    run(program("skopeo"), "copy", "--insecure-policy", where, f"oci:{there}:test")
    with open_image(reference(there)) as opened:
        assert facts(opened) == expected  # skopeo rewrites the config of a docker-archive
        check(opened)


def test_skopeo_finds_every_tag(layout: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar"
    with open_image(reference(layout)) as source, output(archive) as sink:
        write_oci_archive(sink, Wanted((source.root,)), source, tags=["1.2", "latest"])
    for tag in ("1.2", "latest"):
        assert inspect(f"oci-archive:{archive}:{tag}")["Digest"] == str(source.root.digest)
        copy(f"oci-archive:{archive}:{tag}", f"oci:{tmp_path / tag}:test")
        with open_image(f"oci:{tmp_path / tag}:test") as opened:
            assert opened.root.data == source.root.data
            check(opened)


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_podman_loads_and_runs_our_archives(
    layout: Path, tmp_path: Path, podman: list[str | Path], kind: str, tree: Path
) -> None:
    archive = tmp_path / "archive.tar"
    root = write_archive(layout, archive, kind)
    said = run(*podman, "load", "-i", archive).decode()
    assert NAME in said
    (found,) = json.loads(run(*podman, "image", "inspect", NAME))
    assert root.config is not None
    assert found["Id"] == root.config.digest.hex  # the image ID of docker and podman
    assert NAME in found["RepoTags"]
    mounted = run(*podman, "image", "mount", NAME).decode().strip()
    assert {path: node.content for path, node in read_tree(Path(mounted, "srv")).items()} == {
        path: node.content for path, node in expect_tree(tree / "srv").items()
    }
    run(*podman, "image", "umount", NAME)


def test_others_read_the_layouts_that_we_write(layout: Path, tree: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    writer = LayoutWriter(there)
    with open_image(reference(layout)) as source:
        for blob in source.root.blobs:
            body = source.body(blob)
            assert body is not None
            with writer.part(blob) as part, body.open() as file:
                while piece := file.read(10_000):
                    part.write(piece)
                part.finish()
        with writer.part(Descriptor("x/y", Digest("0" * 64), 1000)) as part:
            part.write(b"of a pull that breaks off")
        writer.put(source.root.data)
        writer.tag(source.root.descriptor(), "test")
        root = source.root
    assert inspect(reference(there))["Digest"] == str(root.digest)
    copy(reference(there), reference(tmp_path / "copy"))
    if not any(one.media_type.endswith("zstd") for one in root.layers):  # which Debian's umoci does not know
        found = read_tree(unpack(there, tmp_path / "bundle"))
        assert set(expect_tree(tree)) <= set(found)
        run(program("umoci"), "list", "--layout", there)
        run(program("umoci"), "gc", "--layout", there)
        assert os.path.exists(there / "blobs/sha256" / root.digest.hex)

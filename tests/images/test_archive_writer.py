"""Image archives (src/detlayer/images/archive_writer.py): the same bytes for the same image, readable again."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zstandard

from detlayer.errors import ConfigError, DetlayerError, IntegrityError, LayerError
from detlayer.images.archive_writer import write_docker_archive, write_oci_archive
from detlayer.images.source import OpenedImage, open_image
from detlayer.oci.documents import Wanted, parse_document
from detlayer.oci.references import parse_reference
from tests.images.test_layout import Made
from tests.images.test_source import contents, write_index
from tests.layer.handmade_tars import checked, member, tar
from tests.layers import MemorySink
from tests.tar_headers import read_headers

TARS = [tar(member(b"a", b"one" * 1000)), tar(member(b"b", b"two"))]
PLAIN, GZIP, ZSTD = "layer.v1.tar", "layer.v1.tar+gzip", "layer.v1.tar+zstd"


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "layout")


def image(made: Made, *layers: dict[str, Any], tars: list[bytes] | None = None) -> dict[str, Any]:
    diff_ids = ["sha256:" + hashlib.sha256(one).hexdigest() for one in (TARS if tars is None else tars)]
    made.config = made.add(
        {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}}, "config.v1+json"
    )
    return made.image(*layers)


@contextmanager
def opened(made: Made, root: dict[str, Any]) -> Iterator[tuple[Wanted, OpenedImage]]:
    with open_image(write_index(made, root)) as source:
        children = [parse_document(source.document(one), "it") for one in source.root.children]
        yield Wanted((*children, source.root)), source


def oci_archive(made: Made, root: dict[str, Any], **how: Any) -> bytes:
    sink = MemorySink()
    with opened(made, root) as (wanted, source):
        write_oci_archive(sink, wanted, source, **how)
    return bytes(sink.data)


def docker_archive(made: Made, root: dict[str, Any], *names: str) -> bytes:
    sink = MemorySink()
    with opened(made, root) as (wanted, source):
        write_docker_archive(sink, wanted.root, source, references=[parse_reference(name) for name in names])
    return bytes(sink.data)


def test_oci_archive(made: Made, tmp_path: Path) -> None:
    """SPEC 3.4, 5: sorted entries with fixed values."""
    layers = [made.add(one, PLAIN) for one in TARS]
    root = made.index(made.image(*layers, platform={"os": "linux", "architecture": "amd64"}), made.image())
    data = oci_archive(made, root, tags=["v1", "latest"])
    headers = read_headers(data)
    paths = [header.path.decode() for header in headers]
    assert paths == [
        "blobs/",
        "blobs/sha256/",
        *sorted(f"blobs/sha256/{one.name}" for one in (made.path / "blobs/sha256").iterdir()),
        "index.json",
        "oci-layout",
    ]
    assert {(one.uid, one.gid, one.mtime) for one in headers} == {(0, 0, 946684800)}
    assert {one.mode for one in headers} == {0o755, 0o644}
    named = json.loads(headers[-2].content)["manifests"]
    assert [one.pop("annotations") for one in named] == [
        {"org.opencontainers.image.ref.name": tag} for tag in ("v1", "latest")
    ]
    assert named == [{key: root[key] for key in ("mediaType", "digest", "size")}] * 2
    (tmp_path / "archive.tar").write_bytes(data)
    for name in ("", ":v1", ":latest"):
        with open_image(f"oci-archive:{tmp_path}/archive.tar{name}") as again:
            assert str(again.root.digest) == root["digest"]
    with open_image(f"oci-archive:{tmp_path}/archive.tar") as again:
        inner = parse_document(again.document(again.root.children[0]), "it")
        assert [again.body(one) is not None for one in inner.blobs] == [True] * 3
    assert oci_archive(made, root, tags=["v1", "latest"]) == data


def test_docker_archive(made: Made, tmp_path: Path) -> None:
    """Plain and gzip layers are unchanged, zstd is decompressed; a repeated layer is written once."""
    layers = [
        made.add(TARS[0], PLAIN),
        made.add(gzip.compress(TARS[1]), GZIP),
        made.add(zstandard.compress(TARS[1]), ZSTD),
        made.add(zstandard.compress(TARS[1], 9), ZSTD),
        made.add(TARS[0], PLAIN),
    ]
    root = image(made, *layers, tars=[TARS[0], TARS[1], TARS[1], TARS[1], TARS[0]])
    data = docker_archive(made, root, "example.org/team/app:v1", "app")
    headers = {header.path.decode(): header.content for header in read_headers(data)}
    (entry,) = json.loads(headers["manifest.json"])
    assert entry["RepoTags"] == ["example.org/team/app:v1", "docker.io/library/app:latest"]
    assert entry["Config"] == made.config["digest"][7:] + ".json"
    assert [headers[name] for name in entry["Layers"]] == [TARS[0], gzip.compress(TARS[1]), TARS[1], TARS[1], TARS[0]]
    assert [name.partition(".")[2] for name in entry["Layers"]] == ["tar", "tar.gz", "tar", "tar", "tar"]
    assert len(headers) == 5
    assert list(headers) == sorted(headers)
    (tmp_path / "archive.tar").write_bytes(data)
    with open_image(f"docker-archive:{tmp_path}/archive.tar:app") as again:
        assert again.root.config is not None
        assert str(again.root.config.digest) == made.config["digest"]
        assert len(contents(again)) == 5
    assert docker_archive(made, root, "example.org/team/app:v1", "app") == data


def refused(act: Any, *arguments: Any) -> DetlayerError:
    with pytest.raises(DetlayerError) as caught:
        act(*arguments)
    assert checked(caught.value)
    return caught.value


def test_what_a_docker_archive_can_not_hold(made: Made) -> None:
    layers = [made.add(one, PLAIN) for one in TARS]
    root = image(made, *layers)
    assert refused(docker_archive, made, made.index(root)).code == "archive-index"
    assert refused(docker_archive, made, image(made, layers[0])).code == "document-invalid"
    other = made.add(b"{}", "other+json")
    made.config = other
    assert refused(docker_archive, made, made.image()).code == "archive-artifact"
    assert isinstance(refused(docker_archive, made, made.image(other)), ConfigError)


def test_zstd_that_is_not_its_diff_id(made: Made) -> None:
    blob = made.add(zstandard.compress(TARS[0]), ZSTD)
    assert isinstance(refused(docker_archive, made, image(made, blob, tars=TARS[1:])), IntegrityError)
    made.config = made.add({"os": "linux", "rootfs": {"diff_ids": ["../../x"]}}, "config.v1+json")
    assert refused(docker_archive, made, made.image(blob)).code == "document-invalid"


@pytest.mark.parametrize("write", [oci_archive, docker_archive])
def test_blobs_that_are_damaged_or_missing(made: Made, write: Any) -> None:
    layers = [made.add(one, PLAIN) for one in TARS]
    root = image(made, *layers)
    path = made.path / "blobs/sha256" / layers[0]["digest"][7:]
    path.write_bytes(TARS[0][:-1] + b"!")
    assert isinstance(refused(write, made, root), IntegrityError)
    path.write_bytes(TARS[0] + b"!")
    assert isinstance(refused(write, made, root), IntegrityError)
    path.unlink()
    assert refused(write, made, root).code == "blob-missing"


def test_foreign_layers(made: Made) -> None:
    foreign = {
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "digest": "sha256:" + "1" * 64,
        "size": 7,
    }
    root = image(made, foreign, made.add(TARS[1], PLAIN))
    paths = [header.path for header in read_headers(oci_archive(made, root))]
    assert b"blobs/sha256/" + b"1" * 64 not in paths
    assert isinstance(refused(docker_archive, made, root), LayerError)

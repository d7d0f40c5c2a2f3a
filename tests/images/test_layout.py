"""Untrusted OCI layouts: what is followed, how often, and what is rejected (src/detlayer/images)."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from detlayer.errors import IntegrityError, LayerError, TreeError
from detlayer.images.files import open_file, open_layer
from detlayer.images.layout import LayoutImage, LayoutName, name_layout, open_layout
from detlayer.oci.types import Descriptor, Digest

KIND = "application/vnd.oci.image."


class Made:
    """A layout that tests fill."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs" / "sha256").mkdir(parents=True)
        self.config = self.add({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": []}}, "config.v1+json")

    def add(self, document: Any, kind: str = "manifest.v1+json", **more: Any) -> dict[str, Any]:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        digest = hashlib.sha256(data).hexdigest()
        (self.path / "blobs" / "sha256" / digest).write_bytes(data)
        return {"mediaType": KIND + kind if kind else "", "digest": f"sha256:{digest}", "size": len(data), **more}

    def image(self, *layers: dict[str, Any], **more: Any) -> dict[str, Any]:
        return self.add({"config": self.config, "layers": layers}, **more)

    def index(self, *manifests: dict[str, Any], kind: str = "index.v1+json") -> dict[str, Any]:
        return self.add({"manifests": manifests}, kind)

    def read(self, *manifests: dict[str, Any]) -> list[LayoutImage | Descriptor]:
        (self.path / "index.json").write_text(json.dumps({"manifests": manifests}))
        with open_layout(LayoutName(str(self.path), "", False)) as layout:
            return list(layout.images(layout.manifests()))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "layout")


def test_names(tmp_path: Path) -> None:
    assert name_layout("oci:a:b") == ("a", "b", False)
    assert name_layout("oci:a") == ("a", "", False)
    assert name_layout("oci-archive:a.tar:v1") == ("a.tar", "v1", True)
    assert name_layout("a.tar") is None
    (tmp_path / "a:b").mkdir()
    assert name_layout(f"oci:{tmp_path}/a:b") == (f"{tmp_path}/a:b", "", False)


@pytest.mark.parametrize(
    ("tag", "found"),
    [("v1", True), ("app:v1", False), ("example.org/app:v1", True), ("1", False), ("", False)],
)
def test_tags(tag: str, found: bool) -> None:
    notes = {"org.opencontainers.image.ref.name": "example.org/app:v1"}
    assert Descriptor("", Digest("0" * 64), 0, notes).is_named(tag or "v2") is found


def test_platforms(made: Made) -> None:
    """One manifest may serve two platforms; the config has the platform if the descriptor lacks it."""
    arm = {"os": "linux", "architecture": "arm", "variant": "v7"}
    images = made.read(made.index(made.image(), made.image(platform=arm)), made.image())
    assert [str(one.platform()) for one in images if isinstance(one, LayoutImage)] == ["linux/amd64", "linux/arm/v7"]


def test_what_is_no_document_is_a_blob(made: Made) -> None:
    manifest = made.image()
    odd = {**manifest, "mediaType": "text/plain"}
    first, second = made.read(odd, manifest)
    assert isinstance(first, Descriptor)
    assert isinstance(second, LayoutImage)


def test_what_was_named_as_a_layer_is_followed_as_a_manifest(made: Made) -> None:
    inner = made.image()
    images = made.read(made.image(inner), inner)
    assert [isinstance(one, LayoutImage) for one in images] == [True, True]


def test_documents_without_media_types(made: Made) -> None:
    bare = {**made.image(), "mediaType": ""}
    assert len(made.read(made.index(bare, kind=""))) == 1


def test_an_index_is_followed_once(made: Made) -> None:
    """Following 100**5 manifests would take years."""
    found = made.image()
    for level in range(5):
        found = made.index(*[found] * 100, made.add(str(level).encode(), "layer.v1.tar"))
    assert len([one for one in made.read(found) if isinstance(one, LayoutImage)]) == 1


def test_a_document_is_read_once_for_all_platforms(made: Made) -> None:
    image = made.image()
    inner = made.index(image, kind="")
    manifests = [{**one, "platform": {"os": str(number)}} for number in range(50) for one in (image, inner)]
    (made.path / "index.json").write_text(json.dumps({"manifests": manifests}))
    read: list[str] = []

    def document(blob: Descriptor) -> bytes:
        read.append(str(blob.digest))
        return layout.document(blob)

    with open_layout(LayoutName(str(made.path), "", False)) as layout:
        found = list(layout.images(layout.manifests(), document))
    assert [str(one.platform()) for one in found if isinstance(one, LayoutImage)] == [
        "0",
        "linux/amd64",
        *map(str, range(1, 50)),
    ]
    assert sorted(read) == sorted([image["digest"], inner["digest"], made.config["digest"]])


def test_bounds(made: Made) -> None:
    deep = made.image()
    for _ in range(10):
        deep = made.index(deep)
    long = made.add(b" " * (4 << 20) + b"{}")
    many = [{"digest": f"sha256:{number:064}", "size": 1, "mediaType": "x/y"} for number in range(20_001)]
    for manifests, code in (([deep], "layout-invalid"), ([long], "document-too-long"), (many, "document-invalid")):
        with pytest.raises(LayerError) as caught:
            made.read(*manifests)
        assert caught.value.code == code


def test_damaged_documents(made: Made) -> None:
    good = made.image()
    with pytest.raises(IntegrityError):
        made.read({**good, "size": good["size"] + 1})
    with pytest.raises(LayerError) as caught:
        made.read({**good, "digest": "sha256:" + "0" * 64})
    assert caught.value.code == "input-unreadable"
    (made.path / "index.json").unlink()
    with pytest.raises(TreeError), open_layout(LayoutName(str(made.path), "", False)) as layout:
        layout.manifests()


def test_layer_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    with open_file(str(tmp_path / "file")) as file, file.stretch(2, 3) as one, file.stretch(4, 9) as other:
        assert (one.read(2), other.read(3), one.read(9), one.read(9)) == (b"23", b"456", b"4", b"")
        assert file.read(99) == b"0123456789"
    os.mkfifo(tmp_path / "fifo")
    for name, opened, code in (
        ("fifo", open_file, "input-unreadable"),
        ("none", open_file, "input-unreadable"),
        (".", open_file, "input-unreadable"),
        ("none", open_layer, "layer-unreadable"),
        (".", open_layer, "layer-unreadable"),
    ):
        with pytest.raises(LayerError) as caught:
            opened(str(tmp_path / name))
        assert caught.value.code == code


def test_a_layer_from_a_pipe() -> None:
    read, write = os.pipe()
    os.write(write, b"abc")
    os.close(write)
    with open_layer(f"/dev/fd/{read}") as file:
        assert (file.read(9), file.read(9)) == (b"abc", b"")
    os.close(read)

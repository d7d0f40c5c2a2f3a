"""Images of every shape allowed by image-spec arrive unchanged; contradictory ones are rejected."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from detlayer.errors import IntegrityError, LayerError
from tests.contracts.assertions import assert_has
from tests.contracts.client import Client
from tests.contracts.images import CONFIG, EMPTY, NONDISTRIBUTABLE, Descriptor, Layout
from tests.contracts.servers import Kind, RealRegistry, Server
from tests.contracts.storage import INDEX, MANIFEST

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
ATTESTATION = {"os": "unknown", "architecture": "unknown"}
Make = Callable[[Layout], Descriptor]


def blob(layout: Layout, data: bytes = b"abc", media_type: str = LAYER, **more: Any) -> Descriptor:
    return {**layout.add(data, media_type), **more}


def manifest(layout: Layout, *layers: Descriptor, **more: Any) -> Descriptor:
    config = layout.add(b'{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}', CONFIG)
    return layout.add_document(
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": list(layers), **more}
    )


def index(layout: Layout, *children: Descriptor) -> Descriptor:
    return layout.add_document({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(children)})


def nested(layout: Layout, depth: int) -> Descriptor:
    return reduce(lambda inner, _: index(layout, inner), range(depth), manifest(layout, blob(layout)))


def of_bytes(layout: Layout, size: int) -> Descriptor:
    """A manifest of exactly this many bytes."""
    short = manifest(layout, blob(layout), annotations={"a": ""})
    return manifest(layout, blob(layout), annotations={"a": "x" * (size - int(short["size"]))})


def artifact(layout: Layout) -> Descriptor:
    """Its config is also its layer."""
    empty = layout.add(b"{}", EMPTY)
    return manifest(layout, empty, config=empty, artifactType="application/x")


SHAPES: dict[str, Make] = {
    "empty-layer": lambda layout: manifest(layout, blob(layout, b"")),
    "no-layers": manifest,
    "layer-twice": lambda layout: manifest(layout, blob(layout), blob(layout, b"other"), blob(layout)),
    "config-is-layer": artifact,
    "child-twice": lambda layout: index(layout, *[manifest(layout, blob(layout))] * 2),
    "empty-index": index,
    "index-of-indexes": lambda layout: nested(layout, 3),
    "attestation": lambda layout: index(
        layout,
        manifest(layout, blob(layout)),
        {**manifest(layout, blob(layout, b"{}", "application/vnd.in-toto+json")), "platform": ATTESTATION},
    ),
    "artifact-in-index": lambda layout: index(layout, {**artifact(layout), "artifactType": "application/x"}),
    "subject-that-is-nowhere": lambda layout: manifest(
        layout, blob(layout), subject={"mediaType": MANIFEST, "digest": "sha256:" + "0" * 64, "size": 3}
    ),
    "subjects-of-subjects": lambda layout: manifest(
        layout,
        blob(layout, b"c"),
        subject=manifest(layout, blob(layout, b"b"), subject=manifest(layout, blob(layout))),
    ),
    "4-mib": lambda layout: of_bytes(layout, 4 << 20),
    "manifest-as-layer": lambda layout: manifest(layout, manifest(layout, blob(layout))),
    "many-layers": lambda layout: manifest(layout, *(blob(layout, b"%d" % number) for number in range(150))),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_kind_of_image_arrives_as_it_is(name: str, open_server: Server, layout: Layout, tmp_path: Path) -> None:
    descriptor = layout.tag(SHAPES[name](layout), "image")
    client = Client(open_server)
    client.push(layout, "team/app:1")
    assert_has(open_server, "team/app", "1", layout, descriptor)
    client.pull("team/app:1", tmp_path / "pulled")
    for digest, data in layout.blobs_of(descriptor).items():
        assert (tmp_path / "pulled/blobs/sha256" / digest.removeprefix("sha256:")).read_bytes() == data
    open_server.clear()
    client.push(f"oci:{tmp_path / 'pulled'}", "team/app:1")
    asked = [request.path.split("/")[4] for request in open_server.requests]
    if "subject" in json.loads(layout.read(descriptor["digest"])):  # also checks whether it is listed as a referrer
        assert asked in (["manifests", "referrers"], ["manifests", "referrers", "manifests"])
    else:
        assert asked == ["manifests"]


@pytest.mark.parametrize("within", [True, False])
def test_a_layer_that_is_foreign_for_one_only(within: bool, open_server: Server, layout: Layout) -> None:
    """The blob is foreign in one image, but required by another."""
    layer = blob(layout)
    foreign = {**layer, "mediaType": NONDISTRIBUTABLE}
    if within:
        made = manifest(layout, layer, foreign)
    else:
        made = index(layout, manifest(layout, layer), manifest(layout, foreign))
    layout.tag(made, "image")
    Client(open_server).push(layout, "team/app:1")
    assert_has(open_server, "team/app", "1", layout, made)
    assert open_server.blob("team/app", layer["digest"]) == b"abc"


def test_an_index_that_lists_blobs(start_real: Callable[[Kind], RealRegistry], layout: Layout, tmp_path: Path) -> None:
    """As in BuildKit's caches; an unknown media type must not be an error (image-index.md)."""
    server = start_real("open")
    config = blob(layout, b"{}", "application/vnd.buildkit.cacheconfig.v0")
    made = layout.tag(index(layout, blob(layout), config), "image")
    client = Client(server)
    client.push(layout, "cache/app:1")
    assert server.tags("cache/app") == {"1": made["digest"]}
    client.pull("cache/app:1", tmp_path / "pulled")
    for one in (made, config, blob(layout)):
        path = tmp_path / "pulled/blobs/sha256" / one["digest"].removeprefix("sha256:")
        assert path.read_bytes() == layout.read(one["digest"])
    server.clear()
    client.push(layout, "cache/app:2")
    assert "POST" not in {request.method for request in server.requests}


CONTRADICTIONS: dict[str, tuple[str, Make]] = {
    "sizes-in-one": ("document-invalid", lambda layout: manifest(layout, blob(layout), blob(layout, size=4))),
    "sizes-in-two": (
        "document-invalid",
        lambda layout: index(layout, manifest(layout, blob(layout, size=5)), manifest(layout, blob(layout))),
    ),
    "sizes-of-a-child": (
        "document-invalid",
        lambda layout: index(
            layout, manifest(layout, blob(layout)), {**manifest(layout, blob(layout)), "size": 1 << 40}
        ),
    ),
    "size-wrong": ("blob-digest", lambda layout: manifest(layout, blob(layout, size=1 << 62))),
    "size-negative": ("document-invalid", lambda layout: manifest(layout, blob(layout, size=-1))),
    "over-4-mib": ("document-too-long", lambda layout: of_bytes(layout, (4 << 20) + 1)),
    "too-deep": ("document-invalid", lambda layout: nested(layout, 12)),
    "schema-1": (
        "document-schema1",
        lambda layout: index(layout, blob(layout, b"{}", "application/vnd.docker.distribution.manifest.v1+json")),
    ),
    "other-digest": ("document-invalid", lambda layout: manifest(layout, blob(layout, digest="md5:" + "0" * 32))),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions(name: str, open_server: Server, layout: Layout) -> None:
    code, make = CONTRADICTIONS[name]
    layout.tag(make(layout), "image")
    with pytest.raises((LayerError, IntegrityError)) as caught:
        Client(open_server).push(layout, "team/app:1")
    assert caught.value.code == code
    assert open_server.tags("team/app") == {}


def test_documents_without_end(open_server: Server, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index may list more manifests of 4 MiB each than fit into memory."""
    layout.tag(index(layout, *(manifest(layout, annotations={"n": str(number)}) for number in range(20))), "image")
    monkeypatch.setattr("detlayer.transfer.remote._MAX_ALL_BYTES", 5000)
    with pytest.raises(LayerError) as caught:
        Client(open_server).push(layout, "team/app:1")
    assert caught.value.code == "document-invalid"


def test_many_blobs_are_missing(open_server: Server, layout: Layout, tmp_path: Path) -> None:
    """A registry that lost them lists all of them in a long error; all are sent at once."""
    made = layout.tag(manifest(layout, *(blob(layout, b"%d" % number) for number in range(300))), "image")
    client = Client(open_server, tmp_path / "cache")
    client.push(layout, "team/app:1")
    *lost, asked = [one["digest"] for one in json.loads(layout.read(made["digest"]))["layers"]]
    for digest in (made["digest"], *lost):
        open_server.lose("team/app", digest)
    open_server.clear()
    client.push(layout, "team/app:1")
    assert_has(open_server, "team/app", "1", layout, made)
    assert [one.status for one in open_server.requests if "/manifests/" in one.path] == [404, 400, 201]
    assert [one.path for one in open_server.requests if one.method == "HEAD"][1:2] == [f"/v2/team/app/blobs/{asked}"]

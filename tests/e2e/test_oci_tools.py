"""skopeo, a real registry, umoci and podman take our blobs as layers, under the digests that we printed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.commands import Packed, pack, run
from tests.e2e.engines import GREET, podman_run, shell_sources
from tests.e2e.images import reference, write_image
from tests.e2e.trees import expect_tree, read_tree
from tests.privileges import need_root, program
from tests.trees import make_tree

CODECS = ("none", "gzip", "gzip-stored", "zstd")

# umoci 0.4.7, which Debian 12 has, knows no zstd: "blob is not correct mediatype: ...layer.v1.tar+zstd".
UMOCI_CODECS = ("none", "gzip", "gzip-stored")


@dataclass(frozen=True)
class Image:
    layout: Path
    layer: Packed
    manifest: str


@pytest.fixture(params=CODECS)
def image(request: pytest.FixtureRequest, real_tree: Path, tmp_path: Path) -> Image:
    return make_image(tmp_path / "image", real_tree, "-c", request.param)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a docker-registry of our own, on loopback."""
    home = tmp_path_factory.mktemp("registry")
    serve = program("docker-registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(home / "storage")}},
        "http": {"addr": address},
    }
    (home / "config.yml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    with (home / "log").open("wb") as log:
        child = subprocess.Popen([serve, "serve", home / "config.yml"], stdout=log, stderr=log)
    try:
        wait_until_ready(address, child, home / "log")
        yield address
    finally:
        child.kill()
        child.wait()


def wait_until_ready(address: str, child: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        if child.poll() is not None:
            break
        with contextlib.suppress(OSError):
            if get(address, "/v2/")[0] == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"docker-registry does not answer: {log.read_text(encoding='utf-8')}")


def get(address: str, path: str) -> tuple[int, bytes]:
    connection = HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def make_image(layout: Path, *arguments: str | Path, settings: dict[str, Any] | None = None) -> Image:
    layer = pack("--oci", layout, *arguments)
    return Image(layout, layer, write_image(layout, [layer], settings))


# -- skopeo


def inspect(where: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        run(program("skopeo"), "inspect", "--tls-verify=false", "--no-tags", where),
    )
    return document


def copy(source: str, destination: str) -> None:
    # By default skopeo would compress layers that are not.
    run(
        program("skopeo"),
        "copy",
        "--insecure-policy",
        "--preserve-digests",
        "--dest-tls-verify=false",
        source,
        destination,
    )


def test_skopeo_inspects_a_layout(image: Image) -> None:
    said = inspect(reference(image.layout))
    assert said["Digest"] == image.manifest
    assert said["Layers"] == [image.layer.digest]


def test_skopeo_copies_to_another_layout(image: Image, tmp_path: Path) -> None:
    there = tmp_path / "there"
    copy(reference(image.layout), reference(there))
    blob = there / "blobs" / "sha256" / image.layer.digest.removeprefix("sha256:")
    with blob.open("rb") as file:
        assert "sha256:" + hashlib.file_digest(file, "sha256").hexdigest() == image.layer.digest


def test_skopeo_pushes_to_a_registry(image: Image, registry: str) -> None:
    name = f"layers/{image.layer.note('codec')}"
    copy(reference(image.layout), f"docker://{registry}/{name}:test")
    said = inspect(f"docker://{registry}/{name}:test")
    assert said["Digest"] == image.manifest
    assert said["Layers"] == [image.layer.digest]
    status, blob = get(registry, f"/v2/{name}/blobs/{image.layer.digest}")
    assert status == 200
    assert "sha256:" + hashlib.sha256(blob).hexdigest() == image.layer.digest


# -- umoci


def unpack(layout: Path, bundle: Path) -> Path:
    umoci = program("umoci")
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    run(umoci, "unpack", *rootless, "--image", f"{layout}:test", bundle)
    return bundle / "rootfs"


@pytest.mark.parametrize("codec", UMOCI_CODECS)
def test_umoci_unpacks_to_the_tree(codec: str, real_tree: Path, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", real_tree, "-c", codec)
    assert read_tree(unpack(image.layout, tmp_path / "bundle")) == expect_tree(real_tree)


def test_whiteouts_delete_and_opaque_directories_hide(src: Path, tmp_path: Path) -> None:
    below = make_tree(src / "below", {"a": {"gone": "1", "stays": "2"}, "b": {"hidden": "3"}, "gone": {"too": "4"}})
    above = make_tree(src / "above", {"b": {"new": "5"}})
    layout = tmp_path / "image"
    lower = pack(below, "--oci", layout)
    upper = pack(above, "--oci", layout, "--whiteout", "a/gone", "--whiteout", "/gone", "--opaque", "b")
    write_image(layout, [lower, upper])
    found = read_tree(unpack(layout, tmp_path / "bundle"))
    assert set(found) == {"a", "a/stays", "b", "b/new"}


# -- podman


@pytest.mark.parametrize("codec", CODECS)
def test_podman_runs_a_program_from_a_layer(codec: str, src: Path, tmp_path: Path, short_home: Path) -> None:
    need_root("podman as root")
    make_tree(src, {"greeting": "hello from a layer\n"})
    image = make_image(tmp_path / "image", f"{src}:/srv", *shell_sources(), "-c", codec)
    assert podman_run(short_home, reference(image.layout), *GREET) == "hello from a layer\n"

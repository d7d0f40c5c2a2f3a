"""Others read what detlayer pushed, push what it packed, and write what it pushes: the bytes stay what they are.

skopeo passes blobs on as they are. podman and buildah keep layers unpacked, and compress them again, in their own way,
for every push; but a blob that a registry has, and that they know to be the same tar, they take from there. So layers
keep their digests where an image was pulled from the registry (or pushed to it by detlayer or skopeo) before. From a
plain tar they make a gzip: there is no option to leave it, other than in their registries.conf.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.assertions import assert_has, broken_tags
from tests.contracts.fixtures import StartReal
from tests.contracts.images import Descriptor, Layout, artifact, image, platforms
from tests.contracts.servers import RealRegistry
from tests.contracts.storage import sha256
from tests.e2e.commands import DETLAYER, Packed, measured, pack, run
from tests.e2e.engines import GREET, buildah, podman, podman_run, shell_sources
from tests.e2e.images import reference, write_image
from tests.e2e.trees import expect_tree, read_tree
from tests.privileges import need_root, program
from tests.trees import make_tree

MAX_PEAK_BYTES = 150 << 20
LARGE_BYTES = 1 << 30  # 5 GiB take the same memory, and five times the time
COPIED_BYTES = 512 << 20


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETLAYER_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def registry(start_real: StartReal) -> RealRegistry:
    """A docker-registry, which the tests talk to without the recording proxy."""
    return start_real("open")


def detlayer(*arguments: str | Path) -> str:
    return run(*DETLAYER, *arguments).decode().strip()


def skopeo_copy(*arguments: str | Path) -> None:
    plain = ["--src-tls-verify=false", "--dest-tls-verify=false"]
    run(program("skopeo"), "copy", "--insecure-policy", "--all", *plain, *arguments)


def blobs(layout: Path) -> dict[str, bytes]:
    return {f"sha256:{one.name}": one.read_bytes() for one in (layout / "blobs" / "sha256").iterdir()}


def make(layout: Layout, kind: str) -> Descriptor:
    made = {
        "index": lambda: platforms(layout, 2, 3),
        "zstd": lambda: image(layout, compression="zstd"),
        "plain": lambda: image(layout, compression="none"),
        "artifact": lambda: artifact(layout),
    }[kind]()
    return layout.tag(made, "app")


# -- others read what detlayer pushed


@pytest.mark.parametrize("kind", ["index", "zstd", "plain", "artifact"])
def test_skopeo_reads_it_back(registry: RealRegistry, layout: Layout, tmp_path: Path, kind: str) -> None:
    made = make(layout, kind)
    at = f"{registry.direct_address}/team/app:1"
    assert detlayer("push", f"oci:{layout.path}", at) == made["digest"]
    skopeo_copy("--preserve-digests", f"docker://{at}", f"oci:{tmp_path / 'theirs'}:app")
    assert blobs(tmp_path / "theirs") == layout.blobs_of(made)
    # And `detlayer pull` brings the same.
    assert detlayer("pull", at, "-o", f"oci:{tmp_path / 'ours'}:app") == made["digest"]
    assert blobs(tmp_path / "ours") == blobs(tmp_path / "theirs")
    (our,), (their,) = (
        json.loads((tmp_path / one / "index.json").read_text())["manifests"] for one in ("ours", "theirs")
    )
    assert our.items() >= their.items()  # we say for which platform it is, too


def test_docker_images_are_read_back(registry: RealRegistry, layout: Layout) -> None:
    made = layout.tag(platforms(layout, 2, 2, docker=True), "app")
    at = f"{registry.direct_address}/team/app:1"
    detlayer("push", f"oci:{layout.path}", at)
    raw = run(program("skopeo"), "inspect", "--raw", "--tls-verify=false", f"docker://{at}")
    assert raw == layout.read(made["digest"])
    assert_has(registry, "team/app", "1", layout, made)


def test_umoci_unpacks_it(registry: RealRegistry, real_tree: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "image", [pack(real_tree, "--oci", tmp_path / "image")])
    at = f"{registry.direct_address}/team/app:1"
    detlayer("push", reference(tmp_path / "image"), at)
    skopeo_copy(f"docker://{at}", f"oci:{tmp_path / 'theirs'}:app")
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    run(program("umoci"), "unpack", *rootless, "--image", f"{tmp_path / 'theirs'}:app", tmp_path / "bundle")
    assert read_tree(tmp_path / "bundle" / "rootfs") == expect_tree(real_tree)


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_podman_runs_it(registry: RealRegistry, src: Path, tmp_path: Path, short_home: Path, codec: str) -> None:
    need_root("podman as root")
    make_tree(src, {"greeting": "hello from a registry\n"})
    write_image(tmp_path / "image", [pack(f"{src}:/srv", *shell_sources(), "-c", codec, "--oci", tmp_path / "image")])
    at = f"{registry.direct_address}/team/app:1"
    detlayer("push", reference(tmp_path / "image"), at)
    assert podman_run(short_home, f"docker://{at}", *GREET) == "hello from a registry\n"


# -- others push what detlayer packed


@pytest.fixture(params=["gzip", "gzip-stored", "zstd"])
def packed(request: pytest.FixtureRequest, src: Path, tmp_path: Path) -> Packed:
    """A layer in the image `test` of the layout `image`. Each codec has a tar of its own: podman knows blobs by tar."""
    make_tree(src, {"greeting": f"hello from {request.param}\n" * 1000})
    layer = pack(src, "-c", request.param, "--oci", tmp_path / "image")
    write_image(tmp_path / "image", [layer])
    return layer


def layers(registry: RealRegistry, name: str) -> list[Descriptor]:
    """Return the layers of the image tagged `1`, each checked against its digest."""
    assert broken_tags(registry) == {}
    stored = registry.manifest(name, registry.tags(name)["1"])
    assert stored is not None
    listed: list[Descriptor] = json.loads(stored[1])["layers"]
    return listed


def test_skopeo_keeps_the_digests(registry: RealRegistry, packed: Packed, tmp_path: Path) -> None:
    skopeo_copy(reference(tmp_path / "image"), f"docker://{registry.direct_address}/skopeo/app:1")
    assert [one["digest"] for one in layers(registry, "skopeo/app")] == [packed.digest]


def test_skopeo_compresses_a_plain_tar_unless_told(registry: RealRegistry, src: Path, tmp_path: Path) -> None:
    make_tree(src, {"greeting": "hello from a plain tar\n" * 1000})
    layer = pack(src, "-c", "none", "--oci", tmp_path / "image")
    write_image(tmp_path / "image", [layer])
    at = f"docker://{registry.direct_address}"
    skopeo_copy(reference(tmp_path / "image"), f"{at}/changed/app:1")
    assert [one["digest"] for one in layers(registry, "changed/app")] != [layer.digest]
    skopeo_copy("--preserve-digests", reference(tmp_path / "image"), f"{at}/kept/app:1")
    assert [one["digest"] for one in layers(registry, "kept/app")] == [layer.digest]


def test_podman_and_buildah_keep_the_digests(
    registry: RealRegistry, packed: Packed, tmp_path: Path, short_home: Path
) -> None:
    """The image is in the registry (detlayer pushed it); they pull it, push it elsewhere, and build on it."""
    need_root("podman as root")
    host = registry.direct_address
    detlayer("push", reference(tmp_path / "image"), f"{host}/team/base:1")
    podman(short_home, "pull", "-q", "--tls-verify=false", f"docker://{host}/team/base:1")
    podman(short_home, "push", "-q", "--tls-verify=false", f"{host}/team/base:1", f"docker://{host}/podman/app:1")
    assert [one["digest"] for one in layers(registry, "podman/app")] == [packed.digest]
    name = buildah(short_home, "from", "-q", "--tls-verify=false", f"docker://{host}/team/base:1").strip()
    buildah(short_home, "config", "--label", "built=on-it", name)
    buildah(short_home, "commit", "-q", "--tls-verify=false", name, f"docker://{host}/buildah/app:1")
    buildah(short_home, "rm", name)
    base, *above = layers(registry, "buildah/app")
    assert base["digest"] == packed.digest
    assert len(above) == 1


# -- detlayer pushes what others wrote


@pytest.fixture
def others(registry: RealRegistry, src: Path, tmp_path: Path) -> Path:
    """An image in the layout `image`, from which the others make theirs; returns where they may write."""
    make_tree(src, {"greeting": "hello\n", "more": {"file": "x" * 5000}})
    write_image(tmp_path / "image", [pack(src, "--oci", tmp_path / "image")])
    made = tmp_path / "made"
    made.mkdir()
    return made


def layout_pushed(registry: RealRegistry, layout: Path, name: str = "oci:{}") -> None:
    """Push, and hold each blob and manifest in the registry against the layout's; asserts that all arrived."""
    digest = detlayer("push", name.format(layout), f"{registry.direct_address}/others/app:1")
    assert registry.tags("others/app") == {"1": digest}
    assert broken_tags(registry) == {}
    written = blobs(layout)
    stored = registry.manifest("others/app", digest)
    assert stored is not None
    assert stored[1] == written[digest]
    document = json.loads(stored[1])
    for one in (document["config"], *document["layers"]):
        assert registry.blob("others/app", one["digest"]) == written[one["digest"]]


def test_a_layout_of_skopeo(registry: RealRegistry, others: Path, tmp_path: Path) -> None:
    skopeo_copy(reference(tmp_path / "image"), f"oci:{others / 'skopeo'}:theirs")
    layout_pushed(registry, others / "skopeo")


def test_a_layout_of_umoci(registry: RealRegistry, others: Path, src: Path) -> None:
    umoci, layout = program("umoci"), others / "umoci"
    run(umoci, "init", "--layout", layout)
    run(umoci, "new", "--image", f"{layout}:theirs")
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    run(umoci, "insert", *rootless, "--image", f"{layout}:theirs", src, "/srv")
    run(umoci, "config", "--image", f"{layout}:theirs", "--config.label", "by=umoci")
    layout_pushed(registry, layout)


def test_a_layout_and_an_archive_of_buildah(
    registry: RealRegistry, others: Path, tmp_path: Path, short_home: Path
) -> None:
    need_root("buildah as root")
    name = buildah(short_home, "from", "-q", reference(tmp_path / "image")).strip()
    buildah(short_home, "config", "--label", "by=buildah", name)
    buildah(short_home, "commit", "-q", name, f"oci:{others / 'buildah'}:theirs")
    buildah(short_home, "commit", "-q", name, f"oci-archive:{others / 'buildah.tar'}:theirs")
    buildah(short_home, "rm", name)
    layout_pushed(registry, others / "buildah")
    with tarfile.open(others / "buildah.tar") as archive:
        archive.extractall(others / "extracted", filter="data")
    registry.reset()
    layout_pushed(registry, others / "extracted", f"oci-archive:{others / 'buildah.tar'}")


@pytest.mark.parametrize("writer", ["podman", "skopeo"])
def test_a_docker_archive(registry: RealRegistry, others: Path, tmp_path: Path, short_home: Path, writer: str) -> None:
    """Config and layers are the archive's, byte for byte; the manifest is ours (docs/images.md)."""
    at = others / "docker.tar"
    if writer == "skopeo":
        skopeo_copy(reference(tmp_path / "image"), f"docker-archive:{at}:example.org/team/app:1")
    else:
        need_root("podman as root")
        found = podman(short_home, "pull", "-q", reference(tmp_path / "image")).strip()
        podman(short_home, "save", "-q", "--format", "docker-archive", "-o", at, found)
    digest = detlayer("push", f"docker-archive:{at}", f"{registry.direct_address}/others/app:1")
    assert registry.tags("others/app") == {"1": digest}
    assert broken_tags(registry) == {}
    files = dict(_files(at))
    (listed,) = json.loads(files["manifest.json"])
    stored = registry.manifest("others/app", digest)
    assert stored is not None
    document = json.loads(stored[1])
    for one, name in zip((document["config"], *document["layers"]), (listed["Config"], *listed["Layers"]), strict=True):
        assert registry.blob("others/app", one["digest"]) == files[name]
    # podman takes it back for the image that it saved: the image ID is the config's digest.
    assert sha256(files[listed["Config"]]) == document["config"]["digest"]


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                yield member.name, content.read()


# -- large blobs


def large_image(layout: Layout, size_bytes: int) -> Descriptor:
    """An image with one layer of so many bytes, nearly all of them zeros that take no space."""
    path = layout.path / "large"
    head = hashlib.sha256(str(size_bytes).encode()).digest()
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size_bytes)
    with path.open("rb") as file:
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    path.rename(layout.blob_path(digest))
    document: dict[str, Any] = json.loads(layout.read(image(layout, ["small"])["digest"]))
    document["layers"].append({**document["layers"][0], "digest": digest, "size": size_bytes})
    return layout.tag(layout.add_document(document), "app")


def test_a_large_blob_is_pushed_in_bounded_memory(registry: RealRegistry, layout: Layout) -> None:
    made = large_image(layout, LARGE_BYTES)
    digest, peak_bytes = measured("push", "-q", f"oci:{layout.path}", f"{registry.direct_address}/team/app:1")
    assert digest == made["digest"]
    assert peak_bytes < MAX_PEAK_BYTES
    # The registry has held each blob against its digest.
    assert registry.tags("team/app") == {"1": made["digest"]}


def test_a_large_blob_is_copied_and_pulled_in_bounded_memory(
    registry: RealRegistry, layout: Layout, tmp_path: Path
) -> None:
    """Between two real registries, and into a layout."""
    made = large_image(layout, COPIED_BYTES)
    large = json.loads(layout.read(made["digest"]))["layers"][1]["digest"]
    (tmp_path / "other").mkdir()
    with RealRegistry("open", tmp_path / "other") as other:
        source, target = f"{registry.direct_address}/team/app:1", f"{other.direct_address}/copy/app:1"
        detlayer("push", "-q", f"oci:{layout.path}", source)
        digest, peak_bytes = measured("push", "-q", f"docker://{source}", target)
        assert digest == made["digest"]
        assert peak_bytes < MAX_PEAK_BYTES
        assert other.tags("copy/app") == {"1": digest}
        digest, peak_bytes = measured("pull", "-q", target, "-o", f"oci:{tmp_path / 'pulled'}")
        assert digest == made["digest"]
        assert peak_bytes < MAX_PEAK_BYTES
    with (tmp_path / "pulled" / "blobs" / "sha256" / large.removeprefix("sha256:")).open("rb") as file:
        assert f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == large

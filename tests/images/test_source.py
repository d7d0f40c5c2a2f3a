"""Open images to push from their files (src/detlayer/images/source.py, docker_archive.py)."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from detlayer.errors import ConfigError, DetlayerError, IntegrityError, LayerError, TreeError
from detlayer.images.source import OpenedFile, OpenedImage, open_image
from detlayer.oci.ports import Body, ImageSource
from detlayer.oci.references import RepositoryName
from detlayer.oci.types import MEDIA_TYPE_CONFIG, MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, Descriptor, Digest, digest_of
from tests.images import docker_saved as saved
from tests.images.test_layout import Made
from tests.layer.handmade_tars import checked, member, tar
from tests.privileges import mounted
from tests.vectors import counter_bytes

LAYERS = [tar(member(b"a", b"one" * 1000)), tar(member(b"b", b"two")), tar()]
LAYER = "layer.v1.tar"


def refused(text: str, **options: Any) -> DetlayerError:
    with pytest.raises(DetlayerError) as caught, open_image(text, **options):
        raise AssertionError("it opened")
    assert checked(caught.value)
    return caught.value


def contents(image: OpenedImage) -> list[bytes]:
    """Return the layers of an image as they would be sent."""
    found = []
    for layer in image.root.layers:
        body = image.body(layer)
        assert body is not None
        with body.open() as file:
            data = b"".join(iter(lambda: file.read(1000), b""))
        assert (len(data), hashlib.sha256(data).hexdigest()) == (layer.size_bytes, layer.digest.hex)
        found.append(data)
    return found


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "layout")


def write_index(made: Made, *manifests: dict[str, Any]) -> str:
    (made.path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (made.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))
    return f"oci:{made.path}"


def tagged(descriptor: dict[str, Any], tag: str, **more: str) -> dict[str, Any]:
    return {**descriptor, "annotations": {"org.opencontainers.image.ref.name": tag, **more}}


def archived(directory: Path, path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.add(directory, ".")
    return path


# -- layouts


def test_the_only_image_of_a_layout(made: Made) -> None:
    image = made.image(made.add(LAYERS[0], LAYER))
    name = write_index(made, image)
    with open_image(name) as opened:
        source: ImageSource = opened
        assert str(opened.root.digest) == image["digest"]
        assert contents(opened) == LAYERS[:1]
        assert opened.root.config is not None
        assert (
            source.document(opened.root.config) == (made.path / "blobs/sha256" / made.config["digest"][7:]).read_bytes()
        )
        assert source.document(opened.root.descriptor()) == opened.root.data
        assert opened.origin is None
    with open_image(write_index(made, tagged(image, "v1"), tagged(image, "v2"))) as opened:  # one image, two tags
        assert str(opened.root.digest) == image["digest"]


def test_no_room_to_decompress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved.save(tmp_path / "saved.tar", saved.Image([tar(member(b"a", counter_bytes("big", 3 << 20)))]))
    path.write_bytes(gzip.compress(path.read_bytes(), 1))
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(["-t", "tmpfs", "-o", "size=1m", "none"], disk):
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        error = refused(f"docker-archive:{path}")
        assert (error.code, str(disk) in error.message) == ("spool-full", True)
        assert os.listdir(disk) == []


def test_tags_of_a_layout(made: Made) -> None:
    one, two = made.image(), made.image(made.add(LAYERS[1], LAYER))
    name = write_index(made, tagged(one, "v1"), tagged(two, "example.org/app:v2"), tagged(two, "other/app:v1"))
    for tag, wanted in (("v1", one), ("v2", two), ("example.org/app:v2", two)):
        with open_image(f"{name}:{tag}") as opened:
            assert str(opened.root.digest) == wanted["digest"]
    several = refused(name)
    assert several.code == "layout-image"
    assert "2 images" in several.message
    assert "example.org/app:v2, other/app:v1, v1" in several.hint
    none = refused(f"{name}:v3")
    assert none.code == "layout-image"
    assert "no images" in none.message
    assert "detlayer image" in refused(write_index(made)).hint


def test_the_index_of_a_layout_as_the_image(made: Made) -> None:
    """As `crane push --index`."""
    name = write_index(made, made.image(), made.image(made.add(LAYERS[1], LAYER)))
    with open_image(name, whole_index=True) as opened:
        assert opened.root.data == (made.path / "index.json").read_bytes()
        assert opened.root.is_index
        assert len(opened.root.children) == 2
    assert refused(f"{name}:v1", whole_index=True).code == "image-index"
    assert refused("docker-archive:x", whole_index=True).code == "image-index"


def test_an_index_in_a_layout(made: Made) -> None:
    index = made.index(made.image(platform={"os": "linux", "architecture": "arm64"}))
    with open_image(write_index(made, tagged(index, "v1"))) as opened:
        assert opened.root.media_type == MEDIA_TYPE_INDEX
        (child,) = opened.root.children
        assert hashlib.sha256(opened.document(child)).hexdigest() == child.digest.hex
        assert str(child.platform) == "linux/arm64"


def test_what_is_no_image_in_a_layout(made: Made) -> None:
    name = write_index(made, made.add(LAYERS[0], LAYER))
    assert refused(name).code == "layout-image"
    assert refused(write_index(made, {**made.config, "mediaType": MEDIA_TYPE_MANIFEST})).code == "document-invalid"


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_archives_of_layouts(made: Made, tmp_path: Path, mode: str) -> None:
    image = made.image(made.add(LAYERS[0], LAYER), made.add(LAYERS[1], LAYER))
    write_index(made, tagged(image, "v1"))
    path = archived(made.path, tmp_path / "a:b.tar", mode)
    for name in (f"oci-archive:{path}", f"oci-archive:{path}:v1"):
        with open_image(name) as opened:
            assert str(opened.root.digest) == image["digest"]
            assert contents(opened) == LAYERS[:2]


@pytest.mark.parametrize("kind", ["directory", "archive"])
def test_bodies_open_at_any_offset(made: Made, tmp_path: Path, kind: str) -> None:
    """A resumed upload reads the rest."""
    name = write_index(made, made.image(made.add(LAYERS[0], LAYER)))
    if kind == "archive":
        name = f"oci-archive:{archived(made.path, tmp_path / 'archive.tar')}"
    with open_image(name) as opened:
        body: Body | None = opened.body(opened.root.layers[0])
        assert body is not None
        assert body.size_bytes == len(LAYERS[0])
        for offset in (0, 1, 511, body.size_bytes - 1, body.size_bytes):
            with body.open(offset) as first, body.open(offset) as second:
                data = b"".join(iter(lambda file=first: file.read(700), b""))  # type: ignore[misc]
                assert data == second.read(len(LAYERS[0])) == LAYERS[0][offset:]


def test_many_threads_read_one_archive(made: Made, tmp_path: Path) -> None:
    write_index(made, made.image(*[made.add(bytes([n]) * 100_000, LAYER) for n in range(20)]))
    with open_image(f"oci-archive:{archived(made.path, tmp_path / 'archive.tar')}") as opened:
        layers = opened.root.layers * 5

        def read(layer: Descriptor) -> Digest:
            body = opened.body(layer)
            assert body is not None
            with body.open() as file:
                return digest_of(file.read(layer.size_bytes))

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(read, layers)) == [layer.digest for layer in layers]


def test_blobs_that_are_not_there(made: Made) -> None:
    """A sparse layout: an annotation names the repository of its layers."""
    foreign = {"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar", "digest": "sha256:" + "1" * 64}
    image = made.image(made.add(LAYERS[0], LAYER), {**foreign, "size": 7})
    name = write_index(made, tagged(image, "v1", **{"dev.detlayer.source": "ghcr.io/team/base"}))
    with open_image(name) as opened:
        here, there = opened.root.layers
        (made.path / "blobs/sha256" / here.digest.hex).unlink()
        assert opened.body(here) is None
        assert opened.body(there) is None
        assert opened.origin == RepositoryName("ghcr.io", "team/base")
        with pytest.raises(LayerError) as caught:
            opened.document(here)
        assert checked(caught.value) == "input-unreadable"
    with open_image(name, whole_index=True) as opened:
        assert opened.origin == RepositoryName("ghcr.io", "team/base")
    bad = write_index(made, tagged(image, "v1", **{"dev.detlayer.source": "Not/A\nRepository"}))
    assert refused(bad).code == "layout-invalid"


def test_damaged_layouts(made: Made) -> None:
    layer = made.add(LAYERS[0], LAYER)
    name = write_index(made, made.image(layer))
    path = made.path / "blobs/sha256" / layer["digest"][7:]
    with open_image(name) as opened:
        body = opened.body(opened.root.layers[0])
        assert body is not None
        path.write_bytes(LAYERS[0][:-1])
        with pytest.raises(IntegrityError) as wrong:
            opened.body(opened.root.layers[0])
        assert checked(wrong.value) == "blob-digest"
        with body.open() as file, pytest.raises(LayerError) as early:
            list(iter(lambda: file.read(1000), b""))
        assert checked(early.value) == "input-changed"
        path.unlink()
        with pytest.raises(LayerError) as gone:
            body.open()
        assert checked(gone.value) == "input-changed"
        (made.path / "blobs/sha256" / made.config["digest"][7:]).write_bytes(b"{}")
        assert opened.root.config is not None
        with pytest.raises(IntegrityError):
            opened.document(opened.root.config)


def test_names_that_name_nothing(tmp_path: Path) -> None:
    assert isinstance(refused("app.tar"), ConfigError)
    assert isinstance(refused(f"oci:{tmp_path}/none"), TreeError)
    assert isinstance(refused(f"oci:{tmp_path}"), TreeError)
    assert isinstance(refused(f"oci-archive:{tmp_path}/none"), TreeError)
    assert isinstance(refused(f"docker-archive:{tmp_path}/none:app"), TreeError)
    os.mkfifo(tmp_path / "fifo")
    assert isinstance(refused(f"docker-archive:{tmp_path}/fifo"), TreeError)


# -- docker save


@pytest.mark.parametrize("style", ["plain", "symlink", "hardlink", "layout"])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_docker_archives(tmp_path: Path, style: saved.Style, is_compressed: bool) -> None:
    image = saved.Image([*LAYERS, LAYERS[0]])
    path = saved.save(tmp_path / "saved.tar", image, style=style)
    if is_compressed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    with open_image(f"docker-archive:{path}") as opened:
        root = opened.root
        assert root.media_type == MEDIA_TYPE_MANIFEST
        assert root.config == Descriptor(
            MEDIA_TYPE_CONFIG, Digest(hashlib.sha256(image.config).hexdigest()), len(image.config)
        )
        assert opened.document(root.config) == image.config
        assert {layer.media_type for layer in root.layers} == {"application/vnd.oci.image.layer.v1.tar"}
        assert contents(opened) == [*LAYERS, LAYERS[0]]
        assert opened.document(root.descriptor()) == root.data
        assert opened.origin is None
        body = opened.body(root.config)
        assert body is not None
        with body.open(5) as file:
            assert file.read(10_000) == image.config[5:]
        manifest = root.data
    others: tuple[saved.Style, ...] = ("plain", "layout")
    for other in others:  # the kind of archive makes no difference
        with open_image(f"docker-archive:{saved.save(path, image, style=other)}") as opened:
            assert opened.root.data == manifest


def test_docker_archives_with_compressed_layers(tmp_path: Path) -> None:
    """As `crane save` and docker's containerd store write them."""
    plain = ["sha256:" + hashlib.sha256(one).hexdigest() for one in LAYERS]
    stored = [gzip.compress(LAYERS[0]), zstandard.compress(LAYERS[1]), LAYERS[2]]
    styles: tuple[saved.Style, ...] = ("plain", "layout")
    for style in styles:
        path = saved.save(tmp_path / "saved.tar", saved.Image(stored, diff_ids=plain), style=style)
        with open_image(f"docker-archive:{path}") as opened:
            assert [layer.media_type.rpartition(".")[2] for layer in opened.root.layers] == [
                "tar+gzip",
                "tar+zstd",
                "tar",
            ]
            assert contents(opened) == stored


def test_names_of_images_in_docker_archives(tmp_path: Path) -> None:
    one = saved.Image(LAYERS[:1], ["app:v1", "app:latest"])
    two = saved.Image(LAYERS[1:2], ["docker.io/library/other:v1", "Not A Tag"])
    three = saved.Image(LAYERS[2:], [])
    path = saved.save(tmp_path / "saved.tar", one, two, three)
    for name, wanted in (
        ("app", one),
        ("app:v1", one),
        ("docker.io/library/app:v1", one),
        ("other:v1", two),
        ("@0", one),
        ("@2", three),
    ):
        with open_image(f"docker-archive:{path}:{name}") as opened:
            assert contents(opened) == list(wanted.layers)
    several = refused(f"docker-archive:{path}")
    assert several.code == "layout-image"
    assert "app:v1, docker.io/library/other:v1" in several.hint
    for name in ("app:v2", "@3"):
        assert refused(f"docker-archive:{path}:{name}").code == "layout-image"
    assert refused(f"docker-archive:{path}:NO").code == "reference-invalid"
    saved.save(path, three, saved.Image(LAYERS[1:], []))
    assert refused(f"docker-archive:{path}").hint == "select one by its number: :@0"


def test_docker_archives_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "saved.tar"
    name = f"docker-archive:{path}"
    diff_ids = ["sha256:" + hashlib.sha256(one).hexdigest() for one in LAYERS]
    saved.save(path, saved.Image(LAYERS, diff_ids=reversed(diff_ids)))  # type: ignore[arg-type]
    assert isinstance(refused(name), IntegrityError)
    saved.save(path, saved.Image([gzip.compress(LAYERS[0])], diff_ids=["sha256:" + "0" * 64]))
    assert isinstance(refused(name), IntegrityError)
    saved.save(path, saved.Image(LAYERS, diff_ids=diff_ids[:2]))
    assert refused(name).code == "layout-invalid"
    image = saved.Image(LAYERS)
    config = hashlib.sha256(image.config).hexdigest() + ".json"
    entry: dict[str, Any] = {"Config": config, "RepoTags": None, "Layers": ["a", "b", "c"]}
    wrong: list[Any] = [
        {},
        [[]],
        [{"Config": 7}],
        [{**entry, "Config": "none.json"}],
        [{**entry, "Config": "../../etc/passwd"}],
        [{**entry, "Layers": ["/etc/passwd"] * 3}],
        [entry],
    ]
    for index in wrong:
        saved.save(path, image, index=index)
        assert refused(name).code == "layout-invalid"
    saved.save(path, image, index=[])
    assert refused(name).code == "layout-image"


def write_tar(path: Path, *infos: tuple[str, bytes, bytes]) -> None:
    """Names, types and contents of entries, and the targets of links."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, kind, data in infos:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(data)
            else:
                info.linkname = data.decode()
            archive.addfile(info, io.BytesIO(data))


def test_links_lead_nowhere_else(tmp_path: Path) -> None:
    """A link out of the archive finds nothing, and a cycle ends."""
    path = tmp_path / "saved.tar"
    image = saved.Image(LAYERS[:1])
    for links in (
        [("l/layer.tar", "/etc/passwd")],
        [("l/layer.tar", "../../../../etc/passwd")],
        [("l/layer.tar", "layer.tar")],
        [("l/layer.tar", "../m/layer.tar"), ("m/layer.tar", "../l/layer.tar")],
        [(f"l{n}/layer.tar" if n else "l/layer.tar", f"../l{n + 1}/layer.tar") for n in range(100)],
    ):
        write_tar(
            path,
            *[(name, tarfile.SYMTYPE, target.encode()) for name, target in links],
            ("c.json", tarfile.REGTYPE, image.config),
            ("l100/layer.tar", tarfile.REGTYPE, LAYERS[0]),
            ("manifest.json", tarfile.REGTYPE, b'[{"Config":"c.json","Layers":["l/layer.tar"]}]'),
        )
        assert refused(f"docker-archive:{path}").code == "layout-invalid"
    for twice in (("c.json", tarfile.REGTYPE, b"{}"), ("c.json", tarfile.SYMTYPE, b"manifest.json")):
        write_tar(path, ("c.json", tarfile.REGTYPE, image.config), twice)
        assert refused(f"docker-archive:{path}").code == "layout-invalid"


def test_other_archives(tmp_path: Path, made: Made) -> None:
    write_index(made, made.image())
    path = archived(made.path, tmp_path / "archive.tar")
    assert "oci-archive:" in refused(f"docker-archive:{path}").hint
    write_tar(path, ("repositories", tarfile.REGTYPE, b"{}"))
    assert "docker 1.10" in refused(f"docker-archive:{path}").hint
    whole = saved.save(path, saved.Image(LAYERS)).read_bytes()
    for data, code in (
        (b"", "layout-invalid"),
        (b"no tar" * 1000, "header-checksum"),
        (whole[:1000], "tar-truncated"),
        (gzip.compress(whole)[:-9], "blob-truncated"),
        (whole + b"x" * 512, "tar-garbage"),
    ):
        path.write_bytes(data)
        assert refused(f"docker-archive:{path}").code == code


def test_foreign_layers_of_docker_archives(tmp_path: Path) -> None:
    """Windows layers: docker records their URLs, and registries do not store them."""
    diff_id = "sha256:" + hashlib.sha256(LAYERS[0]).hexdigest()
    foreign = {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": "sha256:" + "1" * 64,
        "size": 7,
        "urls": ["https://example.org/layer"],
    }
    path = saved.save(tmp_path / "saved.tar", saved.Image(LAYERS[:2]), sources={diff_id: foreign})
    with open_image(f"docker-archive:{path}") as opened:
        first, second = opened.root.layers
        assert first.to_document() == foreign
        assert opened.body(first) is None
        assert opened.body(second) is not None
    usual = {**foreign, "mediaType": "application/vnd.oci.image.layer.v1.tar"}  # docker 25 also writes these
    saved.save(path, saved.Image(LAYERS[:2]), sources={diff_id: usual})
    with open_image(f"docker-archive:{path}") as opened:
        assert contents(opened) == LAYERS[:2]
    saved.save(path, saved.Image(LAYERS[:2]), sources={diff_id: {"digest": 7}})
    assert refused(f"docker-archive:{path}").code == "document-invalid"


# -- single layer files


@pytest.mark.parametrize(
    ("make", "suffix"), [(bytes, "tar"), (gzip.compress, "tar+gzip"), (zstandard.compress, "tar+zstd")]
)
def test_a_layer_file_as_a_blob(tmp_path: Path, make: Callable[[bytes], bytes], suffix: str) -> None:
    """It gets a manifest, which a tag can name; without one, a registry may delete it."""
    data = make(LAYERS[0])
    path = str(tmp_path / "layer")
    (tmp_path / "layer").write_bytes(data)
    with open_image(path, as_blob=True) as opened:
        assert isinstance(opened, OpenedFile)
        blob, config = opened.blob, opened.root.config
        assert blob.media_type == opened.root.artifact_type == f"application/vnd.oci.image.layer.v1.{suffix}"
        assert (blob.digest.hex, blob.size_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
        assert opened.root.blobs == (config, blob)
        assert contents(opened) == [data]
        assert config is not None
        # As image-spec has it, so that registries have it already.
        assert str(config.digest) == "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        empty = opened.body(config)
        assert empty is not None
        with empty.open() as first, empty.open(1) as second:
            assert (first.read(9), second.read(9)) == (b"{}", b"}")
        body = opened.body(blob)
        assert body is not None
        with body.open(3) as file:
            assert file.read(1 << 20) == data[3:]
        assert opened.body(Descriptor("x/y", Digest("0" * 64), 1)) is None
        manifest = opened.root.data
    with open_image(path, as_blob=True) as opened:
        assert opened.root.data == manifest


def test_what_is_no_layer_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "none", "."):
        assert refused(str(tmp_path / name), as_blob=True).code == "input-unreadable"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A small archive, and a path for variants of it."""
    path = saved.save(
        tmp_path_factory.mktemp("fuzz") / "saved.tar", saved.Image([*LAYERS[1:], LAYERS[1]]), style="symlink"
    )
    return path, path.read_bytes().rstrip(b"\0") + bytes(1536)


@given(st.data())
def test_any_damage_is_an_error_of_ours(whole: tuple[Path, bytes], data: st.DataObject) -> None:
    """A changed or missing byte: the image is the same, or opening fails."""
    path, archive = whole
    at = data.draw(st.integers(0, len(archive) - 1))
    if data.draw(st.booleans()):
        damaged = archive[:at]
    else:
        damaged = archive[:at] + bytes((data.draw(st.integers(0, 255)),)) + archive[at + 1 :]
    path.write_bytes(damaged)
    try:
        with open_image(f"docker-archive:{path}") as opened:
            contents(opened)
    except DetlayerError as error:
        assert checked(error)


_ENTRY = st.fixed_dictionaries(
    {"Config": st.sampled_from(("c.json", "l/layer.tar", "manifest.json", "x", ""))},
    optional={
        "Layers": st.one_of(
            st.none(), st.lists(st.sampled_from(("l/layer.tar", "c.json", "..", "/", "x")), max_size=3)
        ),
        "RepoTags": st.one_of(
            st.none(), st.lists(st.sampled_from(("a:b", ":", "A", "a\n")), max_size=2), st.integers()
        ),
        "LayerSources": st.dictionaries(st.text(max_size=3), st.one_of(st.none(), st.text(max_size=3)), max_size=2),
    },
)


@given(st.one_of(st.lists(_ENTRY, max_size=3), st.lists(st.none(), max_size=1), st.none(), st.text(max_size=4)))
def test_any_manifest_json(whole: tuple[Path, bytes], document: Any) -> None:
    path = whole[0].with_name("manifest.tar")
    write_tar(
        path,
        ("c.json", tarfile.REGTYPE, saved.Image(LAYERS[1:2]).config),
        ("l/layer.tar", tarfile.REGTYPE, LAYERS[1]),
        ("manifest.json", tarfile.REGTYPE, json.dumps(document).encode()),
    )
    try:
        with open_image(f"docker-archive:{path}") as opened:
            assert contents(opened) == LAYERS[1:2]
    except DetlayerError as error:
        assert checked(error)
        assert "\n" not in error.message

"""Image documents: merging a base, layers and settings; exact bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from detlayer.errors import ConfigError, LayerError
from detlayer.oci.assembly import Base, Part, assemble, configure, index, parse_base, scratch
from detlayer.oci.documents import Document, parse_document
from detlayer.oci.media_types import layer_type
from detlayer.oci.runtime import EnvChange, HealthCheck, Runtime, merge_env
from detlayer.oci.types import Descriptor, Digest, Platform, canonical_json, digest_of

AMD64 = Platform("linux", "amd64")
ARM = Platform("linux", "arm", "v7")


def part(name: str, media_type: str = "application/vnd.oci.image.layer.v1.tar+gzip") -> Part:
    data = name.encode()
    return Part(Descriptor(media_type, digest_of(data), len(data), {"a": "b"}), digest_of(data + b"tar"), name)


def base_of(config: dict[str, Any], *layers: str) -> Base:
    parts = [part(name) for name in layers]
    document = {
        "os": "linux",
        "architecture": "amd64",
        **config,
        "rootfs": {"type": "layers", "diff_ids": [str(one.diff_id) for one in parts]},
    }
    data = canonical_json(document)
    return parse_base(assemble(data, parts), data)


def configured(base: Base, runtime: Runtime | None = None, **options: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(configure(base, [], runtime or Runtime(), **options))
    return document


def test_an_image_from_nothing_has_these_bytes() -> None:
    """SPEC 7.1: canonical bytes, so these digests are the same on every machine."""
    config = configure(scratch(ARM), [part("one")], Runtime(entrypoint=("/x",)))
    assert json.loads(config) == {
        "architecture": "arm",
        "variant": "v7",
        "os": "linux",
        "created": "2000-01-01T00:00:00Z",
        "config": {"Entrypoint": ["/x"]},
        "rootfs": {"type": "layers", "diff_ids": [str(part("one").diff_id)]},
        "history": [{"created": "2000-01-01T00:00:00Z", "created_by": "one"}],
    }
    manifest = assemble(config, [part("one")], annotations={"org.example": "x"})
    assert json.loads(manifest.data)["layers"] == [
        {
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": str(part("one").descriptor.digest),
            "size": 3,
        }
    ]
    top = index([(manifest, ARM)], annotations={"org.example": "x"})
    assert str(digest_of(config)) == GOLDEN[0]
    assert str(manifest.digest) == GOLDEN[1]
    assert str(top.digest) == GOLDEN[2]


GOLDEN = (
    "sha256:1e952415536c230c9b4c18fe3c92a6abe73ecf2041ce0c5f9c8de163d8873949",
    "sha256:80664abdf2837e30ad2969e0297d8eeb0edfedc5739ebfd71f2b6f6510e47799",
    "sha256:3f45106025d1b26044b443d4e4c2c2c95715316f0b8528ebc4ed91576bb62acb",
)


def test_the_base_is_kept_and_built_upon() -> None:
    base = base_of(
        {
            "author": "somebody",
            "docker_version": "20",
            "container_config": {"Cmd": ["x"]},
            "history": [{"created_by": "ADD"}, {"created_by": "CMD", "empty_layer": True}],
            "config": {
                "Env": ["PATH=/bin", "A=1"],
                "Cmd": ["bash"],
                "Labels": {"a": "1", "b": "1"},
                "Volumes": {"/v": {}},
                "ExposedPorts": {"80/tcp": {}},
                "OnBuild": ["RUN x"],
                "Hostname": "h",
                "ArgsEscaped": True,
                "User": "u",
                "WorkingDir": "",
            },
        },
        "base",
    )
    runtime = Runtime(
        entrypoint=("python3",),
        env=(EnvChange("PATH", None, "/app/bin", "/last"), EnvChange("B", "2"), EnvChange("A", "3")),
        workdir="/srv",
        ports=("53/udp",),
        volumes=("/w",),
        labels={"b": "2"},
        stop_signal="SIGINT",
    )
    made = json.loads(configure(base, [part("app")], runtime, created=0))
    assert made["author"] == "somebody"
    assert not made.keys() & {"docker_version", "container_config"}
    assert made["created"] == "1970-01-01T00:00:00Z"
    assert made["config"] == {
        "Entrypoint": ["python3"],
        "Env": ["PATH=/app/bin:/bin:/last", "A=3", "B=2"],
        "Labels": {"a": "1", "b": "2"},
        "Volumes": {"/v": {}, "/w": {}},
        "ExposedPorts": {"53/udp": {}, "80/tcp": {}},
        "ArgsEscaped": True,
        "User": "u",
        "WorkingDir": "/srv",
        "StopSignal": "SIGINT",
    }
    assert [one["created_by"] for one in made["history"]] == ["ADD", "CMD", "app"]
    assert made["rootfs"]["diff_ids"] == [str(part("base").diff_id), str(part("app").diff_id)]


def test_an_entrypoint_drops_the_command_of_the_base_and_a_command_does_not() -> None:
    base = base_of({"config": {"Cmd": ["bash"], "Entrypoint": ["tini"]}})
    assert configured(base)["config"] == {"Cmd": ["bash"], "Entrypoint": ["tini"]}
    assert configured(base, Runtime(cmd=("sh",)))["config"] == {"Cmd": ["sh"], "Entrypoint": ["tini"]}
    assert configured(base, Runtime(entrypoint=("e",)))["config"] == {"Entrypoint": ["e"]}
    assert configured(base, Runtime(entrypoint=(), cmd=()))["config"] == {}


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (None, ["a layer of the base"] * 2),
        ([{"created_by": "x"}], ["x", "a layer of the base"]),
        ([{"created_by": "x"}, {"created_by": "y"}, {"created_by": "z"}], ["a layer of the base"] * 2),
        ("nonsense", ["a layer of the base"] * 2),
    ],
)
def test_history_has_an_entry_for_each_layer(history: object, expected: list[str]) -> None:
    base = base_of({} if history is None else {"history": history}, "a", "b")
    assert [one["created_by"] for one in configured(base)["history"]] == expected


@pytest.mark.parametrize(
    "config", [{"config": None}, {"config": []}, {"config": {"Env": "x", "Labels": [], "Volumes": 3}}]
)
def test_odd_configs_of_bases_are_no_trouble(config: dict[str, Any]) -> None:
    made = configured(base_of(config), Runtime(env=(EnvChange("A", "1"),), labels={"a": "b"}, volumes=("/v",)))
    assert made["config"] == {"Env": ["A=1"], "Labels": {"a": "b"}, "Volumes": {"/v": {}}}


def test_an_image_is_for_the_variant_that_was_asked_for() -> None:
    """Also on a base for a lesser variant: added files may need more."""
    base = base_of({"architecture": "arm64"})
    assert configured(base, platform=Platform("linux", "arm64", "v8"))["variant"] == "v8"
    lesser = replace(base, platform=Platform("linux", "arm", "v6"))
    assert configured(lesser, platform=ARM)["variant"] == "v7"
    assert configured(lesser, platform=Platform("linux", "arm"))["variant"] == "v6"


def test_windows_keeps_its_version() -> None:
    base = base_of({"os": "windows", "os.version": "10.0.1", "os.features": ["x"]})
    made = configured(base)
    assert (made["os.version"], made["os.features"]) == ("10.0.1", ["x"])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"os": ""}, "no platform"),
        ({"rootfs": {"diff_ids": []}}, "1 layers but 0"),
        ({"rootfs": {"diff_ids": ["x"]}}, "sha256"),
    ],
)
def test_bases_that_contradict_themselves(change: dict[str, Any], word: str) -> None:
    data = canonical_json({"os": "linux", "architecture": "amd64", **change})
    with pytest.raises(LayerError) as caught:
        parse_base(assemble(data, [part("a")]), data)
    assert caught.value.code == "base-invalid"
    assert word in caught.value.message


OCI, DOCKER = "application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."
PAIRS = [
    (OCI + "v1.tar", DOCKER + "diff.tar"),
    (OCI + "v1.tar+gzip", DOCKER + "diff.tar.gzip"),
    (OCI + "nondistributable.v1.tar+gzip", DOCKER + "foreign.diff.tar.gzip"),
]


@pytest.mark.parametrize(("oci", "docker"), PAIRS)
def test_layers_are_called_by_the_name_of_the_format(oci: str, docker: str) -> None:
    for one in (oci, docker):
        assert layer_type(one, "oci") == oci
        assert layer_type(one, "docker") == docker


def test_zstd_is_for_oci() -> None:
    zstd = OCI + "v1.tar+zstd"
    assert layer_type(zstd, "oci") == layer_type(DOCKER + "diff.tar.zstd", "oci") == zstd
    for one in (zstd, DOCKER + "diff.tar.zstd"):
        with pytest.raises(ConfigError) as caught:
            layer_type(one, "docker")
        assert caught.value.code == "format-compression"
    assert layer_type("application/x-other", "docker") == "application/x-other"


def test_docker_format() -> None:
    config = configure(scratch(AMD64), [], Runtime(healthcheck=HealthCheck(("CMD", "true"), 1.5, 2, 0, 3)))
    assert json.loads(config)["config"]["Healthcheck"] == {
        "Test": ["CMD", "true"],
        "Interval": 1_500_000_000,
        "Timeout": 2_000_000_000,
        "Retries": 3,
    }
    manifest = assemble(config, [part("a")], format="docker", annotations={"a": "b"})
    document = json.loads(manifest.data)
    assert document["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert document["config"]["mediaType"] == "application/vnd.docker.container.image.v1+json"
    assert document["layers"][0]["mediaType"] == "application/vnd.docker.image.rootfs.diff.tar.gzip"
    assert "annotations" not in document
    top = index([(manifest, AMD64)], format="docker")
    assert top.media_type == "application/vnd.docker.distribution.manifest.list.v2+json"


def test_foreign_layers_keep_their_urls() -> None:
    foreign = Part(
        Descriptor(DOCKER + "foreign.diff.tar.gzip", Digest("0" * 64), 3, urls=("https://example/x",)), Digest("1" * 64)
    )
    layer = assemble(b"{}", [foreign]).layers[0]
    assert layer.urls == ("https://example/x",)
    assert layer.is_foreign


def test_an_index_lists_platforms_in_order() -> None:
    manifests = [(assemble(configure(scratch(one), [], Runtime()), []), one) for one in (AMD64, ARM)]
    top = index(manifests)
    assert [child.platform for child in top.children] == [AMD64, ARM]
    assert [child.digest for child in top.children] == [one.digest for one, _ in manifests]


_names = st.sampled_from(["PATH", "A", "B", ""])


@given(st.lists(st.tuples(_names, st.text(max_size=3))), st.lists(st.builds(EnvChange, _names, st.text(max_size=3))))
def test_env_has_each_variable_once_and_the_last_word_counts(
    base: list[tuple[str, str]], changes: list[EnvChange]
) -> None:
    merged = merge_env([f"{name}={value}" for name, value in base], changes)
    names = [one.partition("=")[0] for one in merged]
    assert len(set(names)) == len(names)
    wanted = {**dict(base), **{one.name: one.value for one in changes}}
    assert dict(one.partition("=")[::2] for one in merged) == wanted
    assert names == list(wanted)


@given(st.permutations(["a", "b", "c"]))
def test_labels_in_any_order_give_the_same_bytes(names: list[str]) -> None:
    one = Runtime(labels=dict.fromkeys(names, "x"), ports=tuple(f"{ord(name)}/tcp" for name in names))
    other = Runtime(labels=dict.fromkeys("abc", "x"), ports=tuple(f"{ord(name)}/tcp" for name in "abc"))
    assert configure(scratch(AMD64), [], one) == configure(scratch(AMD64), [], other)


def test_what_is_made_is_read_back() -> None:
    made: Document = assemble(b"{}", [part("a"), part("b")], annotations={"x": "y"})
    assert parse_document(made.data, "x") == made

"""Bases of images: any compression and format, foreign layers, variants, full and sparse layouts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.building.project_bench import APP, Bench
from tests.contracts.images import DOCKER_FOREIGN, Layout
from tests.contracts.storage import sha256

ONE = """
[images.app]
base = "{registry}/base:1"
platforms = ["PLATFORM"]
repositories = ["{registry}/team/app"]
layers = [{ name = "source", sources = ["src:/opt/app"] }]
"""


def manifest(bench: Bench, digest: str) -> dict[str, Any]:
    found = bench.server.manifest("team/app", digest)
    assert found is not None
    document: dict[str, Any] = json.loads(found[1])
    return document


def config(bench: Bench, digest: str) -> dict[str, Any]:
    data = bench.server.blob("team/app", manifest(bench, digest)["config"]["digest"])
    assert data is not None
    document: dict[str, Any] = json.loads(data)
    return document


def put_base(bench: Bench, media_type: str, *, more: list[dict[str, Any]] | None = None, **change: Any) -> bytes:
    """Put a base with one layer of this media type, and `more`; return the layer. `change` applies to its config."""
    registry = bench.server
    layer = f"not looked into: {media_type}".encode()
    settings = {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "1" * 64] * (1 + len(more or []))},
        **change,
    }
    data = json.dumps(settings).encode()
    docker = "docker" in media_type
    kind = (
        "application/vnd.docker.distribution.manifest.v2+json"
        if docker
        else "application/vnd.oci.image.manifest.v1+json"
    )
    config_type = (
        "application/vnd.docker.container.image.v1+json" if docker else "application/vnd.oci.image.config.v1+json"
    )
    document = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": {"mediaType": config_type, "digest": registry.put_blob("base", data), "size": len(data)},
        "layers": [
            *(more or []),
            {"mediaType": media_type, "digest": registry.put_blob("base", layer), "size": len(layer)},
        ],
    }
    registry.put_manifest("base", json.dumps(document).encode(), kind, "1")
    return layer


LAYERS = [
    ("application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
    ("application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.v1.tar"),
    ("application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
]


@pytest.mark.parametrize(("media_type", "named"), LAYERS)
def test_layers_of_a_base_are_unchanged(bench: Bench, media_type: str, named: str) -> None:
    layer = put_base(bench, media_type)
    bench.write(ONE.replace("PLATFORM", "linux/amd64"))
    built = bench.build("--push")
    assert built.code == 0, built.errors
    first = manifest(bench, built.digest)["layers"][0]
    assert (first["mediaType"], first["digest"]) == (named, sha256(layer))
    assert bench.server.blob("team/app", first["digest"]) == layer


def test_docker_format_over_an_oci_base(bench: Bench) -> None:
    put_base(bench, "application/vnd.oci.image.layer.v1.tar+gzip")
    text = ONE.replace("PLATFORM", "linux/amd64") + 'format = "docker"\nhealthcheck = { command = "true" }\n'
    bench.write(text)
    built = bench.build("--push")
    assert built.code == 0, built.errors
    document = manifest(bench, built.digest)
    assert document["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert {one["mediaType"] for one in document["layers"]} == {"application/vnd.docker.image.rootfs.diff.tar.gzip"}
    assert config(bench, built.digest)["config"] == {
        "Cmd": ["sh"],
        "Healthcheck": {"Test": ["CMD-SHELL", "true"]},
        "Labels": {
            "org.opencontainers.image.base.name": f"{bench.server.address}/base:1",
            "org.opencontainers.image.base.digest": bench.server.tags("base")["1"],
        },
    }


def test_docker_format_over_a_base_of_zstd_is_refused(bench: Bench) -> None:
    put_base(bench, "application/vnd.oci.image.layer.v1.tar+zstd")
    bench.write(ONE.replace("PLATFORM", "linux/amd64") + 'format = "docker"\n')
    built = bench.command("build")
    assert built.code == 2
    assert "error[format-compression]" in built.errors


def test_foreign_layers_are_listed_but_not_copied(bench: Bench) -> None:
    foreign = {
        "mediaType": DOCKER_FOREIGN,
        "digest": "sha256:" + "f" * 64,
        "size": 9,
        "urls": ["https://example.org/x"],
    }
    put_base(bench, "application/vnd.docker.image.rootfs.diff.tar.gzip", more=[foreign])
    bench.write(ONE.replace("PLATFORM", "linux/amd64"))
    built = bench.build("--push", "-o", "oci:out")
    assert built.code == 0, built.errors
    first = manifest(bench, built.digest)["layers"][0]
    assert first["urls"] == ["https://example.org/x"]
    assert "nondistributable" in first["mediaType"]
    assert not (bench.path / "out/blobs/sha256" / ("f" * 64)).exists()
    assert bench.build("--push", "-o", "oci:out").ran() == set()


def test_a_compatible_variant_is_used(bench: Bench) -> None:
    put_base(bench, "application/vnd.oci.image.layer.v1.tar", architecture="arm", variant="v6")
    bench.write(ONE.replace('"PLATFORM"', '"linux/arm/v6", "linux/arm/v7"'))
    built = bench.build("--push")
    assert built.code == 0, built.errors
    children = manifest(bench, built.digest)["manifests"]
    assert [one["platform"]["variant"] for one in children] == ["v6", "v7"]
    assert config(bench, children[1]["digest"])["variant"] == "v7"
    bench.write(ONE.replace("PLATFORM", "linux/arm/v5"))
    assert "error[platform-missing]" in bench.command("build").errors


def test_windows_of_two_versions_in_one_index(bench: Bench) -> None:
    digests = []
    for version in ("10.0.17763.1", "10.0.20348.1"):
        windows: dict[str, Any] = {"os": "windows", "os.version": version}
        put_base(bench, "application/vnd.docker.image.rootfs.diff.tar.gzip", **windows)
        digests.append(bench.server.tags("base")["1"])
    children = [
        {
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "digest": digest,
            "size": len((bench.server.manifest("base", digest) or ("", b""))[1]),
            "platform": {"os": "windows", "architecture": "amd64", "os.version": version},
        }
        for digest, version in zip(digests, ("10.0.17763.1", "10.0.20348.1"), strict=True)
    ]
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": children}
    bench.server.put_manifest("base", json.dumps(index).encode(), "application/vnd.oci.image.index.v1+json", "1")
    bench.write(ONE.replace('"PLATFORM"', '"windows/amd64:10.0.17763", "windows/amd64:10.0.20348"'))
    built = bench.build("--push")
    assert built.code == 0, built.errors
    versions = [one["platform"]["os.version"] for one in manifest(bench, built.digest)["manifests"]]
    assert versions == ["10.0.17763.1", "10.0.20348.1"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"rootfs": {"type": "layers", "diff_ids": []}}, "base-invalid"),
        ({"architecture": ""}, "base-invalid"),
        ({"architecture": "s390x"}, "platform-missing"),
    ],
)
def test_an_invalid_base(bench: Bench, change: dict[str, Any], code: str) -> None:
    put_base(bench, "application/vnd.oci.image.layer.v1.tar", **change)
    bench.write(ONE.replace("PLATFORM", "linux/amd64"))
    built = bench.command("build")
    assert built.code in (3, 4)
    assert f"error[{code}]" in built.errors


def test_an_artifact_is_not_a_base(bench: Bench, layout: Layout) -> None:
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": bench.server.put_blob("base", b"{}"),
            "size": 2,
        },
        "layers": [],
    }
    bench.server.put_manifest("base", json.dumps(document).encode(), str(document["mediaType"]), "1")
    bench.write(ONE.replace("PLATFORM", "linux/amd64"))
    assert "error[base-invalid]" in bench.command("build").errors


def test_a_base_whose_layers_stayed_in_the_registry(bench: Bench) -> None:
    """`pull --manifests-only`, then a build on that base: its layers are mounted."""
    bench.expect("pull", f"{bench.server.address}/base:1", "-o", "oci:sparse:1", "--manifests-only")
    bench.write(APP.replace("{registry}/base:1", "oci:sparse:1"))
    built = bench.build("--push")
    assert built.code == 0, built.errors
    assert any("mount=" in one.query and "from=base" in one.query for one in built.requests)
    assert bench.build("--push", "-o", "oci:out").code == 0
    assert bench.command("verify", "oci:out").code == 0


def test_two_builds_at_once(bench: Bench, tmp_path: Path) -> None:
    """The same project, cache, layout and repository."""
    wanted = bench.build("--no-cache").digest
    command = [sys.executable, "-m", "detlayer", "build", "--push", "-o", "oci:out", "-q"]
    running = [
        subprocess.Popen(command, cwd=bench.path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in running:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert out.strip().endswith(wanted)
    assert bench.command("verify", "oci:out").code == 0
    assert bench.server.tags("team/app") == {"latest": wanted}


def test_an_unusable_cache_is_a_warning(bench: Bench, tmp_path: Path) -> None:
    wanted = bench.build().digest
    (tmp_path / "file").write_text("no directory")
    built = bench.build("--cache-dir", str(tmp_path / "file" / "cache"))
    assert built.code == 0, built.errors
    assert built.digest == wanted
    assert "warning[cache-" in built.errors

"""Images in OCI layouts, made without detlayer, as inputs of pushes and expected results of pulls.

Layers are real tars with files that do not compress, so that any tool can unpack them. Same arguments, same bytes.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import zstandard

from tests.contracts.storage import DOCKER_LIST, DOCKER_MANIFEST, INDEX, MANIFEST, sha256
from tests.vectors import counter_bytes

Compression = Literal["none", "gzip", "zstd"]
ARCHITECTURES = ("amd64", "arm64", "riscv64", "ppc64le", "s390x")
CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
_LAYERS = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"

Descriptor = dict[str, Any]
ODD_CONFIGS = {
    "empty": b"",
    "no JSON": b"not JSON",
    "no object": b'["linux", "amd64"]',
    "other kinds": b'{"os": 5, "architecture": ["amd64"]}',
    "invalid diff_ids": b'{"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": 7}}',
}
"""Invalid configs."""


@dataclass(slots=True)
class Layout:
    """An OCI layout on disk that tests fill."""

    path: Path
    entries: list[Descriptor] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.path / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        (self.path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        self._write_index()

    def blob_path(self, digest: str) -> Path:
        return self.path / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def read(self, digest: str) -> bytes:
        return self.blob_path(digest).read_bytes()

    def add(self, data: bytes, media_type: str, **more: Any) -> Descriptor:
        """Store a blob; `more` is added to its descriptor."""
        digest = sha256(data)
        self.blob_path(digest).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data), **more}

    def add_document(self, document: dict[str, Any], **more: Any) -> Descriptor:
        """Store a manifest or an index."""
        return self.add(json.dumps(document).encode(), document["mediaType"], **more)

    def tag(self, descriptor: Descriptor, name: str) -> Descriptor:
        """Add a descriptor to index.json; returns it."""
        self.entries = [one for one in self.entries if _name(one) != name]
        self.entries.append({**descriptor, "annotations": {"org.opencontainers.image.ref.name": name}})
        self._write_index()
        return descriptor

    def blobs_of(self, descriptor: Descriptor) -> dict[str, bytes]:
        """Return all digests of a manifest or index, including its own; foreign layers only if stored."""
        data = self.read(descriptor["digest"])
        found = {descriptor["digest"]: data}
        document = json.loads(data)
        for child in document.get("manifests", []):
            found |= self.blobs_of(child)
        for one in (*([document["config"]] if "config" in document else []), *document.get("layers", [])):
            if self.blob_path(one["digest"]).exists():
                found[one["digest"]] = self.read(one["digest"])
        return found

    def documents_of(self, descriptor: Descriptor) -> list[Descriptor]:
        """Return the manifests and indexes of an image, children first, itself last."""
        document = json.loads(self.read(descriptor["digest"]))
        below = [one for child in document.get("manifests", []) for one in self.documents_of(child)]
        return [*below, descriptor]

    def _write_index(self) -> None:
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": self.entries}
        (self.path / "index.json").write_text(json.dumps(document))


def _name(descriptor: Descriptor) -> str:
    return str(descriptor.get("annotations", {}).get("org.opencontainers.image.ref.name", ""))


def layer_tar(seed: str, size: int) -> bytes:
    """Make a tar with one file of `size` bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        member = tarfile.TarInfo(f"file-{hashlib.sha256(seed.encode()).hexdigest()[:12]}")
        member.size = size
        archive.addfile(member, io.BytesIO(counter_bytes(seed, size)))
    return stream.getvalue()


def compress(data: bytes, compression: Compression) -> bytes:
    match compression:
        case "gzip":
            return gzip.compress(data, 1, mtime=0)
        case "zstd":
            return zstandard.ZstdCompressor(level=1).compress(data)
    return data


def image(
    layout: Layout,
    seeds: Sequence[str] = ("base", "top"),
    *,
    architecture: str = "amd64",
    layer_bytes: int = 2000,
    compression: Compression = "gzip",
    docker: bool = False,
    foreign_seed: str = "",
    subject: Descriptor | None = None,
) -> Descriptor:
    """Make an image with a layer per seed. With a foreign layer, only its descriptor is stored, first."""
    layers, diff_ids = [], []
    if foreign_seed:
        tar = layer_tar(foreign_seed, layer_bytes)
        data = compress(tar, "gzip")
        kind = DOCKER_FOREIGN if docker else NONDISTRIBUTABLE
        urls = [f"https://foreign.invalid/{foreign_seed}"]
        layers.append({"mediaType": kind, "digest": sha256(data), "size": len(data), "urls": urls})
        diff_ids.append(sha256(tar))
    for seed in seeds:
        tar = layer_tar(seed, layer_bytes)
        kind = DOCKER_LAYER if docker else _LAYERS[compression]
        layers.append(layout.add(compress(tar, "gzip" if docker else compression), kind))
        diff_ids.append(sha256(tar))
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["/nothing"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": f"seed {seed}"} for seed in (*filter(None, (foreign_seed,)), *seeds)],
    }
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST if docker else MANIFEST,
        "config": layout.add(json.dumps(config).encode(), DOCKER_CONFIG if docker else CONFIG),
        "layers": layers,
    }
    if subject is not None:
        manifest["subject"] = plain(subject)
    return layout.add_document(manifest)


def platforms(
    layout: Layout,
    count: int = 3,
    layers: int = 5,
    *,
    version: str = "1",
    layer_bytes: int = 2000,
    compression: Compression = "gzip",
    docker: bool = False,
) -> Descriptor:
    """Make an index of images for `count` platforms. Only top layers and configs depend on `version`."""
    children = []
    for architecture in ARCHITECTURES[:count]:
        seeds = [*(f"{architecture} {at}" for at in range(layers - 1)), f"{architecture} top {version}"]
        child = image(
            layout,
            seeds,
            architecture=architecture,
            layer_bytes=layer_bytes,
            compression=compression,
            docker=docker,
        )
        children.append({**child, "platform": {"os": "linux", "architecture": architecture}})
    return layout.add_document(
        {"schemaVersion": 2, "mediaType": DOCKER_LIST if docker else INDEX, "manifests": children}
    )


def base_of(layout: Layout, count: int = 3, layers: int = 5, *, layer_bytes: int = 2000) -> Descriptor:
    """Make the index of the base images of `platforms` with the same numbers: all layers but the top ones."""
    children = []
    for architecture in ARCHITECTURES[:count]:
        seeds = [f"{architecture} {at}" for at in range(layers - 1)]
        child = image(layout, seeds, architecture=architecture, layer_bytes=layer_bytes)
        children.append({**child, "platform": {"os": "linux", "architecture": architecture}})
    return layout.add_document({"schemaVersion": 2, "mediaType": INDEX, "manifests": children})


def artifact(
    layout: Layout,
    subject: Descriptor | None = None,
    *,
    data: bytes = b'{"bom": []}',
    artifact_type: str = "application/vnd.example.sbom.v1+json",
    annotations: dict[str, str] | None = None,
) -> Descriptor:
    """Make an artifact with one blob for `subject` (image-spec manifest.md, "Guidelines for Artifact Usage")."""
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": artifact_type,
        "config": layout.add(b"{}", EMPTY),
        "layers": [layout.add(data, artifact_type)],
    }
    if subject is not None:
        manifest["subject"] = plain(subject)
    if annotations:
        manifest["annotations"] = annotations
    return layout.add_document(manifest)


def odd_image(layout: Layout, config: bytes) -> Descriptor:
    """Make an image with a layer and arbitrary bytes as config."""
    layer = layout.add(compress(layer_tar("odd", 2000), "gzip"), _LAYERS["gzip"])
    return layout.add_document(
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": layout.add(config, CONFIG), "layers": [layer]}
    )


def plain(descriptor: Descriptor) -> Descriptor:
    return {key: descriptor[key] for key in ("mediaType", "digest", "size")}


@dataclass(frozen=True, slots=True)
class CounterBody:
    """A large generated body (ports.Body): 1 MiB pieces that each begin with their number."""

    size_bytes: int
    seed: str = "big"

    @property
    def digest(self) -> str:
        """Compute the digest, in one pass over all bytes."""
        found = hashlib.sha256()
        for piece in self.pieces():
            found.update(piece)
        return f"sha256:{found.hexdigest()}"

    def pieces(self, offset: int = 0) -> Iterator[bytes]:
        filling = counter_bytes(self.seed, (1 << 20) - 8)
        for number in range(offset >> 20, -(-self.size_bytes >> 20)):
            piece = number.to_bytes(8, "big") + filling
            start = max(offset - (number << 20), 0)
            yield piece[start : min(1 << 20, self.size_bytes - (number << 20))]

    @contextlib.contextmanager
    def open(self, offset: int = 0) -> Iterator[PieceReader]:
        yield PieceReader(self.pieces(offset))

    def write_to(self, path: Path) -> str:
        """Write all bytes to a file, for an image in a layout; returns the digest."""
        found = hashlib.sha256()
        with path.open("wb") as file:
            for piece in self.pieces():
                file.write(piece)
                found.update(piece)
        return f"sha256:{found.hexdigest()}"


class PieceReader:
    """Reads from pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        if not self._rest:
            self._rest = next(self._pieces, b"")
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece

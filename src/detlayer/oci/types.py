"""OCI value types: digests, platforms, descriptors, and canonical JSON. No I/O.

Sources: image-spec descriptor.md (descriptor, digest grammar), layer.md (media types), image-index.md (platforms);
SPEC 7.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec

from detlayer.errors import printable

MEDIA_TYPE_LAYER = "application/vnd.oci.image.layer.v1."
MEDIA_TYPE_INDEX = "application/vnd.oci.image.index.v1+json"
MEDIA_TYPE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MEDIA_TYPE_CONFIG = "application/vnd.oci.image.config.v1+json"
MEDIA_TYPE_DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MEDIA_TYPE_DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MEDIA_TYPE_DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
INDEX_TYPES = frozenset((MEDIA_TYPE_INDEX, MEDIA_TYPE_DOCKER_LIST))
MANIFEST_TYPES = frozenset((MEDIA_TYPE_MANIFEST, MEDIA_TYPE_DOCKER_MANIFEST))
CONFIG_TYPES = frozenset((MEDIA_TYPE_CONFIG, MEDIA_TYPE_DOCKER_CONFIG))
_LAYER_TYPES = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)
MAX_DOCUMENT_BYTES = (
    4 << 20
)  # the size of manifests that registries must accept (distribution-spec, "Pushing manifests")
REF_NAME = "org.opencontainers.image.ref.name"
_CONTAINERD_NAME = "io.containerd.image.name"
BASE_NAME = "org.opencontainers.image.base.name"
BASE_DIGEST = "org.opencontainers.image.base.digest"
OCI_LAYOUT_VERSION = "1.0.0"

_SHA256 = re.compile(r"sha256:([0-9a-f]{64})\Z")


class Digest(msgspec.Struct, frozen=True):
    """A sha256 digest; `str()` returns `sha256:HEX`."""

    hex: str

    def __str__(self) -> str:
        return f"sha256:{self.hex}"


def parse_digest(text: str) -> Digest:
    """Parse `sha256:` and 64 lower-case hex digits; raises ValueError."""
    match = _SHA256.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a sha256 digest")
    return Digest(match[1])


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    """Return the digest of bytes."""
    return Digest(hashlib.sha256(data).hexdigest())


class Platform(msgspec.Struct, frozen=True):
    """The platform of an image (image-index.md): `linux/arm64/v8`; `os.version` is for Windows."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""

    def __str__(self) -> str:
        return printable("/".join(filter(None, (self.os, self.architecture, self.variant))))

    def to_document(self) -> dict[str, Any]:
        named = {
            "os": self.os,
            "architecture": self.architecture,
            "variant": self.variant,
            "os.version": self.os_version,
        }
        return {key: value for key, value in named.items() if value}


class Descriptor(msgspec.Struct, frozen=True):
    """Describes a blob: media type, digest, size in bytes, annotations; `urls` are other locations."""

    media_type: str
    digest: Digest
    size_bytes: int
    annotations: dict[str, str] = {}
    platform: Platform | None = None
    artifact_type: str = ""
    urls: tuple[str, ...] = ()

    @property
    def is_index(self) -> bool:
        return self.media_type in INDEX_TYPES

    @property
    def is_manifest(self) -> bool:
        """Whether it is an image manifest (including artifacts), not an index."""
        return self.media_type in MANIFEST_TYPES

    @property
    def is_document(self) -> bool:
        """Whether to parse it as an index or manifest, also if its media type is unspecific."""
        return (
            self.is_index
            or self.is_manifest
            or not self.media_type
            or self.media_type.startswith("application/vnd.docker.distribution.manifest.")
        )

    @property
    def is_config(self) -> bool:
        """Whether it is the config of an image, not of an artifact."""
        return self.media_type in CONFIG_TYPES

    @property
    def is_layer(self) -> bool:
        """Whether it is a tar to unpack; the layers of attestations are not."""
        return self.media_type.startswith(_LAYER_TYPES)

    @property
    def is_foreign(self) -> bool:
        """Whether registries do not store it (nondistributable, or Docker's foreign layers)."""
        return "nondistributable" in self.media_type or "rootfs.foreign" in self.media_type

    @property
    def tag(self) -> str:
        """The image's tag in a layout."""
        return self.annotations.get(REF_NAME, "")

    def is_named(self, tag: str) -> bool:
        """Tell whether a layout has it under a tag, which may follow a repository name."""
        names = [self.annotations.get(name, "") for name in (REF_NAME, _CONTAINERD_NAME)]
        return any(name == tag or name.endswith(":" + tag) for name in names)

    def to_document(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size_bytes,
        }
        if self.annotations:
            document["annotations"] = dict(sorted(self.annotations.items()))
        if self.platform is not None:
            document["platform"] = self.platform.to_document()
        if self.artifact_type:
            document["artifactType"] = self.artifact_type
        if self.urls:
            document["urls"] = list(self.urls)
        return document

    def to_bytes(self) -> bytes:
        return canonical_json(self.to_document())


def canonical_json(document: Any) -> bytes:
    """Encode canonical JSON (SPEC 7.1): keys sorted, no whitespace, UTF-8, no trailing newline."""
    return msgspec.json.encode(document, order="sorted")

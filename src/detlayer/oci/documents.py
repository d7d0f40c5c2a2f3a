"""Parse indexes, manifests and configs from untrusted sources, bounded and validated.

Sources: image-spec image-index.md, manifest.md, config.md; Docker's manifest v2 schema 2. The original bytes are kept,
since encoding them again would change the digest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from detlayer.errors import LayerError, printable
from detlayer.oci.types import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_DOCUMENT_BYTES,
    MEDIA_TYPE_INDEX,
    MEDIA_TYPE_MANIFEST,
    Descriptor,
    Digest,
    Platform,
    digest_of,
    parse_digest,
)

_MAX_DESCRIPTORS = 20_000
_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1"
_Struct = TypeVar("_Struct")


class Document(msgspec.Struct, frozen=True):
    """An index or a manifest: its bytes, and the descriptors in it.

    An index has `children` (manifests and indexes), a manifest has `config` and `layers`. `subject` is the manifest it
    refers to (distribution-spec, "Referrers"); a registry need not have it.
    """

    media_type: str
    data: bytes
    digest: Digest
    children: tuple[Descriptor, ...] = ()
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None
    artifact_type: str = ""
    annotations: dict[str, str] | None = None

    @property
    def is_index(self) -> bool:
        return self.media_type in INDEX_TYPES

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """The descriptors of config and layers, in order, each once.

        For an index, those of other types: they must not be an error (image-index.md, "manifests"), and
        BuildKit lists the layers of its caches like this.
        """
        config = (self.config,) if self.config else ()
        return each_once((*config, *self.layers, *(one for one in self.children if not one.is_document)))

    def descriptor(self, platform: Platform | None = None) -> Descriptor:
        """Return its descriptor for an index."""
        return Descriptor(
            self.media_type, self.digest, len(self.data), platform=platform, artifact_type=self.artifact_type
        )


def each_once(blobs: Iterable[Descriptor]) -> tuple[Descriptor, ...]:
    """Remove duplicates; a blob that is both foreign and regular counts as regular."""
    found: dict[Digest, Descriptor] = {}
    for one in blobs:
        if one.digest not in found or (found[one.digest].is_foreign and not one.is_foreign):
            found[one.digest] = one
    return tuple(found.values())


def parse_document(data: bytes, name: str, media_type: str = "") -> Document:
    """Parse an index or a manifest. `media_type` is the type in its descriptor or header; `name` is for messages.

    Raises LayerError (`document-too-long`, `document-invalid`), also if the document has another media type.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise LayerError(
            "document-too-long",
            f"{printable(name)} has over {MAX_DOCUMENT_BYTES} bytes",
            "do not trust this image; if it is yours, remove large annotations",
        )
    raw = _decode(data, name)
    own = raw.get("mediaType") or ""
    if not isinstance(own, str):
        raise _invalid(name, "has an invalid mediaType: expected a string")
    kind = media_type or own
    if not kind:
        kind = MEDIA_TYPE_INDEX if "manifests" in raw and raw.get("config") is None else MEDIA_TYPE_MANIFEST
    if own and own != kind:
        raise _invalid(name, f"has the media type {printable(own)}; expected {printable(kind)}")
    if kind.startswith(_SCHEMA1):
        raise LayerError(
            "document-schema1",
            f"{printable(name)} is a manifest of Docker's schema 1",
            "push the image again with docker 17.06 or later",
        )
    if kind not in INDEX_TYPES | MANIFEST_TYPES:
        raise _invalid(name, f"is {printable(kind)}, not an index or a manifest")
    document = _index(raw, data, kind, name) if kind in INDEX_TYPES else _manifest(raw, data, kind, name)
    if len(document.children) + len(document.layers) > _MAX_DESCRIPTORS:
        raise _invalid(name, f"lists over {_MAX_DESCRIPTORS} blobs")
    return document


def _index(raw: dict[str, Any], data: bytes, media_type: str, name: str) -> Document:
    if raw.get("layers") is not None or raw.get("config") is not None:
        # CVE-2021-41190: readers would disagree on its kind.
        raise _invalid(name, "is an index with layers")
    index = _convert(raw, _Index, name)
    subject = _descriptor(index.subject, name) if index.subject else None
    return Document(
        media_type,
        data,
        digest_of(data),
        children=tuple(_descriptor(one, name) for one in index.manifests or ()),
        subject=subject,
        artifact_type=index.artifactType or "",
        annotations=index.annotations,
    )


def _manifest(raw: dict[str, Any], data: bytes, media_type: str, name: str) -> Document:
    if raw.get("manifests") is not None:
        raise _invalid(name, "is a manifest with manifests")
    manifest = _convert(raw, _Manifest, name)
    return Document(
        media_type,
        data,
        digest_of(data),
        config=_descriptor(manifest.config, name),
        layers=tuple(_descriptor(one, name) for one in manifest.layers or ()),
        subject=_descriptor(manifest.subject, name) if manifest.subject else None,
        # Without artifactType, the type of the config is used (distribution-spec, "Listing Referrers").
        artifact_type=manifest.artifactType or "",
        annotations=manifest.annotations,
    )


class ConfigFacts(msgspec.Struct, frozen=True):
    """The platform and the diff_ids in an image's config."""

    platform: Platform | None
    diff_ids: tuple[str, ...]


def parse_config(data: bytes, name: str) -> ConfigFacts:
    """Parse the config of an image; raises LayerError."""
    raw = _decode(data, name)
    config = _convert(raw, _Config, name)
    platform = None
    if config.os and config.architecture:
        version = raw.get("os.version")
        platform = Platform(config.os, config.architecture, config.variant, version if isinstance(version, str) else "")
    return ConfigFacts(platform, tuple(config.rootfs.diff_ids or ()) if config.rootfs else ())


def parse_descriptor(document: Any, name: str) -> Descriptor:
    """Parse one descriptor; raises LayerError."""
    if not isinstance(document, dict):
        raise _invalid(name, "is not a descriptor")
    return _descriptor(_convert(document, _Descriptor, name), name)


def decode_object(data: bytes, name: str) -> dict[str, Any]:
    """Parse a JSON object; raises LayerError."""
    return _decode(data, name)


class _Descriptor(msgspec.Struct):
    digest: str
    size: int
    mediaType: str = ""
    annotations: dict[str, str] | None = None
    platform: dict[str, Any] | None = None
    artifactType: str | None = None
    urls: list[str] | None = None


# Go encodes an empty list as null: umoci does so in a new index, others in artifacts without layers.


class _Index(msgspec.Struct):
    manifests: list[_Descriptor] | None
    subject: _Descriptor | None = None
    artifactType: str | None = None
    annotations: dict[str, str] | None = None


class _Manifest(msgspec.Struct):
    config: _Descriptor
    layers: list[_Descriptor] | None = None
    subject: _Descriptor | None = None
    artifactType: str | None = None
    annotations: dict[str, str] | None = None


class _RootFs(msgspec.Struct):
    diff_ids: list[str] | None = None


class _Config(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str = ""
    rootfs: _RootFs | None = None


def _decode(data: bytes, name: str) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        raise _invalid(name, f"is not valid JSON: {reason}") from error
    if not isinstance(document, dict):
        raise _invalid(name, "is not a JSON object")
    return document


def _convert(document: dict[str, Any], kind: type[_Struct], name: str) -> _Struct:
    try:
        return msgspec.convert(document, kind)
    except msgspec.MsgspecError as error:
        raise _invalid(name, f"is invalid: {error}") from error


def _descriptor(raw: _Descriptor, name: str) -> Descriptor:
    try:
        digest = parse_digest(raw.digest)
    except ValueError as error:
        raise _invalid(name, f"has an invalid sha256 digest {printable(raw.digest)}") from error
    if not 0 <= raw.size < 1 << 63:
        raise _invalid(name, f"has an invalid size {raw.size} for {digest}")
    return Descriptor(
        raw.mediaType,
        digest,
        raw.size,
        raw.annotations or {},
        _platform(raw.platform or {}),
        raw.artifactType or "",
        tuple(raw.urls or ()),
    )


def _platform(document: dict[str, Any]) -> Platform | None:
    texts = [document.get(key) for key in ("os", "architecture", "variant", "os.version")]
    parts = [text if isinstance(text, str) else "" for text in texts]
    return Platform(*parts) if parts[0] or parts[1] else None


def _invalid(name: str, what: str) -> LayerError:
    return LayerError("document-invalid", f"{printable(name)} {printable(what)}", "build or pull the image again")


class Wanted(msgspec.Struct, frozen=True):
    """An image to push: its documents, children before parents and the root last, and its blobs, each once."""

    documents: tuple[Document, ...]

    @property
    def root(self) -> Document:
        return self.documents[-1]

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        return each_once(blob for one in self.documents for blob in one.blobs)

    @property
    def by_digest(self) -> dict[Digest, Document]:
        return {one.digest: one for one in self.documents}

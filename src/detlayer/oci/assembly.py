"""Assemble the documents of an image: config, manifest, index. Base layers stay unchanged, byte for byte."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from detlayer.errors import LayerError
from detlayer.oci.documents import Document, decode_object, parse_config, parse_document
from detlayer.oci.media_types import CONFIGS, INDEXES, MANIFESTS, Format, layer_type
from detlayer.oci.runtime import Runtime
from detlayer.oci.types import Descriptor, Digest, Platform, canonical_json, digest_of, parse_digest

DEFAULT_CREATED = 946684800  # 2000-01-01T00:00:00Z, as for files (SPEC 4.1)

# Fields about the container that the base was built in; they do not describe this image (Docker image-spec 1.2).
_OF_ANOTHER_BUILD = frozenset(
    ("container", "container_config", "docker_version", "id", "parent", "moby.buildkit.cache.v0")
)


class Part(msgspec.Struct, frozen=True):
    """A layer of an image. `made_by` goes into the history; empty for a base layer, which has its own entry."""

    descriptor: Descriptor
    diff_id: Digest
    made_by: str = ""


class Base(msgspec.Struct, frozen=True):
    """The base of an image for one platform: its unchanged config, and its layers."""

    platform: Platform
    config: Mapping[str, Any] = {}
    parts: tuple[Part, ...] = ()


def scratch(platform: Platform) -> Base:
    """Return an empty base."""
    return Base(platform)


def parse_base(manifest: Document, config: bytes) -> Base:
    """Parse a base's manifest and config; raises LayerError if they contradict each other."""
    name = str(manifest.digest)
    facts = parse_config(config, name)
    if facts.platform is None:
        raise _no_base(name, "has no platform")
    if len(facts.diff_ids) != len(manifest.layers):
        raise _no_base(name, f"has {len(manifest.layers)} layers but {len(facts.diff_ids)} diff_ids")
    try:
        diff_ids = [parse_digest(one) for one in facts.diff_ids]
    except ValueError as error:
        raise _no_base(name, str(error)) from error
    parts = tuple(Part(layer, diff_id) for layer, diff_id in zip(manifest.layers, diff_ids, strict=True))
    return Base(facts.platform, decode_object(config, name), parts)


def runs_on(base: Base, wanted: Platform) -> Platform:
    """Return the platform of an image: the requested one, since added files may need more than a lesser variant."""
    return replace(base.platform, variant=wanted.variant or base.platform.variant)


def configure(
    base: Base,
    layers: Sequence[Part],
    runtime: Runtime,
    *,
    platform: Platform | None = None,
    created: int = DEFAULT_CREATED,
) -> bytes:
    """Return the config of an image (image-spec config.md).

    `created` is in seconds since 1970. Unknown fields of the base's config are kept.
    """
    time = datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    config = {key: value for key, value in base.config.items() if key not in _OF_ANOTHER_BUILD}
    own = config.get("config")
    parts = (*base.parts, *layers)
    config |= {
        **runs_on(base, platform or base.platform).to_document(),
        "created": time,
        "config": runtime.apply(own if isinstance(own, dict) else {}),
        "rootfs": {"type": "layers", "diff_ids": [str(one.diff_id) for one in parts]},
        "history": [
            *_history(base),
            *({"created": time, "created_by": one.made_by or "detlayer"} for one in layers),
        ],
    }
    return canonical_json(config)


def _history(base: Base) -> list[dict[str, Any]]:
    """Return the history of a base, with one entry per layer, as readers expect, or empty."""
    found = base.config.get("history")
    entries = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    missing = len(base.parts) - sum(not one.get("empty_layer") for one in entries)
    if missing < 0:
        return [{"created_by": "a layer of the base"} for _ in base.parts]
    return [*entries, *({"created_by": "a layer of the base"} for _ in range(missing))]


def assemble(
    config: bytes,
    parts: Iterable[Part],
    *,
    format: Format = "oci",
    annotations: Mapping[str, str] | None = None,
) -> Document:
    """Return the manifest of an image (image-spec manifest.md, or Docker's).

    `parts` are all layers, those of the base first. Annotations and platforms of their descriptors are dropped: they
    describe how a layer was built. Docker's format has no annotations. Raises ConfigError for a layer without a media
    type in the format.
    """
    layers = [
        Descriptor(
            layer_type(one.descriptor.media_type, format),
            one.descriptor.digest,
            one.descriptor.size_bytes,
            urls=one.descriptor.urls,
        ).to_document()
        for one in parts
    ]
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFESTS[format],
        "config": Descriptor(CONFIGS[format], digest_of(config), len(config)).to_document(),
        "layers": layers,
    }
    return _document(document, annotations, format)


def index(
    manifests: Sequence[tuple[Document, Platform]],
    *,
    format: Format = "oci",
    annotations: Mapping[str, str] | None = None,
) -> Document:
    """Return the index of manifests for several platforms, in the given order."""
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": INDEXES[format],
        "manifests": [one.descriptor(platform).to_document() for one, platform in manifests],
    }
    return _document(document, annotations, format)


def _document(document: dict[str, Any], annotations: Mapping[str, str] | None, format: Format) -> Document:
    if annotations and format == "oci":
        document["annotations"] = dict(annotations)
    return parse_document(canonical_json(document), "the new manifest")


def _no_base(name: str, what: str) -> LayerError:
    return LayerError(
        "base-invalid", f"the base {name} {what}", "pull or build the base image again, or use another one"
    )

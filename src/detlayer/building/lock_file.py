"""Read and write detlayer.lock: the bases and layers of a build. Does no I/O.

It pins bases by digest, for each platform, and records layers, so that later builds can be compared with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from detlayer.errors import ConfigError, IntegrityError, printable
from detlayer.oci.types import Digest, parse_digest

FILE_NAME = "detlayer.lock"
FORMAT = "detlayer-lock/1"

ANY_PLATFORM = "any"


class LockedLayer(msgspec.Struct, frozen=True):
    """A recorded layer. `digest` is comparable only within one codec class."""

    key: str
    diff_id: str
    digest: str
    codec_class: str


class LockedBase(msgspec.Struct, frozen=True):
    """The digest of a base reference, and its manifest for each platform."""

    digest: Digest
    platforms: Mapping[str, Digest] = {}


class Lock(msgspec.Struct, frozen=True):
    """Bases by reference; layers by image, name and platform (`any` if common to all platforms)."""

    bases: Mapping[str, LockedBase] = {}
    layers: Mapping[str, Mapping[str, Mapping[str, LockedLayer]]] = {}

    def base(self, reference: str) -> LockedBase:
        """Look a base up; raises ConfigError."""
        found = self.bases.get(reference)
        if found is None:
            raise ConfigError(
                "lock-incomplete", f"{FILE_NAME} has no base {printable(reference)}", "run `detlayer lock` to update it"
            )
        return found

    def manifest(self, reference: str, platform: str) -> Digest:
        """Look a base up for a platform; raises ConfigError."""
        found = self.base(reference).platforms.get(platform)
        if found is None:
            raise ConfigError(
                "lock-incomplete",
                f"{FILE_NAME} has no {printable(reference)} for {platform}",
                "run `detlayer lock` to update it",
            )
        return found

    def layer(self, image: str, layer: str, platform: str) -> LockedLayer:
        """Look a layer up; raises ConfigError."""
        found = self.layers.get(image, {}).get(layer, {})
        entry = found.get(platform) or found.get(ANY_PLATFORM)
        if entry is None:
            raise ConfigError(
                "lock-incomplete",
                f"{FILE_NAME} has no layer {printable(layer)} of image {image} for {platform}",
                "run `detlayer lock` to update it",
            )
        return entry

    def to_text(self) -> str:
        import json

        document = {
            "format": FORMAT,
            "bases": {
                name: {
                    "digest": str(base.digest),
                    "platforms": {platform: str(digest) for platform, digest in base.platforms.items()},
                }
                for name, base in self.bases.items()
            },
            "images": {
                image: {
                    layer: {platform: _layer_document(one) for platform, one in platforms.items()}
                    for layer, platforms in layers.items()
                }
                for image, layers in self.layers.items()
            },
        }
        return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def differences(locked: LockedLayer, made: LockedLayer) -> list[tuple[str, str, str]]:
    """Return the differences between two layers as (name, locked, made).

    With different codec classes, digests are expected to differ (SPEC 6.3), so only diff_id and key are compared.
    """
    names = ["diff_id", "key"] if made.codec_class != locked.codec_class else ["digest", "diff_id", "key"]
    return [
        (name, getattr(locked, name), getattr(made, name))
        for name in names
        if getattr(locked, name) != getattr(made, name)
    ]


def check(locked: LockedLayer, made: LockedLayer, name: str) -> None:
    """Check a layer against the lock; raises IntegrityError."""
    found = differences(locked, made)
    if found:
        what, before, now = found[0]
        raise IntegrityError(
            "lock-differs",
            f"{name} differs from {FILE_NAME}: {what} {before} → {now}",
            "if the change is intended, run `detlayer lock`",
        )


class _Base(msgspec.Struct, forbid_unknown_fields=True):
    digest: str
    platforms: dict[str, str]


class _Layer(msgspec.Struct, forbid_unknown_fields=True, rename={"diff_id": "diffId", "codec_class": "codecClass"}):
    key: str
    diff_id: str
    digest: str
    codec_class: str


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    bases: dict[str, _Base]
    images: dict[str, dict[str, dict[str, _Layer]]]


def parse_lock(data: bytes, name: str) -> Lock:
    """Parse a lock; raises ConfigError."""
    try:
        read = msgspec.json.decode(data, type=_Document)
        if read.format != FORMAT:
            raise ValueError(f"expected format {FORMAT!r}, found {read.format!r}")
        bases = {
            key: LockedBase(
                parse_digest(base.digest),
                {platform: parse_digest(digest) for platform, digest in base.platforms.items()},
            )
            for key, base in read.bases.items()
        }
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ConfigError(
            "lock-invalid",
            f"invalid lock {printable(name)}: {printable(str(error))}",
            "run `detlayer lock` to update it",
            file=name,
        ) from error
    layers = {
        image: {
            layer: {
                platform: LockedLayer(one.key, one.diff_id, one.digest, one.codec_class)
                for platform, one in platforms.items()
            }
            for layer, platforms in named.items()
        }
        for image, named in read.images.items()
    }
    return Lock(bases, layers)


def _layer_document(one: LockedLayer) -> dict[str, Any]:
    return {"key": one.key, "diffId": one.diff_id, "digest": one.digest, "codecClass": one.codec_class}

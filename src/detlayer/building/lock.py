"""`detlayer.lock`: which bases a build stood on, and what its layers were. A document: text in, values out.

It pins bases by digest, for each platform, and holds layers against what they were when it was written.
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
    """What a layer was. `digest` holds only where the codec class is the same."""

    key: str
    diff_id: str
    digest: str
    codec_class: str


class LockedBase(msgspec.Struct, frozen=True):
    """What a reference named, and which manifest each platform got."""

    digest: Digest
    platforms: Mapping[str, Digest] = {}


class Lock(msgspec.Struct, frozen=True):
    """Bases by reference; layers by image, by name, and by platform (`any` for one that is for all)."""

    bases: Mapping[str, LockedBase] = {}
    layers: Mapping[str, Mapping[str, Mapping[str, LockedLayer]]] = {}

    def base(self, reference: str) -> LockedBase:
        """Look a base up; raises ConfigError."""
        found = self.bases.get(reference)
        if found is None:
            raise ConfigError(
                "lock-incomplete", f"{FILE_NAME} has no base {printable(reference)}", "write it anew: `detlayer lock`"
            )
        return found

    def manifest(self, reference: str, platform: str) -> Digest:
        """Look a base up for a platform; raises ConfigError."""
        found = self.base(reference).platforms.get(platform)
        if found is None:
            raise ConfigError(
                "lock-incomplete",
                f"{FILE_NAME} has no {printable(reference)} for {platform}",
                "write it anew: `detlayer lock`",
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
                "write it anew: `detlayer lock`",
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
    """Say in what a layer is not what it was: name, then, now.

    With another codec class the digest is another by rights (SPEC 6.3): the diff_id is what counts then.
    """
    names = ["diff_id", "key"] if made.codec_class != locked.codec_class else ["digest", "diff_id", "key"]
    return [
        (name, getattr(locked, name), getattr(made, name))
        for name in names
        if getattr(locked, name) != getattr(made, name)
    ]


def check(locked: LockedLayer, made: LockedLayer, name: str) -> None:
    """Hold a layer against the lock; raises IntegrityError."""
    found = differences(locked, made)
    if found:
        what, before, now = found[0]
        raise IntegrityError(
            "lock-differs",
            f"{name} is not what {FILE_NAME} says: {what} {before} → {now}",
            "`detlayer lock` writes it anew, if the change is meant",
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
    """Read a lock; raises ConfigError."""
    try:
        read = msgspec.json.decode(data, type=_Document)
        if read.format != FORMAT:
            raise ValueError(f"its format is {read.format!r}, not {FORMAT!r}")
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
            f"{printable(name)} is no lock: {printable(str(error))}",
            "write it anew: `detlayer lock`",
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

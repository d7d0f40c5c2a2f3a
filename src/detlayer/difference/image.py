"""Images of two OCI layouts: manifests paired by platform, their layers in order, their configs field by field."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any, NamedTuple

from detlayer.contents.text import token_trap
from detlayer.difference.report import Compared, DiffReport, Verdict
from detlayer.errors import LayerError, printable
from detlayer.finding import Change
from detlayer.images import Blob, Image, read_images

DiffLayers = Callable[[tuple[str, str], tuple[Blob, Blob]], DiffReport]
_PREFIX = "oci:"
_RANKS: tuple[Verdict, ...] = ("same", "compressor", "form", "config", "entries")
# What follows from the layers and the config says nothing of its own.
_FOLLOWS = ("config.digest", "config.size", "layers", "rootfs.diff_ids")


class Named(NamedTuple):
    """A layout as it was named."""

    directory: str
    tag: str


def name_layout(text: str) -> Named | None:
    """Read `oci:DIR[:TAG]`; None if it is something else."""
    if not text.startswith(_PREFIX):
        return None
    rest = text.removeprefix(_PREFIX)
    directory, colon, tag = rest.rpartition(":")
    if not colon or os.path.isdir(rest):
        return Named(rest, "")
    return Named(directory, tag)


def diff_images(names: tuple[str, str], layouts: tuple[Named, Named], diff_layers: DiffLayers) -> DiffReport:
    """Compare the images of two layouts; layers of equal digest are not read."""
    images = [_by_platform(name, read_images(*named)) for name, named in zip(names, layouts, strict=True)]
    old, new = images
    if len(old) == len(new) == 1:  # one each: what differs in their platforms shows in their configs
        new = dict(zip(old, new.values(), strict=True))
    config: list[Change] = []
    layers: list[DiffReport] = []
    for platform in sorted(old.keys() | new.keys()):
        one, other = old.get(platform), new.get(platform)
        where = f"{platform}: " if len(old) > 1 or len(new) > 1 else ""
        if one is None or other is None:
            config.append(Change("content", "platform", *(platform if image else "" for image in (one, other))))
            continue
        if one.digest == other.digest:
            continue
        for part, was, now in (("manifest", one.manifest, other.manifest), ("config", one.config, other.config)):
            config += (change._replace(field=f"{where}{part} {change.field}") for change in _changes(was, now))
        for number, pair in enumerate(zip_longest(one.layers, other.layers), 1):
            config += _sole_layer(f"{where}layer {number}", pair)
            if pair[0] is not None and pair[1] is not None and pair[0].digest != pair[1].digest:
                both = [f"{name}, {where}layer {number}" for name in names]
                layers.append(diff_layers((both[0], both[1]), (pair[0], pair[1])))
    ranks = [_RANKS.index(layer.verdict) for layer in layers]
    if config:
        ranks.append(_RANKS.index("config"))
    left, right = (
        Compared(name, "image", digest=str(next(iter(found.values())).digest) if len(found) == 1 else "")
        for name, found in zip(names, images, strict=True)
    )
    return DiffReport(
        _RANKS[max(ranks, default=0)],
        left,
        right,
        config=tuple(config),
        layers=tuple(layer for layer in layers if not layer.same),
    )


def _by_platform(name: str, images: list[Image]) -> dict[str, Image]:
    found: dict[str, Image] = {}
    for image in images:
        platform = image.platform or "no platform"
        if platform in found and found[platform].digest != image.digest:
            raise LayerError(
                "layout-image",
                f"{printable(name)} has several images for {platform}",
                "name one by its tag: oci:DIR:TAG",
            )
        found[platform] = image
    return found


def _sole_layer(what: str, pair: tuple[Blob | None, Blob | None]) -> Iterator[Change]:
    if pair[0] is None or pair[1] is None:
        yield Change("content", what, *(f"{blob.digest}, {blob.size_bytes} bytes" if blob else "" for blob in pair))
    elif pair[0].media_type != pair[1].media_type:
        yield Change("compressor-class", f"{what}, media type", pair[0].media_type, pair[1].media_type)


def _changes(a: dict[str, Any], b: dict[str, Any]) -> Iterator[Change]:
    old, new = dict(_flat(a, "")), dict(_flat(b, ""))
    for key in sorted(old.keys() | new.keys()):
        left, right = old.get(key, ""), new.get(key, "")
        if left != right and not key.startswith(_FOLLOWS):
            yield Change(token_trap(left, right), key, printable(left[:200]), printable(right[:200]))


def _flat(value: object, key: str) -> Iterator[tuple[str, str]]:
    """Every leaf of a JSON document under its path."""
    stack = [(key, value)]
    while stack:
        at, here = stack.pop()
        if isinstance(here, dict) and here:
            stack += ((f"{at}.{name}" if at else str(name), one) for name, one in here.items())
        elif isinstance(here, list) and here:
            stack += ((f"{at}[{number}]", one) for number, one in enumerate(here))
        else:
            yield at, here if isinstance(here, str) else repr(here)

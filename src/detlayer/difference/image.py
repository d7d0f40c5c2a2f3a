"""Compare images of two OCI layouts: manifests by platform, layers in order, configs field by field."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import zip_longest
from typing import Any, NamedTuple

from detlayer.checks.content_diff.text import token_trap
from detlayer.checks.findings import Change
from detlayer.difference.report import Compared, DiffReport, Verdict
from detlayer.errors import LayerError, printable
from detlayer.images.files import OpenFile
from detlayer.images.layout import Layout, LayoutImage
from detlayer.oci.documents import decode_object
from detlayer.oci.types import Descriptor, Digest

_RANKS: tuple[Verdict, ...] = ("same", "compressor", "form", "config", "entries")
_MAX_IMAGES = 1000
# Skipped where layers and config are compared: these fields follow from them.
_FOLLOWS = ("layers", "rootfs.diff_ids")
_OF_CONFIG = ("config.digest", "config.size")


class ImageSide(NamedTuple):
    """The images of a layout that have a tag, or all: name in messages, tag, and layout."""

    name: str
    tag: str
    layout: Layout


class NamedLayer(NamedTuple):
    """A layer of an image: name in messages, how to open it, and expected digest."""

    name: str
    opened: Callable[[], OpenFile]
    digest: Digest


DiffLayers = Callable[[NamedLayer, NamedLayer], DiffReport]


def diff_images(a: ImageSide, b: ImageSide, diff_layers: DiffLayers) -> DiffReport:
    """Compare the images of two layouts; layers with equal digests are not read."""
    images = [_by_platform(side.name, _read_images(side)) for side in (a, b)]
    old, new = images
    if len(old) == len(new) == 1:  # one image each: a different platform shows in the configs
        new = dict(zip(old, new.values(), strict=True))
    config: list[Change] = []
    layers: list[DiffReport] = []
    for platform in sorted(old.keys() | new.keys()):
        one, other = old.get(platform), new.get(platform)
        where = f"{platform}: " if len(old) > 1 or len(new) > 1 else ""
        if one is None or other is None:
            config.append(Change("content", "platform", *(platform if image else "" for image in (one, other))))
            continue
        if one.descriptor.digest == other.descriptor.digest:
            continue
        settings = _settings(one), _settings(other)
        are_read = one.config_data is not None and other.config_data is not None
        for part, follows, was, now in (
            ("manifest", _FOLLOWS + _OF_CONFIG * are_read, _manifest(one), _manifest(other)),
            ("config", _FOLLOWS, *settings),
        ):
            config += (change._replace(field=f"{where}{part} {change.field}") for change in _changes(was, now, follows))
        for number, pair in enumerate(zip_longest(one.layers, other.layers), 1):
            config += _sole_layer(f"{where}layer {number}", pair)
            if pair[0] is not None and pair[1] is not None and pair[0].digest != pair[1].digest:
                both = (
                    NamedLayer(
                        f"{side.name}, {where}layer {number}", partial(side.layout.open, blob.digest), blob.digest
                    )
                    for side, blob in ((a, pair[0]), (b, pair[1]))
                )
                layers.append(diff_layers(*both))
    ranks = [_RANKS.index(layer.verdict) for layer in layers]
    if config:
        ranks.append(_RANKS.index("config"))
    left, right = (
        Compared(
            side.name, "image", digest=str(next(iter(found.values())).descriptor.digest) if len(found) == 1 else ""
        )
        for side, found in zip((a, b), images, strict=True)
    )
    return DiffReport(
        _RANKS[max(ranks, default=0)],
        left,
        right,
        config=tuple(config),
        layers=tuple(layer for layer in layers if not layer.same),
    )


def _read_images(side: ImageSide) -> Iterator[LayoutImage]:
    manifests = side.layout.manifests()
    wanted = [one for one in manifests if not side.tag or one.is_named(side.tag)]
    if not wanted:
        what = f"no image with the tag {printable(side.tag)}" if side.tag else "no image"
        tags = sorted({one.tag for one in manifests} - {""})
        hint = f"available tags: {', '.join(map(printable, tags[:10]))}" if tags else "its index.json lists no manifest"
        raise LayerError("layout-image", f"{printable(side.name)} has {what}", hint)
    for number, found in enumerate(side.layout.images(wanted)):
        if number >= _MAX_IMAGES:
            what = f"{printable(side.name)} has over {_MAX_IMAGES} images"
            raise LayerError("layout-image", what, "select one by tag: oci:DIR:TAG")
        if isinstance(found, Descriptor):
            what = f"{found.digest} is neither an index nor an image manifest"
            raise LayerError("layout-invalid", f"{printable(side.name)}: {what}", "select an image by tag: oci:DIR:TAG")
        yield found


def _manifest(image: LayoutImage) -> dict[str, Any]:
    return decode_object(image.manifest.data, str(image.manifest.digest))


def _settings(image: LayoutImage) -> dict[str, Any]:
    """Read the config of any media type; empty if it is not JSON."""
    return {} if image.config_data is None else decode_object(image.config_data, str(image.config.digest))


def _by_platform(name: str, images: Iterator[LayoutImage]) -> dict[str, LayoutImage]:
    found: dict[str, LayoutImage] = {}
    for image in images:
        platform = str(image.platform() or "no platform")
        if platform in found and found[platform].descriptor.digest != image.descriptor.digest:
            raise LayerError(
                "layout-image",
                f"{printable(name)} has several images for {platform}",
                "select one by tag: oci:DIR:TAG",
            )
        found[platform] = image
    return found


def _sole_layer(what: str, pair: tuple[Descriptor | None, Descriptor | None]) -> Iterator[Change]:
    if pair[0] is None or pair[1] is None:
        yield Change("content", what, *(f"{blob.digest}, {blob.size_bytes} bytes" if blob else "" for blob in pair))
    elif pair[0].media_type != pair[1].media_type:
        yield Change("compressor-class", f"{what}, media type", pair[0].media_type, pair[1].media_type)


def _changes(a: dict[str, Any], b: dict[str, Any], follows: tuple[str, ...]) -> Iterator[Change]:
    old, new = dict(_flat(a, "")), dict(_flat(b, ""))
    for key in sorted(old.keys() | new.keys()):
        left, right = old.get(key, ""), new.get(key, "")
        if left != right and not key.startswith(follows):
            yield Change(token_trap(left, right), key, printable(left[:200]), printable(right[:200]))


def _flat(value: object, key: str) -> Iterator[tuple[str, str]]:
    """Yield every leaf of a JSON document with its path."""
    stack = [(key, value)]
    while stack:
        at, here = stack.pop()
        if isinstance(here, dict) and here:
            stack += ((f"{at}.{name}" if at else str(name), one) for name, one in here.items())
        elif isinstance(here, list) and here:
            stack += ((f"{at}[{number}]", one) for number, one in enumerate(here))
        else:
            yield at, here if isinstance(here, str) else repr(here)

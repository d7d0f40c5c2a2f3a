"""The step that packs: a layer's settings to a blob in the store, and the results that others go by."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from detlayer.building.desk import Desk
from detlayer.config import LayerSettings
from detlayer.config.settings import beside
from detlayer.errors import TreeError
from detlayer.graph import Call
from detlayer.image import Part
from detlayer.layer import Layer
from detlayer.oci import Descriptor, parse_digest
from detlayer.packing import pack, parse_destination, parse_source
from detlayer.ports import Reporter
from detlayer.tree import Selection, Source


class Watch:
    """A reporter that ends a pack when the run ends, and hands warnings on."""

    def __init__(self, call: Call, warn: Callable[[str, str], None]) -> None:
        self._call = call
        self._warn = warn

    def progress(self, entries: int, tar_bytes: int) -> None:
        self._call.check()

    def warning(self, code: str, message: str) -> None:
        self._warn(code, message)


def sources_of(layer: LayerSettings) -> list[Source]:
    """Name the sources of a layer on disk; raises ConfigError."""
    return [_source(one, layer) for one in layer.sources]


def _source(text: str, layer: LayerSettings) -> Source:
    path, colon, destination = text.rpartition(":")
    if not colon:
        path, destination = text, f"{layer.destination}/"  # a file goes into it
    return parse_source(f"{beside(layer.directory, path)}:{destination}")


def selection_of(layer: LayerSettings) -> Selection:
    """Say what is taken of the sources; raises ConfigError."""
    return Selection(
        hardlinks=layer.hardlinks,
        special=layer.special,
        retime_pyc=layer.retime_pyc,
        whiteouts=tuple(map(parse_destination, layer.whiteouts)),
        opaques=tuple(map(parse_destination, layer.opaques)),
        allowed_parents=frozenset(map(parse_destination, layer.allow_parents)),
    )


def pack_layer(layer: LayerSettings, desk: Desk, *, jobs: int, reporter: Reporter) -> dict[str, str]:
    """Pack a layer into the store, and say what it is; raises what `pack` raises, and TreeError if it is empty."""
    made = pack(
        sources_of(layer),
        oci_layout=os.path.join(desk.store.directory, "oci"),
        compression=layer.codec,
        profile=layer.profile(),
        selection=selection_of(layer),
        exclude=layer.exclude,
        ignore_files=[beside(layer.directory, one) for one in layer.ignore_files],
        use_ignore_file=layer.use_ignore_file,
        jobs=jobs,
        reporter=reporter,
    )
    check_filled(layer, made)
    desk.store.blobs.pin(made.digest)
    return values_of(made)


def check_filled(layer: LayerSettings, made: Layer) -> None:
    """Refuse a layer without a file, which is a mistake more often than not; raises TreeError."""
    if not made.files and not layer.allow_empty and not layer.whiteouts and not layer.opaques:
        raise TreeError(
            "layer-empty",
            f"layer {layer.name} has no file in it: {', '.join(layer.sources)}",
            "is it built, and not excluded? else set allow-empty = true",
        )


def values_of(made: Layer) -> dict[str, str]:
    """Say what a layer is, as results of a step."""
    return {
        "digest": str(made.digest),
        "size": str(made.size_bytes),
        "media-type": made.media_type,
        "diff-id": str(made.diff_id),
        "key": made.key,
        "codec-class": made.codec_class,
    }


def part_of(values: Mapping[str, str], made_by: str) -> Part:
    """Read such results back as a part of an image."""
    descriptor = Descriptor(values["media-type"], parse_digest(values["digest"]), int(values["size"]))
    return Part(descriptor, parse_digest(values["diff-id"]), made_by)

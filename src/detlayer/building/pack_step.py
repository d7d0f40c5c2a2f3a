"""The step that packs a layer into the store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

from detlayer.building.context import BuildContext
from detlayer.building.graph import Call, Reason
from detlayer.building.results import PackedLayer
from detlayer.building.settings import LayerSettings
from detlayer.building.settings.image import beside
from detlayer.errors import ConfigError, OutputError, TreeError, printable
from detlayer.layer.entry import Entry
from detlayer.layer.writer import Layer
from detlayer.packing.cached_pack import CachedPack, Lookup
from detlayer.packing.explanation import Explanation
from detlayer.packing.options import PackOptions
from detlayer.packing.pack_input import PackInput
from detlayer.packing.packer import codec_warnings
from detlayer.packing.sources import parse_destination, parse_source, resolve
from detlayer.tree import Selection, Source, takes

Warn = Callable[[str, str], None]


class _PackReporter:
    """Stops a pack when the run is stopped, and collects warnings until the layer is complete."""

    def __init__(self, call: Call, progress: Callable[[int], None] | None) -> None:
        self._call = call
        self._progress = progress
        self.warnings: list[tuple[str, str]] = []

    def progress(self, entries: int, tar_bytes: int) -> None:
        self._call.check()
        if self._progress is not None:
            self._progress(tar_bytes)

    def warning(self, code: str, message: str) -> None:
        self.warnings.append((code, message))


class Packer:
    """Packs one layer in one run: `find` looks it up in the store; `pack` makes it if it is not found."""

    def __init__(
        self,
        layer: LayerSettings,
        context: BuildContext,
        *,
        jobs: int,
        warn: Warn,
        outputs: Sequence[tuple[str, bool]] = (),
        is_dry: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._layer = layer
        self._context = context
        self._jobs = jobs
        self._warn = warn
        self._outputs = outputs
        self._is_dry = is_dry
        self._progress = progress
        self._pending: tuple[CachedPack, Lookup] | None = None

    def find(self, call: Call) -> PackedLayer | tuple[Reason, ...]:
        """Look up the layer for the current files, reading only changed ones; raises what `pack` raises."""
        cached, lookup = self._pending = self._look_up()
        if lookup.layer is not None:
            self._done(lookup.layer, lookup.warnings)
            return _result(lookup.layer)
        if self._is_dry:
            self._explain_files(cached, lookup, call)
        return (Reason("outside", lookup.explanation.reason),)

    def _look_up(self) -> tuple[CachedPack, Lookup]:
        layer = self._layer
        options = PackOptions(
            exclude=layer.exclude,
            ignore_files=[beside(layer.directory, one) for one in layer.ignore_files],
            use_ignore_file=layer.use_ignore_file,
        )
        sources = resolve([_source(one, layer) for one in layer.sources], options)
        self._check_outside(sources)
        source = PackInput(sources, layer.profile(), self._selection())
        cached = CachedPack(self._context.store, layer.codec, source, jobs=self._jobs)
        return cached, cached.find()

    def _explain_files(self, cached: CachedPack, lookup: Lookup, call: Call) -> None:
        """Report changed files and the total size, for a dry run."""

        def count(entry: Entry) -> None:
            call.check()
            call.add("bytes", entry.size_bytes)

        call.reasons += _examples(cached.explain_files(lookup, count))

    def pack(self, call: Call) -> PackedLayer:
        """Pack the layer; raises what `packing.packer.pack` raises, and TreeError if it is empty."""
        cached, lookup = self._pending or self._look_up()
        reporter = _PackReporter(call, self._progress)
        packed = cached.pack(lookup, (), reporter, check=self._check)
        made, explanation = packed.layer, packed.explanation
        self._done(made, reporter.warnings)
        call.facts["bytes"] = made.size_bytes
        call.reasons += _examples(explanation)
        call.facts["chunks_copied"] = explanation.copied
        call.facts["chunks_compressed"] = explanation.compressed
        if not packed.is_kept and not self._context.store.blobs.is_intact(made.digest):
            raise OutputError(
                "cache-full",
                f"can't store layer {self._layer.name} in {printable(self._context.store.directory)}",
                "free some space, or use another --cache-dir",
            )
        return _result(made)

    def _selection(self) -> Selection:
        layer = self._layer
        return Selection(
            hardlinks=layer.hardlinks,
            special=layer.special,
            retime_pyc=layer.retime_pyc,
            whiteouts=tuple(map(parse_destination, layer.whiteouts)),
            opaques=tuple(map(parse_destination, layer.opaques)),
            allowed_parents=frozenset(map(parse_destination, layer.allow_parents)),
        )

    def _check(self, made: Layer) -> None:
        """Reject a layer without files, which is usually a mistake."""
        layer = self._layer
        if not made.files and not layer.allow_empty and not layer.whiteouts and not layer.opaques:
            raise TreeError(
                "layer-empty",
                f"layer {layer.name} contains no files: {', '.join(map(printable, layer.sources))}",
                "check that the files are built and not excluded, or set allow-empty = true",
            )

    def _done(self, made: Layer, warnings: Iterable[tuple[str, str]]) -> None:
        self._context.packed(made.digest)
        for code, message in (*warnings, *codec_warnings(made)):
            self._warn(code, message)

    def _check_outside(self, sources: Sequence[Source]) -> None:
        """Reject sources that contain an output of the build or the cache."""
        store = self._context.store.directory
        for path, is_dir in ((store, True), *self._outputs):
            for one in sources:
                if takes(one, os.fsencode(path), is_dir=is_dir):
                    what = "the cache" if path == store else "the output"
                    raise ConfigError(
                        "output-in-source",
                        f"layer {self._layer.name}: {what} {printable(path)} is in {one}",
                        "move it elsewhere, or exclude it",
                    )


def _examples(explanation: Explanation) -> list[Reason]:
    """Return examples of changed files; new files only if an earlier state is known."""
    is_known = explanation.known or explanation.same
    return [
        Reason("outside", printable(path), after=f"({why})")
        for path, why in explanation.examples
        if is_known or why != "new"
    ]


def _source(text: str, layer: LayerSettings) -> Source:
    path, colon, destination = text.rpartition(":")
    if not colon:
        path, destination = text, f"{layer.destination}/"  # the trailing slash puts a file into the directory
    return parse_source(f"{beside(layer.directory, path)}:{destination}")


def _result(made: Layer) -> PackedLayer:
    return PackedLayer(made.digest, made.size_bytes, made.media_type, made.diff_id, made.key, made.codec_class)

"""The step that packs: a layer's settings to a blob in the store, and the results that others go by."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from detlayer.building.context import BuildContext
from detlayer.building.graph import Call, Reason
from detlayer.building.results import PackedLayer
from detlayer.building.settings import LayerSettings
from detlayer.building.settings.image import beside
from detlayer.errors import ConfigError, OutputError, TreeError, printable
from detlayer.layer import writer
from detlayer.layer.entry import Entry
from detlayer.layer.key import key_of
from detlayer.layer.writer import Layer
from detlayer.packing.explanation import Explanation
from detlayer.packing.known_contents import Contents
from detlayer.packing.lookup import Reuse
from detlayer.packing.packer import parse_destination, parse_source, resolve, warn_of_class
from detlayer.packing.sources import Sources
from detlayer.tree import Selection, Source, takes

Warn = Callable[[str, str], None]


class _Watch:
    """A reporter that ends a pack when the run ends, and keeps its warnings until the walk is the one that counts."""

    def __init__(self, call: Call, progress: Callable[[int], None] | None = None) -> None:
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
    """Packs one layer for one run: `find` looks for it in the store, and `pack` makes it where that found nothing."""

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
        self._sources: list[Source] = []
        self._reuse: Reuse | None = None
        self._taken: Sources | None = None

    def find(self, call: Call) -> PackedLayer | tuple[Reason, ...]:
        """Look for the layer of what is on disk now, without reading what is known; raises what a pack raises."""
        layer, watch = self._layer, _Watch(call)
        sources = [_source(one, layer) for one in layer.sources]
        self._sources = resolve(
            sources,
            exclude=layer.exclude,
            ignore_files=[beside(layer.directory, one) for one in layer.ignore_files],
            use_ignore_file=layer.use_ignore_file,
        )
        store = self._context.store
        self._keep_out()
        taken = self._taken = Sources(self._sources, layer.profile(), self._selection())
        self._reuse = Reuse(store, layer.codec, taken, jobs=self._jobs, reporter=watch)
        found = self._reuse.find()
        if found is not None:
            watch.warnings += taken.warnings
            self._done(found, watch)
            return _result(found)
        if self._is_dry:
            self._look(taken, call)
        return (Reason("outside", self._reuse.explanation.reason),)

    def _look(self, taken: Sources, call: Call) -> None:
        """Say which files are not as they were, and how many bytes there are, for a run that packs nothing."""
        explanation = Explanation()

        def entries() -> Iterator[Entry]:
            for entry in taken.entries():
                call.check()
                call.add("bytes", entry.size_bytes)
                yield entry

        key_of(entries(), Contents(self._context.store, int(self._context.store.clock() * 1e9), explanation))
        call.reasons += _examples(explanation)

    def pack(self, call: Call) -> PackedLayer:
        """Pack what `find` looked at; raises what `packing.packer.pack` raises, and TreeError if it is empty."""
        assert self._reuse is not None  # a step is looked at before it is run
        assert self._taken is not None
        watch = _Watch(call, self._progress)
        with self._reuse as reuse:
            made = writer.pack(
                self._taken.entries(),
                reuse.blob,
                codec=self._layer.codec,
                jobs=self._jobs,
                reporter=watch,
                contents=reuse.contents,
                chunks=reuse.chunks,
            )
            self._check(made)
            is_kept = reuse.keep(made)
        watch.warnings += self._taken.warnings
        self._done(made, watch)
        call.facts["bytes"] = made.size_bytes
        call.reasons += _examples(reuse.explanation)
        call.facts["chunks_copied"] = reuse.explanation.copied
        call.facts["chunks_compressed"] = reuse.explanation.compressed
        if not is_kept and not self._context.store.blobs.is_intact(made.digest):
            raise OutputError(
                "cache-full",
                f"layer {self._layer.name} could not be kept in {printable(self._context.store.directory)}",
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
        """Refuse a layer without a file, which is a mistake more often than not."""
        layer = self._layer
        if not made.files and not layer.allow_empty and not layer.whiteouts and not layer.opaques:
            raise TreeError(
                "layer-empty",
                f"layer {layer.name} has no file in it: {', '.join(map(printable, layer.sources))}",
                "is it built, and not excluded? else set allow-empty = true",
            )

    def _done(self, made: Layer, watch: _Watch) -> None:
        self._context.packed(made.digest)
        for code, message in watch.warnings:
            self._warn(code, message)
        watch.warnings.clear()
        warn_of_class(made, watch)
        for code, message in watch.warnings:
            self._warn(code, message)

    def _keep_out(self) -> None:
        """Refuse to pack what the build itself writes."""
        store = self._context.store.directory
        for path, is_dir in ((store, True), *self._outputs):
            for one in self._sources:
                if takes(one, os.fsencode(path), is_dir=is_dir):
                    what = "the cache" if path == store else "the output"
                    raise ConfigError(
                        "output-in-source",
                        f"layer {self._layer.name}: {what} {printable(path)} is, or lies in, {one}",
                        "put it elsewhere, or exclude it",
                    )


def _examples(explanation: Explanation) -> list[Reason]:
    """Name files that are not as they were; where nothing was known before, that says nothing."""
    if not explanation.known and not explanation.same:
        return []
    return [Reason("outside", printable(path), after=f"({why})") for path, why in explanation.examples]


def _source(text: str, layer: LayerSettings) -> Source:
    path, colon, destination = text.rpartition(":")
    if not colon:
        path, destination = text, f"{layer.destination}/"  # a file goes into it
    return parse_source(f"{beside(layer.directory, path)}:{destination}")


def _result(made: Layer) -> PackedLayer:
    return PackedLayer(made.digest, made.size_bytes, made.media_type, made.diff_id, made.key, made.codec_class)

"""`pack`: sources to one layer blob in the requested outputs. Joins tree, layer, output and store."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from detlayer.errors import ConfigError, printable
from detlayer.filesystem import real_path
from detlayer.layer import writer
from detlayer.layer.codec import KNOWN_CLASSES, Codec
from detlayer.layer.ports import Silence
from detlayer.layer.writer import Layer
from detlayer.output.depfile import rule
from detlayer.output.files import Outputs, Tee
from detlayer.packing.options import DEFAULT_OPTIONS, PackOptions, Path
from detlayer.packing.sources import resolve
from detlayer.tree import Source, fail, takes, walk
from detlayer.tree.ignore_files import find_ignore_file

if TYPE_CHECKING:
    from detlayer.store import Store


def pack(
    sources: Iterable[Source | Path],
    output: Path | BinaryIO | None = None,
    *,
    oci_layout: Path | None = None,
    descriptor: Path | None = None,
    depfile: Path | None = None,
    options: PackOptions = DEFAULT_OPTIONS,
    store: Store | None = None,
) -> Layer:
    """Pack directories and files into one reproducible layer.

    A source is a `Source`, or `SOURCE[:DEST]` as on the command line. The blob goes to `output` (a file, written
    atomically, or a binary stream), to `oci_layout`, to both, or to neither: then it is only computed. `descriptor`
    gets the OCI descriptor as JSON, `depfile` a rule for make and ninja. Results of earlier packs in `store` are
    reused.

    Raises ConfigError, TreeError, LayerError or OutputError. Each output is then complete or unchanged; if one can't
    be renamed at the very end, others may already be in place.
    """
    reporter = options.reporter or Silence()
    output_path = output if isinstance(output, str | os.PathLike) else None
    codec = options.codec_for(output)
    options.count_jobs()  # reject an invalid number before reading anything
    resolved = resolve(sources, options)
    target = output_path if output_path is not None else descriptor
    if depfile is not None and target is None:
        raise ConfigError("depfile-target", "a depfile needs an output file", "add -o FILE or --descriptor FILE")
    _check_outputs({"output": output_path, "descriptor": descriptor, "depfile": depfile}, oci_layout, resolved)
    with Outputs(output=output, oci_layout=oci_layout, descriptor=descriptor, depfile=depfile) as outputs:
        if store is not None and any(takes(one, os.fsencode(store.directory), is_dir=True) for one in resolved):
            reporter.warning(
                "cache-unusable", f"{printable(store.directory)} is inside a source: working without a cache"
            )
            store = None
        layer, paths = _write(resolved, outputs, codec, options, store, keep_paths=depfile is not None)
        depends = b""
        if depfile is not None and target is not None:
            depends = rule(os.fsencode(target), [*_pattern_files(resolved, options), *paths])
        final_paths = outputs.final_paths(layer.digest) if store is not None else []
        outputs.commit(layer.digest, descriptor=layer.descriptor().to_bytes() + b"\n", depfile=depends)
        if store is not None:
            store.outputs.keep(final_paths, layer.digest)
    for code, message in codec_warnings(layer):
        reporter.warning(code, message)
    return layer


def _write(
    sources: Sequence[Source],
    outputs: Outputs,
    codec: Codec,
    options: PackOptions,
    store: Store | None,
    *,
    keep_paths: bool,
) -> tuple[Layer, Sequence[bytes]]:
    """Write the layer to the outputs, with the cache if there is one; returns also the paths that were looked at."""
    reporter = options.reporter or Silence()
    if store is None or not store.index.is_usable:
        entries = walk(
            sources, profile=options.profile, selection=options.selection, reporter=reporter, keep_paths=keep_paths
        )
        layer = writer.pack(entries, Tee(outputs.sinks), codec=codec, jobs=options.count_jobs(), reporter=reporter)
        return layer, entries.paths
    from detlayer.packing.cached_pack import CachedPack
    from detlayer.packing.pack_input import PackInput  # not needed with --no-cache

    cached = CachedPack(
        store,
        codec,
        PackInput(sources, options.profile, options.selection, keep_paths=keep_paths),
        jobs=options.count_jobs(),
        is_paranoid=options.paranoid,
    )
    packed = cached.write(outputs, reporter)
    if options.explain is not None:
        options.explain(packed.explanation)
    return packed.layer, packed.paths


def _pattern_files(sources: Sequence[Source], options: PackOptions) -> list[bytes]:
    """Return the paths of all ignore files that were read."""
    found = [os.fsencode(path) for path in options.ignore_files]
    for source in sources if options.use_ignore_file else ():
        own = find_ignore_file(os.fsdecode(source.path))
        if own is not None:
            found.append(os.fsencode(own))
    return found


def codec_warnings(layer: Layer) -> Iterator[tuple[str, str]]:
    """Warn if the local compressor writes other bytes than the codec's reference (SPEC 6.3)."""
    known = KNOWN_CLASSES.get(layer.codec.name)
    if known is not None and known != layer.codec_class:
        yield (
            "codec-class",
            f"{layer.codec.name} here is of class {layer.codec_class}, expected {known}: the diff_id is the same as "
            "elsewhere, the digest is not",
        )


def _check_outputs(files: dict[str, Path | None], layout: Path | None, sources: Sequence[Source]) -> None:
    """Reject outputs that replace each other or a source, and those that the next run would pack."""
    names: dict[str, str] = {}
    for name, path in files.items():
        if path is not None:
            try:
                real = real_path(os.fspath(path))
            except OSError as error:
                fail(error, os.fsencode(path))
            if names.setdefault(real, name) != name and real != os.path.realpath(os.devnull):
                raise ConfigError(
                    "outputs-collide",
                    f"{names[real]} and {name} are both {printable(os.fspath(path))}",
                    "use a different file for each",
                )
    for path in (*files.values(), layout):
        for source in sources if path is not None else ():
            if path is not None and takes(source, os.fsencode(path), is_dir=path is layout):
                raise ConfigError(
                    "output-in-source",
                    f"{printable(os.fspath(path))} would overwrite the source {source}, or be packed by the next run",
                    "write it elsewhere, or --exclude it",
                )

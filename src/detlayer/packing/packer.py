"""`pack`: sources to one layer blob, in the outputs that were asked for. Joins tree, layer, output and store."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, BinaryIO

from detlayer.errors import ConfigError, printable
from detlayer.filesystem import is_file, real_path
from detlayer.layer import writer
from detlayer.layer.codec import KNOWN_CLASSES
from detlayer.layer.ports import Reporter, Silence
from detlayer.layer.writer import Layer
from detlayer.output.depfile import rule
from detlayer.output.files import Outputs
from detlayer.packing.options import DEFAULT_OPTIONS, PackOptions, Path
from detlayer.tree import Source, fail, read_file, takes, walk
from detlayer.tree.patterns import Pattern, parse_pattern, parse_patterns, read_ignore_file

if TYPE_CHECKING:
    from detlayer.store import Store

IGNORE_FILE = ".detlayerignore"


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

    A source is a `Source`, or `SOURCE[:DEST]` as on the command line. The blob goes to `output` (a file that appears
    whole or not at all, or a binary stream), to `oci_layout`, to both, or to neither: then it is only computed.
    `descriptor` gets the OCI descriptor as JSON, `depfile` a rule for make and ninja. What earlier packs left in
    `store` is reused.

    Raises ConfigError, TreeError, LayerError or OutputError. Each output is then whole or untouched; only where one
    can't be renamed at the very end are others there without it.
    """
    reporter = options.reporter or Silence()
    output_path = output if isinstance(output, str | os.PathLike) else None
    codec, jobs = options.codec_for(output), options.count_jobs()
    resolved = resolve(
        sources,
        exclude=options.exclude,
        ignore_files=options.ignore_files,
        use_ignore_file=options.use_ignore_file,
    )
    target = output_path if output_path is not None else descriptor
    if depfile is not None and target is None:
        raise ConfigError("depfile-target", "a depfile needs an output file", "add -o FILE or --descriptor FILE")
    _check_outputs({"output": output_path, "descriptor": descriptor, "depfile": depfile}, oci_layout, resolved)
    visited: list[bytes] = []
    with Outputs(output=output, oci_layout=oci_layout, descriptor=descriptor, depfile=depfile) as outputs:
        if store is not None and any(takes(one, os.fsencode(store.directory), is_dir=True) for one in resolved):
            reporter.warning(
                "cache-unusable", f"{printable(store.directory)} lies in what is packed: working without a cache"
            )
            store = None
        if store is not None and store.index.is_usable:
            from detlayer.packing.repack import repack
            from detlayer.packing.sources import Sources  # with --no-cache nobody needs them

            taken = Sources(
                resolved,
                options.profile,
                options.selection,
                visited=visited if depfile is not None else None,
            )
            made = repack(
                taken,
                outputs,
                store,
                codec=codec,
                jobs=jobs,
                reporter=reporter,
                paranoid=options.paranoid,
                explain=options.explain,
            )
        else:
            entries = walk(
                resolved,
                profile=options.profile,
                selection=options.selection,
                reporter=reporter,
                visited=visited.append if depfile is not None else None,
            )
            made = writer.pack(entries, outputs.blob, codec=codec, jobs=jobs, reporter=reporter)
        depends = b""
        if depfile is not None and target is not None:
            own = filter(None, map(own_ignore_file, resolved)) if options.use_ignore_file else ()
            patterns = [*options.ignore_files, *own]
            depends = rule(os.fsencode(target), [*map(os.fsencode, patterns), *visited])
        goals = outputs.goals(made.digest) if store is not None else []
        outputs.commit(made.digest, descriptor=made.descriptor().to_bytes() + b"\n", depfile=depends)
        if store is not None:
            store.outputs.keep(goals, made.digest)
    warn_of_class(made, reporter)
    return made


def warn_of_class(made: Layer, reporter: Reporter) -> None:
    """Warn when the compressor here writes other bytes than the one that the codec's class is known of (SPEC 6.3)."""
    known = KNOWN_CLASSES.get(made.codec.name)
    if known is not None and known != made.codec_class:
        reporter.warning(
            "codec-class",
            f"{made.codec.name} here is of class {made.codec_class}, not {known}: the diff_id is as elsewhere, "
            "the digest is not",
        )


def resolve(
    sources: Iterable[Source | Path],
    *,
    exclude: Sequence[str] = (),
    ignore_files: Sequence[Path] = (),
    use_ignore_file: bool = True,
) -> list[Source]:
    """Read sources with all patterns that judge their paths (SPEC 4.9); at least one, or it is a ConfigError."""
    if isinstance(sources, str | os.PathLike) or isinstance(exclude, str):
        raise TypeError("sources and exclude are sequences: write ['dist:/srv/app']")
    common = [*_read_ignore_files(ignore_files), *map(_single_pattern, exclude)]
    resolved = [
        _with_patterns(item if isinstance(item, Source) else parse_source(os.fspath(item)), common, use_ignore_file)
        for item in sources
    ]
    if not resolved:
        raise ConfigError("no-source", "there is nothing to pack", "name a directory: SOURCE[:DEST]")
    return resolved


def parse_source(text: str) -> Source:
    """Read `SOURCE[:DEST]`; the last colon divides. Raises ConfigError.

    DEST ending in `/` is the directory that a single file goes into, else its new path.
    """
    left, colon, right = text.rpartition(":")
    path, dest = (left, right) if colon else (text, "")
    if not path:
        raise ConfigError("source-invalid", f"{printable(text)!r} names no source", "write SOURCE[:DEST]")
    clean = parse_destination(dest)
    try:
        has_file = is_file(path)
    except OSError as error:
        if error.errno != errno.ELOOP:  # which the walk has a better word for
            fail(error, os.fsencode(path))
        has_file = False
    if has_file and (not clean or dest.endswith("/")):
        name = os.fsencode(os.path.basename(os.path.abspath(path)))
        clean = clean + b"/" + name if clean else name
    return Source(os.fsencode(path), clean)


def parse_destination(text: str) -> bytes:
    """Read a path in the layer: absolute or relative to its root, which are the same. Raises ConfigError."""
    parts = [part for part in os.fsencode(text).split(b"/") if part not in (b"", b".")]
    if b".." in parts or b"\0" in os.fsencode(text):
        raise ConfigError(
            "destination-invalid", f"{printable(text)!r} is no path in a layer", "give an absolute path without '..'"
        )
    return b"/".join(parts)


def _read_ignore_files(paths: Sequence[Path]) -> list[Pattern]:
    found: list[Pattern] = []
    for path in paths:
        try:
            data = read_file(os.fsencode(path))
        except OSError as error:
            raise _unreadable(os.fspath(path), error) from error
        found += read_ignore_file(data, os.fspath(path))
    return found


def _with_patterns(source: Source, common: list[Pattern], use_ignore_file: bool) -> Source:
    own: list[Pattern] = []
    path = own_ignore_file(source) if use_ignore_file else None
    if path is not None:
        # It speaks to us, not to the container; first, so that a later line can bring it back.
        own = [*parse_patterns(["/" + IGNORE_FILE]), *_read_ignore_files([path])]
    return Source(source.path, source.dest, (*source.patterns, *own, *common))


def own_ignore_file(source: Source) -> str | None:
    """Name the ignore file in a source; None if it has none. Raises ConfigError."""
    path = os.path.join(os.fsdecode(source.path), IGNORE_FILE)
    try:
        return path if is_file(path) else None
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError) -> ConfigError:
    return ConfigError("ignore-file", f"{printable(path)}: {error.strerror}", "check the path")


def _single_pattern(text: str) -> Pattern:
    pattern = parse_pattern(text)
    if pattern is None:
        raise ConfigError("pattern-invalid", f"{printable(text)!r} matches nothing", "a leading # is written \\#")
    return pattern


def _check_outputs(files: dict[str, Path | None], layout: Path | None, sources: Sequence[Source]) -> None:
    """Refuse outputs that replace each other or a source, and those that the next run would pack."""
    places: dict[str, str] = {}
    for name, path in files.items():
        if path is not None:
            try:
                real = real_path(os.fspath(path))
            except OSError as error:
                fail(error, os.fsencode(path))
            if places.setdefault(real, name) != name and real != os.path.realpath(os.devnull):
                raise ConfigError(
                    "outputs-collide",
                    f"{places[real]} and {name} are both {printable(os.fspath(path))}",
                    "give each a file of its own",
                )
    for path in (*files.values(), layout):
        for source in sources if path is not None else ():
            if path is not None and takes(source, os.fsencode(path), is_dir=path is layout):
                raise ConfigError(
                    "output-in-source",
                    f"{printable(os.fspath(path))} is, or lies in, {source}: it would be overwritten, or packed by the "
                    "next run",
                    "write it elsewhere, or --exclude it",
                )

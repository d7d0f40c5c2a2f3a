"""Parse `SOURCE[:DEST]` and patterns: destinations and exclusions."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from detlayer.errors import ConfigError, printable
from detlayer.filesystem import is_file
from detlayer.packing.options import PackOptions, Path
from detlayer.tree import Source, fail
from detlayer.tree.ignore_files import read_ignore_files, read_own_patterns
from detlayer.tree.patterns import Pattern, parse_pattern


def resolve(sources: Iterable[Source | Path], options: PackOptions) -> list[Source]:
    """Parse sources with all patterns that apply to them (SPEC 4.9); without any, raises ConfigError."""
    if isinstance(sources, str | os.PathLike) or isinstance(options.exclude, str):
        raise TypeError("sources and exclude are sequences: write ['dist:/srv/app']")
    common = [*read_ignore_files(options.ignore_files), *map(_single_pattern, options.exclude)]
    resolved = []
    for item in sources:
        source = item if isinstance(item, Source) else parse_source(os.fspath(item))
        own = read_own_patterns(os.fsdecode(source.path)) if options.use_ignore_file else []
        resolved.append(Source(source.path, source.dest, (*source.patterns, *own, *common)))
    if not resolved:
        raise ConfigError("no-source", "nothing to pack", "name a directory: SOURCE[:DEST]")
    return resolved


def parse_source(text: str) -> Source:
    """Parse `SOURCE[:DEST]`; the last colon separates. Raises ConfigError.

    A DEST ending in `/` is the directory for a single file, otherwise its new path.
    """
    left, colon, right = text.rpartition(":")
    path, dest = (left, right) if colon else (text, "")
    if not path:
        raise ConfigError("source-invalid", f"invalid source {printable(text)!r}", "write SOURCE[:DEST]")
    clean = parse_destination(dest)
    try:
        has_file = is_file(path)
    except OSError as error:
        if error.errno != errno.ELOOP:  # the walk reports a loop better
            fail(error, os.fsencode(path))
        has_file = False
    if has_file and (not clean or dest.endswith("/")):
        name = os.fsencode(os.path.basename(os.path.abspath(path)))
        clean = clean + b"/" + name if clean else name
    return Source(os.fsencode(path), clean)


def parse_destination(text: str) -> bytes:
    """Parse a path in the layer, absolute or relative to its root (both mean the same). Raises ConfigError."""
    parts = [part for part in os.fsencode(text).split(b"/") if part not in (b"", b".")]
    if b".." in parts or b"\0" in os.fsencode(text):
        raise ConfigError(
            "destination-invalid", f"invalid path {printable(text)!r}", "give an absolute path without '..'"
        )
    return b"/".join(parts)


def _single_pattern(text: str) -> Pattern:
    pattern = parse_pattern(text)
    if pattern is None:
        raise ConfigError("pattern-invalid", f"{printable(text)!r} is blank or a comment", "write a leading # as \\#")
    return pattern

"""Options of commands that pack layers, and their conversion to PackOptions. Reads the environment (SPEC 4.1, 4.2)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, BinaryIO, Literal, TypeVar, cast

import click

from detlayer.cli.common import with_options
from detlayer.cli.console import Console, counted, size, stdout_stream
from detlayer.errors import ConfigError, printable
from detlayer.layer.entry import DEFAULT_MTIME, Profile, parse_mtime
from detlayer.layer.writer import Layer
from detlayer.packing.options import PackOptions
from detlayer.packing.sources import parse_destination
from detlayer.tree import Selection
from detlayer.tree.patterns import parse_mode_rules, parse_owner, parse_owner_rules

_PATTERNS = ("exclude", "include")
_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


class Ordered(click.Command):
    """Records the order of --exclude and --include, because the last match wins, as in an ignore file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        ctx.meta[__name__] = [option.name for option in order if option.name in _PATTERNS]
        return super().parse_args(ctx, args)


_SELECTION = (
    click.option("--exclude", metavar="PATTERN", multiple=True, help="Exclude matching paths; gitignore syntax."),
    click.option("--include", metavar="PATTERN", multiple=True, help="Include paths that an earlier pattern excludes."),
    click.option("--ignore-file", metavar="FILE", multiple=True, help="Read patterns from FILE."),
    click.option("--no-ignore-file", is_flag=True, help="Do not read the .detlayerignore of each SOURCE."),
    click.option("--allow-parent", metavar="PATH", multiple=True, help="Allow DEST below PATH, such as /bin."),
    click.option("--whiteout", metavar="PATH", multiple=True, help="Delete PATH from the layers below."),
    click.option("--opaque", metavar="DIR", multiple=True, help="Hide the contents of DIR in the layers below."),
)

_VALUES = (
    click.option(
        "-c",
        "--compression",
        metavar="KIND",
        help="none, gzip[:1-12], gzip-stored or zstd[:1-19]. [default: by FILE's suffix, else gzip:6]",
    ),
    click.option(
        "--mtime",
        metavar="TIME",
        default=str(DEFAULT_MTIME),
        show_default="2000-01-01",
        help="SECONDS since 1970; `source`; or clamp[:SECONDS]: as in the source, but at most SECONDS (default: "
        "$SOURCE_DATE_EPOCH).",
    ),
    click.option(
        "--owner", metavar="UID[:GID]", default="0:0", show_default=True, help="Owner of all entries, or `source`."
    ),
    click.option(
        "--mode",
        type=click.Choice(["canonical", "source"]),
        default="canonical",
        show_default=True,
        help="canonical: 0755 or 0644. source: all twelve bits, for a root file system.",
    ),
    click.option(
        "--chmod", metavar="PATTERN=MODE", multiple=True, help="Set modes by layer path; the last match wins."
    ),
    click.option("--chown", metavar="PATTERN=UID:GID", multiple=True, help="Set owners, like --chmod."),
    click.option(
        "--hardlinks",
        type=click.Choice(["separate", "preserve"]),
        default="separate",
        show_default=True,
        help="Write hard links as separate files, or preserve them.",
    ),
    click.option("--xattrs", metavar="PATTERN", multiple=True, help="Keep extended attributes with matching names."),
    click.option(
        "--special",
        type=click.Choice(["error", "skip"]),
        default="error",
        show_default=True,
        help="How to handle sockets, FIFOs and devices.",
    ),
    click.option("--no-retime-pyc", is_flag=True, help="Do not change the timestamps inside .pyc files."),
    click.option(
        "-j", "--jobs", type=click.IntRange(1, 256), help="Compression workers. [default: one per processor, up to 8]"
    ),
)

_OUTPUT = (
    click.option("-o", "--output", metavar="FILE", help="Write the layer to FILE; `-` is stdout."),
    click.option("--oci", metavar="DIR", help="Add the layer to this OCI layout, created if missing."),
    click.option("--descriptor", metavar="FILE", help="Write the layer's OCI descriptor to FILE as JSON."),
)


def pack_options(command: _Decorated) -> _Decorated:
    """Add the options that determine the bytes of a layer."""
    return with_options(_SELECTION + _VALUES, command)


def value_options(command: _Decorated) -> _Decorated:
    """Add those of `pack_options` that do not concern sources."""
    return with_options(_VALUES, command)


def output_options(command: _Decorated) -> _Decorated:
    """Add the options for where a layer is written."""
    return with_options(_OUTPUT, command)


def read_output(options: dict[str, Any], *, as_json: bool) -> str | BinaryIO | None:
    """Return the path or stream of `-o`, None with --oci alone; raises ConfigError without any output."""
    for name in ("output", "oci", "descriptor", "depfile"):
        if options.get(name) == "":
            raise ConfigError("path-empty", f"--{name} has an empty value", "pass a path, or omit the option")
    output: str | None = options["output"]
    if output is None and options["oci"] is None:
        raise ConfigError("no-output", "no output for the layer", "add -o FILE, -o - or --oci DIR")
    if output != "-":
        return output
    if as_json:
        raise ConfigError("stdout-twice", "-o - and --json both write to stdout", "use --descriptor FILE for the JSON")
    return stdout_stream()


def show_layer(console: Console, layer: Layer, options: dict[str, Any], *, done: str, started: float) -> None:
    """Print the result of a command that wrote a layer. `started` is a monotonic time in seconds."""
    console.close()
    to_stdout = options["output"] == "-"
    if options["as_json"]:
        console.result(layer.descriptor().to_bytes().decode())
    elif not to_stdout:
        console.result(str(layer.digest))
    where = "stdout" if to_stdout else printable(options["output"] or options["oci"])
    console.note(
        f"{done} {counted(layer.entries, 'entry')}, {size(layer.tar_bytes)}, into {where}: "
        f"{size(layer.size_bytes)} of {layer.codec.name} in {time.monotonic() - started:.1f} s"
    )
    console.detail(f"  digest       {layer.digest}")
    console.detail(f"  diff_id      {layer.diff_id}")
    console.detail(f"  key          {layer.key}")
    console.detail(f"  codec class  {layer.codec_class}")
    console.detail(f"  chunks       {len(layer.chunks):,}")


def read_pack_options(
    options: dict[str, Any], console: Console | None = None, ctx: click.Context | None = None
) -> PackOptions:
    """Convert `value_options`, or with a context `pack_options`; raises ConfigError."""
    return PackOptions(
        options["compression"],
        _read_profile(options),
        _read_selection(options),
        exclude=_read_patterns(ctx, options) if ctx is not None else (),
        ignore_files=options.get("ignore_file", ()),
        use_ignore_file=not options.get("no_ignore_file"),
        jobs=options["jobs"],
        paranoid=options.get("paranoid", False),
        reporter=console,
        explain=console.explain if console is not None and options.get("explain") else None,
    )


def _read_selection(options: dict[str, Any]) -> Selection:
    """Convert the options that select entries; raises ConfigError."""
    return Selection(
        hardlinks=cast(Literal["separate", "preserve"], options["hardlinks"]),
        special=cast(Literal["error", "skip"], options["special"]),
        retime_pyc=not options["no_retime_pyc"],
        whiteouts=tuple(_removed(path) for path in options.get("whiteout", ())),
        opaques=tuple(parse_destination(path) for path in options.get("opaque", ())),
        allowed_parents=frozenset(parse_destination(path) for path in options.get("allow_parent", ())),
    )


def _read_profile(options: dict[str, Any]) -> Profile:
    """Convert the options for the values of entries; raises ConfigError."""
    owner = options["owner"]
    return Profile(
        mtime=parse_mtime(options["mtime"], os.environ.get("SOURCE_DATE_EPOCH")),
        owner=None if owner == "source" else parse_owner(owner),
        mode=cast(Literal["canonical", "source"], options["mode"]),
        xattrs=options["xattrs"],
        mode_rule=parse_mode_rules(map(_pattern_text, options["chmod"])),
        owner_rule=parse_owner_rules(map(_pattern_text, options["chown"])),
    )


def _removed(text: str) -> bytes:
    path = parse_destination(text)
    if not path:
        raise ConfigError(
            "destination-invalid", "--whiteout needs a path below the root", "to hide everything, use --opaque /"
        )
    return path


def _read_patterns(ctx: click.Context, options: dict[str, Any]) -> list[str]:
    """Return --exclude and --include patterns in the order of the command line; raises ConfigError."""
    given = {name: iter(options[name]) for name in _PATTERNS}
    lines = []
    for name in ctx.meta[__name__]:
        pattern = _pattern_text(next(given[name]))
        if name == "include":
            if pattern.startswith("!"):
                raise ConfigError("pattern-invalid", f"--include {pattern!r} starts with `!`", "use --exclude")
            pattern = "!" + pattern
        lines.append(pattern)
    return lines


def _pattern_text(argument: str) -> str:
    """Decode an argument as UTF-8, as names in layers are, regardless of the locale."""
    return os.fsencode(argument).decode("utf-8", "surrogateescape")

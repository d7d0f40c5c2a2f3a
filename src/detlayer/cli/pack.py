"""`detlayer pack`: options in, one recipe called, one result out."""

from __future__ import annotations

import os
import re
import time
from typing import Any, BinaryIO, Literal, cast

import click

from detlayer.cli.console import Console, ProgressKind, size, stdout_stream
from detlayer.entry import DEFAULT_MTIME, MAX_MTIME, Mtime, Profile
from detlayer.errors import ConfigError, printable
from detlayer.layer import Layer
from detlayer.packing import default_jobs, parse_destination
from detlayer.packing import pack as pack_sources
from detlayer.patterns import parse_mode_rules, parse_owner, parse_owner_rules
from detlayer.tree import Selection

_PATTERNS = ("exclude", "include")


class _Ordered(click.Command):
    """Keeps the order of --exclude among --include: the last that matches wins, as in one file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        ctx.meta[__name__] = [option.name for option in order if option.name in _PATTERNS]
        return super().parse_args(ctx, args)


@click.command(
    cls=_Ordered,
    epilog="""\b
Examples:
  detlayer pack .:/srv/app --exclude .git -o ../app.tar.gz
  detlayer pack .:/srv/app --owner 1000:1000 --oci ../image --json
""",
)
@click.argument("sources", metavar="SOURCE[:DEST]...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="FILE", help="Write the layer here; `-` is stdout.")
@click.option("--oci", metavar="DIR", help="Put the layer into this OCI layout, which is made if need be.")
@click.option("--descriptor", metavar="FILE", help="Write the layer's OCI descriptor here, as JSON.")
@click.option("--depfile", metavar="FILE", help="Write what was packed as a rule for make and ninja.")
@click.option(
    "-c",
    "--compression",
    metavar="KIND",
    help="none, gzip[:1-12], gzip-stored or zstd[:1-19]; else from FILE's suffix, else gzip:6.",
)
@click.option("--exclude", metavar="PATTERN", multiple=True, help="Leave out what matches; gitignore syntax.")
@click.option("--include", metavar="PATTERN", multiple=True, help="Bring back what an earlier pattern left out.")
@click.option("--ignore-file", metavar="FILE", multiple=True, help="Read patterns from a file.")
@click.option("--no-ignore-file", is_flag=True, help="Do not read .detlayerignore in each SOURCE.")
@click.option(
    "--mtime",
    metavar="TIME",
    default=str(DEFAULT_MTIME),
    show_default="2000-01-01",
    help="SECONDS since 1970, `source`, or clamp[:SECONDS] (at most this; else $SOURCE_DATE_EPOCH).",
)
@click.option("--owner", metavar="UID[:GID]", default="0:0", show_default=True, help="Owner of all, or `source`.")
@click.option(
    "--mode",
    type=click.Choice(["canonical", "source"]),
    default="canonical",
    show_default=True,
    help="canonical: 0755 and 0644. source: all twelve bits, for a root file system.",
)
@click.option("--chmod", metavar="PATTERN=MODE", multiple=True, help="Set modes by written path; the last match wins.")
@click.option("--chown", metavar="PATTERN=UID:GID", multiple=True, help="Set owners by written path, likewise.")
@click.option(
    "--hardlinks",
    type=click.Choice(["separate", "preserve"]),
    default="separate",
    show_default=True,
    help="Write hard links as files of their own, or as links.",
)
@click.option("--xattrs", metavar="PATTERN", multiple=True, help="Keep extended attributes with such names.")
@click.option(
    "--special",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="What to do about sockets, FIFOs and devices.",
)
@click.option("--allow-parent", metavar="PATH", multiple=True, help="Allow DEST below /bin, /lib and their like.")
@click.option("--whiteout", metavar="PATH", multiple=True, help="Delete this path of the layers below.")
@click.option("--opaque", metavar="DIR", multiple=True, help="Hide all that the layers below have in DIR.")
@click.option("--no-retime-pyc", is_flag=True, help="Leave the time stamps in .pyc files as they are.")
@click.option(
    "-j", "--jobs", type=click.IntRange(1, 256), help="Workers that compress; else one per processor, up to 8."
)
@click.option("--json", "as_json", is_flag=True, help="Print the OCI descriptor instead of the digest.")
@click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "plain", "none"]),
    default="auto",
    show_default=True,
    help="How to show progress; auto is a bar on a terminal.",
)
@click.option("-q", "--quiet", is_flag=True, help="Only warnings and errors.")
@click.option("-v", "--verbose", is_flag=True, help="Say more.")
@click.pass_context
def pack(ctx: click.Context, /, **options: Any) -> None:
    """Turn directories and files into one reproducible layer, and print its digest.

    What a directory SOURCE contains goes to DEST (by default the root), a file SOURCE to the path DEST, or into it if
    DEST ends in `/`. The same files give the same bytes on any machine.
    """
    console = Console(
        json=options["as_json"],
        quiet=options["quiet"],
        verbose=options["verbose"],
        progress=cast(ProgressKind, options["progress"]),
    )
    console.use_colour(os.environ.get("NO_COLOR"))
    try:
        _pack(ctx, console, **options)
    finally:
        console.close()


def _pack(ctx: click.Context, console: Console, **options: Any) -> None:
    for name in ("output", "oci", "descriptor", "depfile"):
        if options[name] == "":
            raise ConfigError("path-empty", f"--{name} has an empty value", "give it a path, or leave it out")
    output: str | BinaryIO | None = options["output"]
    if output is None and options["oci"] is None:
        raise ConfigError("no-output", "there is nowhere to write the layer to", "add -o FILE, -o - or --oci DIR")
    to_stdout = output == "-"
    if to_stdout:
        if options["as_json"]:
            raise ConfigError("stdout-twice", "-o - and --json both want stdout", "use --descriptor FILE for the JSON")
        output = stdout_stream()
    jobs = options["jobs"] or default_jobs()
    started = time.monotonic()
    layer = pack_sources(
        options["sources"],
        output=output,
        oci_layout=options["oci"],
        descriptor=options["descriptor"],
        depfile=options["depfile"],
        compression=options["compression"],
        profile=_profile(options),
        selection=Selection(
            hardlinks=cast(Literal["separate", "preserve"], options["hardlinks"]),
            special=cast(Literal["error", "skip"], options["special"]),
            retime_pyc=not options["no_retime_pyc"],
            whiteouts=tuple(_removed(path) for path in options["whiteout"]),
            opaques=tuple(parse_destination(path) for path in options["opaque"]),
            allowed_parents=frozenset(parse_destination(path) for path in options["allow_parent"]),
        ),
        exclude=_patterns(ctx, options),
        ignore_files=options["ignore_file"],
        use_ignore_file=not options["no_ignore_file"],
        jobs=jobs,
        reporter=console,
    )
    console.close()
    if options["as_json"]:
        console.result(layer.descriptor().to_bytes().decode())
    elif not to_stdout:
        console.result(str(layer.digest))
    _summarise(console, layer, "stdout" if to_stdout else options["output"] or options["oci"], started, jobs)


def _summarise(console: Console, layer: Layer, where: str, started: float, jobs: int) -> None:
    console.note(
        f"packed {layer.entries:,} entries, {size(layer.tar_bytes)}, into {printable(where)}: "
        f"{size(layer.size_bytes)} of {layer.codec.name} in {time.monotonic() - started:.1f} s"
    )
    console.detail(f"  digest       {layer.digest}")
    console.detail(f"  diff_id      {layer.diff_id}")
    console.detail(f"  key          {layer.key}")
    console.detail(f"  codec class  {layer.codec_class}")
    console.detail(f"  chunks       {len(layer.chunks):,}, compressed by {jobs} workers")


def _profile(options: dict[str, Any]) -> Profile:
    owner = options["owner"]
    return Profile(
        mtime=_mtime(options["mtime"], os.environ.get("SOURCE_DATE_EPOCH")),
        owner=None if owner == "source" else parse_owner(owner),
        mode=cast(Literal["canonical", "source"], options["mode"]),
        xattrs=options["xattrs"],
        mode_rule=parse_mode_rules(map(_pattern_text, options["chmod"])),
        owner_rule=parse_owner_rules(map(_pattern_text, options["chown"])),
    )


def _mtime(text: str, epoch: str | None) -> Mtime:
    if text == "source":
        return Mtime("source", DEFAULT_MTIME)
    clamp = text == "clamp" or text.startswith("clamp:")
    seconds = text.removeprefix("clamp").removeprefix(":")
    if text == "clamp":
        if epoch is None:
            raise ConfigError("mtime-invalid", "clamp without a time needs SOURCE_DATE_EPOCH", "write clamp:SECONDS")
        seconds = epoch
    if re.fullmatch(r"[0-9]{1,11}", seconds) is None or int(seconds) > MAX_MTIME:
        raise ConfigError(
            "mtime-invalid",
            f"{seconds!r} is no time" + (" (SOURCE_DATE_EPOCH)" if text == "clamp" else ""),
            f"give whole seconds since 1970, 0 to {MAX_MTIME}, or source, clamp or clamp:SECONDS",
        )
    return Mtime("clamp" if clamp else "fixed", int(seconds))


def _removed(text: str) -> bytes:
    path = parse_destination(text)
    if not path:
        raise ConfigError(
            "destination-invalid", "--whiteout needs a path below the root", "to hide all, use --opaque /"
        )
    return path


def _patterns(ctx: click.Context, options: dict[str, Any]) -> list[str]:
    given = {name: iter(options[name]) for name in _PATTERNS}
    lines = []
    for name in ctx.meta[__name__]:
        pattern = _pattern_text(next(given[name]))
        if name == "include":
            if pattern.startswith("!"):
                raise ConfigError("pattern-invalid", f"--include {pattern!r} says no twice", "use --exclude for that")
            pattern = "!" + pattern
        lines.append(pattern)
    return lines


def _pattern_text(argument: str) -> str:
    """Read an argument as the UTF-8 that names in layers are, whatever the locale made of it."""
    return os.fsencode(argument).decode("utf-8", "surrogateescape")

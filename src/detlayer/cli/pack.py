"""`detlayer pack`: options in, one recipe called, one result out."""

from __future__ import annotations

import sys
import time
from typing import Any, BinaryIO

import click

from detlayer.cli.console import Console, size
from detlayer.cli.options import (
    Ordered,
    console_options,
    make_console,
    pack_options,
    read_patterns,
    read_profile,
    read_selection,
)
from detlayer.errors import ConfigError
from detlayer.layer import Layer
from detlayer.packing import default_jobs
from detlayer.packing import pack as pack_sources


@click.command(
    cls=Ordered,
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
@pack_options
@click.option("--json", "as_json", is_flag=True, help="Print the OCI descriptor instead of the digest.")
@console_options
@click.pass_context
def pack(ctx: click.Context, /, **options: Any) -> None:
    """Turn directories and files into one reproducible layer, and print its digest.

    What a directory SOURCE contains goes to DEST (by default the root), a file SOURCE to the path DEST, or into it if
    DEST ends in `/`. The same files give the same bytes on any machine.
    """
    console = make_console(options, json=options["as_json"])
    try:
        _pack(ctx, console, **options)
    finally:
        console.close()


def _pack(ctx: click.Context, console: Console, **options: Any) -> None:
    output: str | BinaryIO | None = options["output"]
    if not output and options["oci"] is None:
        raise ConfigError("no-output", "there is nowhere to write the layer to", "add -o FILE, -o - or --oci DIR")
    to_stdout = output == "-"
    if to_stdout:
        if options["as_json"]:
            raise ConfigError("stdout-twice", "-o - and --json both want stdout", "use --descriptor FILE for the JSON")
        if sys.stdout.isatty():
            raise ConfigError("stdout-terminal", "a layer is nothing for a terminal", "use -o FILE, or pipe it")
        output = sys.stdout.buffer
    jobs = options["jobs"] or default_jobs()
    started = time.monotonic()
    layer = pack_sources(
        options["sources"],
        output=output,
        oci_layout=options["oci"],
        descriptor=options["descriptor"],
        depfile=options["depfile"],
        compression=options["compression"],
        profile=read_profile(options),
        selection=read_selection(options),
        exclude=read_patterns(ctx, options),
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
        f"packed {layer.entries:,} entries, {size(layer.tar_bytes)}, into {where}: "
        f"{size(layer.size_bytes)} of {layer.codec.name} in {time.monotonic() - started:.1f} s"
    )
    console.detail(f"  digest       {layer.digest}")
    console.detail(f"  diff_id      {layer.diff_id}")
    console.detail(f"  key          {layer.key}")
    console.detail(f"  codec class  {layer.codec_class}")
    console.detail(f"  chunks       {len(layer.chunks):,}, compressed by {jobs} workers")

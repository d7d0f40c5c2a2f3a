"""`detlayer pack`: pack directories and files into a layer."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import click

from detlayer.cli.common import cache_options, console_options, make_console, open_store
from detlayer.cli.options import (
    Ordered,
    output_options,
    pack_options,
    read_output,
    read_pack_options,
    show_layer,
)
from detlayer.packing.packer import pack as pack_sources


@click.command(
    cls=Ordered,
    epilog="""\b
Examples:
  detlayer pack .:/srv/app --exclude .git -o ../app.tar.gz
  detlayer pack .:/srv/app --owner 1000:1000 --oci ../image --json
""",
)
@click.argument("sources", metavar="SOURCE[:DEST]...", nargs=-1, required=True)
@output_options
@click.option("--depfile", metavar="FILE", help="Write the packed files to FILE as a rule for make and ninja.")
@pack_options
@click.option("--json", "as_json", is_flag=True, help="Print the OCI descriptor instead of the digest.")
@click.option("--explain", is_flag=True, help="Print what was reused from earlier packs, and why the rest was not.")
@click.option("--paranoid", is_flag=True, help="Read and compress everything; warn if the cache is wrong.")
@cache_options
@console_options
@click.pass_context
def pack(ctx: click.Context, /, **options: Any) -> None:
    """Pack directories and files into one reproducible layer, and print its digest.

    The contents of a directory SOURCE go to DEST (by default the root). A file SOURCE goes to the path DEST, or into
    DEST if that ends in `/`. The same files give the same bytes on any machine.
    """
    console = make_console(options, json=options["as_json"])
    started = time.monotonic()
    with ExitStack() as stack:
        stack.callback(console.close)
        layer = pack_sources(
            options["sources"],
            output=read_output(options, as_json=options["as_json"]),
            oci_layout=options["oci"],
            descriptor=options["descriptor"],
            depfile=options["depfile"],
            options=read_pack_options(options, console, ctx),
            store=stack.enter_context(open_store(options, console)),
        )
        show_layer(console, layer, options, done="packed", started=started)

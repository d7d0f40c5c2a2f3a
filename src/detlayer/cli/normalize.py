"""`detlayer normalize`: a layer of any tool in, a canonical one out."""

from __future__ import annotations

import time
from typing import Any

import click

from detlayer.cli.common import console_options, expansion_option, make_console
from detlayer.cli.console import stdin_stream
from detlayer.cli.options import output_options, read_output, read_pack_options, show_layer, value_options
from detlayer.normalization import normalize as normalize_layer


@click.command(
    epilog="""\b
Example:
  tar -cz --exclude .git . | detlayer normalize - -o ../app.tar.gz
""",
)
@click.argument("layer", metavar="LAYER")
@output_options
@value_options
@expansion_option
@click.option("--json", "as_json", is_flag=True, help="Print the OCI descriptor instead of the digest.")
@console_options
def normalize(layer: str, **options: Any) -> None:
    """Make a layer of any tool canonical, as `pack` would have written it, and print its digest; `-` is stdin.

    Entries are sorted, values normalised, missing parents added. Later duplicates win, as when the layer is applied;
    whiteouts stay. Contents wait on disk meanwhile, in $TMPDIR.
    """
    console = make_console(options, json=options["as_json"])
    started = time.monotonic()
    try:
        made = normalize_layer(
            stdin_stream() if layer == "-" else layer,
            output=read_output(options, as_json=options["as_json"]),
            oci_layout=options["oci"],
            descriptor=options["descriptor"],
            max_expansion=options["max_expansion"],
            options=read_pack_options(options, console),
        )
        show_layer(console, made, options, done="normalized", started=started)
    finally:
        console.close()

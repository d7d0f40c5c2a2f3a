"""`detlayer normalize`: rewrite a layer from any tool in canonical form."""

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
    """Rewrite a layer from any tool in canonical form, as `pack` would, and print its digest; `-` is stdin.

    Entries are sorted, values normalized, missing parents added. The last of duplicate entries wins, as when the layer
    is applied; whiteouts are kept. Contents are buffered on disk, in $TMPDIR.
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

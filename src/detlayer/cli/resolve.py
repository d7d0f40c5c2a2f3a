"""`detlayer resolve`: print the digest that a reference points to."""

from __future__ import annotations

from typing import Any

import click

from detlayer.cli.common import console_options, make_console
from detlayer.cli.network import network_options, open_registries
from detlayer.cli.transfers import Transfers


@click.command(
    epilog="""\b
Examples:
  detlayer resolve 127.0.0.1:5000/app:dev
  detlayer resolve registry.example/base:12 --platform linux/arm64 --json
"""
)
@click.argument("reference", metavar="REF")
@click.option("--platform", metavar="OS/ARCH", help="Select the manifest of this platform from an index.")
@click.option("--json", "as_json", is_flag=True, help="Print digest, media type, size and platforms as JSON.")
@network_options
@console_options
def resolve(**options: Any) -> None:
    """Print the digest, media type and platforms that REF points to, in one line."""
    from detlayer.oci.platforms import parse_platform
    from detlayer.oci.references import parse_reference
    from detlayer.oci.types import canonical_json
    from detlayer.transfer.pull import resolve_reference

    console = make_console(options, json=options["as_json"])
    platform = parse_platform(options["platform"]) if options["platform"] else None
    reference = parse_reference(options["reference"])
    transfers = Transfers(console)
    with open_registries(options, transfers, [reference]) as registries:
        found = resolve_reference(reference, registries, platform=platform, reporter=transfers)
    if options["as_json"]:
        console.result(canonical_json({"type": "result", **found.to_document()}).decode())
    else:
        platforms = ",".join(map(str, found.platforms)) or "-"
        console.result(f"{found.document.digest} {found.document.media_type} {platforms}")

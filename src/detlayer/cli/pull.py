"""`detlayer pull`: pull an image into an OCI layout."""

from __future__ import annotations

import time
from typing import Any

import click

from detlayer.cli.common import cache_options, console_options, make_console
from detlayer.cli.console import counted, size
from detlayer.cli.network import network_options, open_memory, open_registries
from detlayer.cli.transfers import Transfers
from detlayer.errors import printable


@click.command(
    epilog="""\b
Examples:
  detlayer pull 127.0.0.1:5000/app:dev -o oci:image
  detlayer pull registry.example/base:12 -o oci:base --platform linux/arm64
  detlayer pull registry.example/base:12 -o oci:base --manifests-only
"""
)
@click.argument("reference", metavar="REF")
@click.option("-o", "--output", metavar="oci:DIR[:TAG]", required=True, help="OCI layout, created if missing.")
@click.option("--platform", metavar="OS/ARCH", help="Pull only this platform of an index.")
@click.option("--manifests-only", is_flag=True, help="Do not fetch layers; `push` can fetch them from the registry.")
@click.option("--json", "as_json", is_flag=True, help="Print events and the result as JSON, one per line.")
@network_options
@cache_options
@console_options
def pull(**options: Any) -> None:
    """Pull REF into an OCI layout and print its digest.

    Existing blobs are not fetched again, and interrupted downloads are resumed. Every digest is verified before a file
    gets its final name.
    """
    from detlayer.images.layout_writer import LayoutWriter
    from detlayer.oci.platforms import parse_platform
    from detlayer.oci.references import parse_reference
    from detlayer.oci.types import canonical_json
    from detlayer.transfer.commands import parse_layout_target
    from detlayer.transfer.pull import PullOptions, pull_image

    console = make_console(options, json=options["as_json"])
    transfers = Transfers(console, as_events=options["as_json"])
    started = time.monotonic()
    path, tag = parse_layout_target(options["output"])
    platform = parse_platform(options["platform"]) if options["platform"] else None
    how = PullOptions(tag, platform, options["manifests_only"])
    reference = parse_reference(options["reference"])
    try:
        with open_memory(options, console) as memory, open_registries(options, transfers, [reference]) as registries:
            pulled = pull_image(
                reference, LayoutWriter(path), registries, options=how, memory=memory, reporter=transfers
            )
    finally:
        console.close()
    if options["as_json"]:
        console.result(canonical_json({"type": "result", **pulled.to_document()}).decode())
    else:
        console.result(str(pulled.resolved.document.digest))
    console.note(
        f"{reference} into {printable(path)}: {counted(pulled.blobs, 'blob')}, {size(pulled.fetched_bytes)} fetched, "
        f"{time.monotonic() - started:.1f} s"
    )

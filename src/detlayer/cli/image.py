"""`detlayer image`: assemble an image from files only, for make, ninja and other build tools."""

from __future__ import annotations

import os
from typing import Any

import click

from detlayer.cli.common import make_console, quiet_option
from detlayer.errors import ConfigError


@click.command(
    epilog="""\b
Examples:
  detlayer pack dist:/srv/app --oci image --descriptor app.json
  detlayer image app.json --oci image --settings image.toml --descriptor amd64.json
  detlayer image --manifest amd64.json --manifest arm64.json --oci image --tag 1.2
"""
)
@click.argument("layers", metavar="DESCRIPTOR...", nargs=-1)
@click.option("--oci", metavar="DIR", required=True, help="OCI layout that has the layers and receives the image.")
@click.option("--base", metavar="oci:DIR[:TAG]", default="scratch", show_default=True, help="Base image.")
@click.option("--platform", metavar="OS/ARCH", default="", help="Target platform. [default: linux/amd64]")
@click.option("--settings", metavar="FILE", help="TOML file with keys of an image: entrypoint, env, …")
@click.option(
    "--manifest",
    metavar="FILE",
    multiple=True,
    help="Make an index: FILE is the descriptor of an image in it. Repeatable.",
)
@click.option("--tag", metavar="TAG", default="", help="Tag in the layout.")
@click.option("--descriptor", metavar="FILE", help="Write the image's descriptor to FILE as JSON.")
@click.option("--depfile", metavar="FILE", help="Write the input files to FILE as a rule for make and ninja.")
@click.option("--json", "as_json", is_flag=True, help="Print the descriptor instead of the digest.")
@quiet_option
def image(**options: Any) -> None:
    """Assemble an image from a base, layers and settings, and print its digest.

    A DESCRIPTOR is a file that `pack --descriptor` wrote. Uses neither the network nor detlayer.toml.
    """
    from detlayer.building.image_from_files import ImageOutput, assemble_image, assemble_index

    console = make_console(options, json=options["as_json"])
    output = ImageOutput(options["tag"], options["descriptor"], options["depfile"])
    if options["manifest"]:
        if options["layers"] or options["settings"] or options["platform"] or options["base"] != "scratch":
            raise ConfigError("usage", "--manifest can't be used with layers, base or settings", "omit the others")
        made = assemble_index(options["oci"], options["manifest"], output=output)
    else:
        made = assemble_image(
            options["oci"],
            options["layers"],
            base=options["base"],
            settings=options["settings"],
            platform=options["platform"],
            epoch=os.environ.get("SOURCE_DATE_EPOCH"),
            output=output,
        )
    if options["as_json"]:
        console.result(made.descriptor.to_bytes().decode())
    else:
        console.result(str(made.descriptor.digest))

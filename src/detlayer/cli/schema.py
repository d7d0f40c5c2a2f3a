"""`detlayer schema`: print the JSON schema of detlayer.toml."""

from __future__ import annotations

import json

import click

from detlayer.cli.console import Console


@click.command(
    epilog="""\b
Example:
  detlayer schema
"""
)
def schema() -> None:
    """Print the JSON schema of detlayer.toml, for editors: `detlayer schema > detlayer.schema.json`.

    For editors with taplo, write `#:schema ./detlayer.schema.json` in the first line of detlayer.toml.
    """
    from detlayer.building.settings import schema as make_schema

    Console().result(json.dumps(make_schema(), indent=2))

"""`detlayer graph`: show the steps of a build and their dependencies."""

from __future__ import annotations

from typing import Any, cast

import click

from detlayer.cli.common import cache_options, make_console, quiet_option
from detlayer.cli.projects import open_build_store, project_options, read_project


@click.command(
    epilog="""\b
Examples:
  detlayer graph
  detlayer graph app --push --format mermaid
"""
)
@project_options
@click.option(
    "--format",
    type=click.Choice(["text", "dot", "mermaid", "json"]),
    default="text",
    show_default=True,
    help="Output format.",
)
@click.option("--push", is_flag=True, help="Include steps that publish.")
@click.option("-o", "--output", "outputs", metavar="WHERE", multiple=True, help="Include steps that write to WHERE.")
@cache_options
@quiet_option
def graph(**options: Any) -> None:
    """Show the steps that build the IMAGEs, by default all. Reads only detlayer.toml and sends no requests."""
    from detlayer.building import Build
    from detlayer.building.commands import options_for
    from detlayer.building.graph.drawing import Drawing, draw
    from detlayer.building.options import BuildOptions, parse_output

    console = make_console(options, json=False)
    project, images = read_project(options)
    how = options_for(project, BuildOptions(options["push"], tuple(map(parse_output, options["outputs"]))))
    with open_build_store(options, console) as store, Build(images, how, store, None) as opened:
        console.result(draw(opened.steps, cast(Drawing, options["format"])))

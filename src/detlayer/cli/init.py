"""`detlayer init`: write a detlayer.toml for an existing project."""

from __future__ import annotations

import os
from typing import Any

import click

from detlayer.cli.common import make_console, quiet_option
from detlayer.errors import ConfigError, printable


@click.command(
    epilog="""\b
Examples:
  detlayer init
  detlayer init --kind go services/api
"""
)
@click.argument("directory", default=".")
@click.option(
    "--kind",
    type=click.Choice(["python", "node", "jvm", "dotnet", "go"]),
    help="Kind of project. [default: detected]",
)
@quiet_option
def init(**options: Any) -> None:
    """Write a detlayer.toml for a Python, Node, JVM, .NET or Go project, with its dependencies in a separate layer.

    Edit the file as needed. An existing file is not overwritten.
    """
    from detlayer.building.project_files import ProjectFiles
    from detlayer.building.settings import FILE_NAME
    from detlayer.building.settings.starter import ECOSYSTEMS, detect_ecosystem, write_starter
    from detlayer.output.files import write_file

    console = make_console(options, json=False)
    directory = options["directory"]
    path = os.path.join(directory, FILE_NAME)
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise ConfigError("config-unreadable", f"{printable(directory)}: {error.strerror}", "check the path") from error
    if FILE_NAME in names:
        raise ConfigError("config-exists", f"{printable(path)} already exists", "edit it, or remove it first")
    kind = options["kind"] or detect_ecosystem(names)
    if kind is None:
        raise ConfigError(
            "project-unknown",
            f"can't tell what kind of project {printable(directory)} is from its files",
            f"pass --kind {'|'.join(ECOSYSTEMS)}",
        )
    files = ProjectFiles()
    text = write_starter(
        kind,
        os.path.basename(os.path.realpath(directory)),
        names,
        lambda name: files.read(os.path.join(directory, name)),
    )
    write_file(path, text.encode())
    console.result(path)
    console.note(f"wrote {printable(path)} for a {kind} project; review it, then run `detlayer build`")

"""`detlayer init`: a first detlayer.toml for the project that lies here."""

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
    "--kind", type=click.Choice(["python", "node", "jvm", "dotnet", "go"]), help="Of project; else by its files."
)
@quiet_option
def init(**options: Any) -> None:
    """Write a first detlayer.toml for a Python, Node, JVM, .NET or Go project, with its dependencies in a layer apart.

    It is there to be read and changed. A file that is there is not touched.
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
        raise ConfigError("config-exists", f"there is a {printable(path)} already", "change it, or remove it first")
    kind = options["kind"] or detect_ecosystem(names)
    if kind is None:
        raise ConfigError(
            "project-unknown",
            f"{printable(directory)} has no file that tells what kind of project it is",
            f"say it: --kind {'|'.join(ECOSYSTEMS)}",
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
    console.note(f"wrote {printable(path)} for a {kind} project; read it, then run `detlayer build`")

"""`detlayer lock`: record bases and layers in detlayer.lock."""

from __future__ import annotations

import time
from typing import Any

import click

from detlayer.cli.common import cache_options, console_options, make_console
from detlayer.cli.network import network_options, open_registries
from detlayer.cli.projects import open_build_store, project_file_option, read_project
from detlayer.cli.steps import Steps
from detlayer.errors import DetlayerError, printable


@click.command(
    epilog="""\b
Examples:
  detlayer lock
  detlayer lock -f services/detlayer.toml
"""
)
@project_file_option
@click.option("-j", "--jobs", type=click.IntRange(1, 256), help="Number of steps at a time.")
@network_options
@cache_options
@console_options
def lock(**options: Any) -> None:
    """Write detlayer.lock: the digest of each base for each platform, and key, diff_id and digest of each layer.

    Commit this file: `build --locked` and `verify --locked` use it. It is written next to detlayer.toml.
    """
    from detlayer.building.commands import lock_path, open_build
    from detlayer.building.options import BuildOptions
    from detlayer.output.files import write_file

    console = make_console(options, json=False)
    project, images = read_project({**options, "images": ()})
    steps = Steps(console)
    try:
        how = BuildOptions(until="pack", jobs=options["jobs"])
        with (
            open_build_store(options, console) as store,
            open_build(images, how, store, lambda: open_registries(options, steps, []), steps) as opened,
        ):
            report = opened.run(report=steps.on_event, clock=time.monotonic)
            errors = list(report.errors)
            for error in errors[1:]:
                if isinstance(error, DetlayerError):
                    console.error(error)
            if errors:
                raise errors[0]
            text = opened.locked(report).to_text()
    finally:
        console.close()
    path = lock_path(project)
    write_file(path, text.encode())
    console.result(path)
    console.note(f"wrote {printable(path)}: {len(images)} image{'s' * (len(images) != 1)}")

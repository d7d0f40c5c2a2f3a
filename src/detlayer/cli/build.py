"""`detlayer build`: build and publish the images of a project."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from detlayer.cli import exits
from detlayer.cli.common import cache_options, console_options, make_console
from detlayer.cli.console import Console
from detlayer.cli.network import network_options, open_registries
from detlayer.cli.projects import open_build_store, project_options, read_project, retag
from detlayer.cli.steps import Steps, show_report
from detlayer.errors import ConfigError

if TYPE_CHECKING:
    from detlayer.building import BuildReport
    from detlayer.building.options import BuildOptions
    from detlayer.building.settings import ImageSettings


@click.command(
    epilog="""\b
Examples:
  detlayer build
  detlayer build app --output oci:image
  detlayer build --push --tag 1.2 --tag latest
"""
)
@project_options
@click.option("--push", is_flag=True, help="Publish to `repositories`, uploading only what they lack.")
@click.option("--check", is_flag=True, help="With --push: check every blob and manifest, and send what is missing.")
@click.option(
    "-o",
    "--output",
    "outputs",
    metavar="WHERE",
    multiple=True,
    help="oci:DIR, oci-archive:FILE, docker-archive:FILE, docker or podman; {image} in a path is the image's name.",
)
@click.option("--tag", metavar="TAG", multiple=True, help="Override the configured tags.")
@click.option(
    "--until",
    type=click.Choice(["resolve", "fetch", "pack", "configure", "assemble", "index"]),
    help="Stop after this step.",
)
@click.option("--explain", is_flag=True, help="Print why each step runs.")
@click.option("--dry-run", is_flag=True, help="Print what would be done and why; change nothing.")
@click.option("--question", is_flag=True, help="Exit with 1 if there is work to do; print nothing.")
@click.option("--locked", is_flag=True, help="Use the bases of detlayer.lock, and check layers against it.")
@click.option("--offline", is_flag=True, help="Use bases from detlayer.lock or the cache; send no requests.")
@click.option(
    "-j", "--jobs", type=click.IntRange(1, 256), help="Number of steps at a time; does not affect the output."
)
@click.option("--json", "as_json", is_flag=True, help="Print events and the result as JSON, one per line.")
@network_options
@cache_options
@console_options
@click.pass_context
def build(ctx: click.Context, /, **options: Any) -> None:
    """Build the IMAGEs of detlayer.toml, by default all, and print the digest of each.

    Unchanged steps are skipped. Each base tag is resolved on every build, with one request; images are rebuilt if
    their base has moved. If an image fails, the others are still built.
    """
    from detlayer.building.commands import open_build

    console = make_console(options, json=options["as_json"])
    started = time.monotonic()
    if options["until"] and (options["push"] or options["outputs"]):
        raise ConfigError("usage", "--until can't be used with --push or --output", "omit one of them")
    is_dry = options["dry_run"] or options["question"]
    images, how = _read_options(options)
    steps = Steps(console, as_json=options["as_json"], explain=options["explain"], is_silent=options["question"])
    try:
        references = [one for image in images for one in image.references] if how.push else []
        with (
            open_build_store(options, console) as store,
            open_build(images, how, store, lambda: open_registries(options, steps, references), steps) as opened,
        ):
            report = opened.run(report=steps.on_event, clock=time.monotonic)
    finally:
        console.close()
    _finish(ctx, console, report, options, started=started, is_dry=is_dry)


def _read_options(options: dict[str, Any]) -> tuple[Sequence[ImageSettings], BuildOptions]:
    from detlayer.building.commands import options_for
    from detlayer.building.options import BuildOptions, parse_output

    project, images = read_project(options)
    how = BuildOptions(
        push=options["push"],
        check_registry=options["check"],
        outputs=tuple(map(parse_output, options["outputs"])),
        policy="locked" if options["locked"] else "offline" if options["offline"] else "always",
        until=options["until"],
        is_offline=options["offline"],
        is_dry=options["dry_run"] or options["question"],
        jobs=options["jobs"],
    )
    return retag(images, options["tag"]), options_for(project, how)


def _finish(
    ctx: click.Context, console: Console, report: BuildReport, options: dict[str, Any], *, started: float, is_dry: bool
) -> None:
    from detlayer.errors import DetlayerError

    if not options["question"]:
        show_report(
            console,
            report,
            as_json=options["as_json"],
            is_dry=is_dry,
            explain=options["explain"],
            seconds=time.monotonic() - started,
        )
        if not (is_dry or report.errors or options["push"] or options["outputs"] or options["until"]):
            console.note("nothing was pushed or written: add --push, or an output such as -o oci:image")
    said = set()
    for error in report.errors:
        if not isinstance(error, DetlayerError):
            raise error
        if (error.code, error.message) not in said:
            said.add((error.code, error.message))
            console.error(error)
    first = next((one for one in report.errors if isinstance(one, DetlayerError)), None)
    if first is not None:
        ctx.exit(exits.exit_code(first))
    if options["question"] and report.would_do:
        ctx.exit(exits.NO)

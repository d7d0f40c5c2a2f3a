"""`detlayer push`: push an image to registries."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from detlayer.cli import exits
from detlayer.cli.common import cache_options, console_options, make_console
from detlayer.cli.console import Console, counted, size
from detlayer.cli.network import network_options, open_memory, open_registries
from detlayer.cli.plan import read_push_options, read_references, show_plan, source_options
from detlayer.cli.transfers import Transfers
from detlayer.errors import ConfigError, DetlayerError, printable

if TYPE_CHECKING:
    from detlayer.transfer.plan import Plan
    from detlayer.transfer.push import PushReport, PushResult


@click.command(
    epilog="""\b
Examples:
  detlayer push oci:image registry.example/team/app:1.2 registry.example/team/app:latest
  detlayer push docker-archive:app.tar 127.0.0.1:5000/app:dev --json
  detlayer push docker://old.example/app:1.2 new.example/app:1.2
  detlayer push oci:image registry.example/team/app:1.2 --check
"""
)
@click.argument("image", metavar="IMAGE")
@click.argument("references", metavar="REF...", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Print what would be done, as `plan` does; change nothing.")
@click.option("--plan", "plan_file", metavar="FILE", help="Carry out a plan of `plan --json`, unless a tag has moved.")
@click.option("--check", is_flag=True, help="Check every blob and manifest, and send what is missing.")
@click.option("--json", "as_json", is_flag=True, help="Print events and the result as JSON, one per line.")
@source_options
@network_options
@cache_options
@console_options
@click.pass_context
def push(ctx: click.Context, /, **options: Any) -> None:
    """Push IMAGE to each REF, uploading only what the registry lacks, and print its digest.

    IMAGE is oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME], docker://REF in a registry, or a layer
    file with --as-blob. REF is registry/repository[:tag]. If nothing changed, a push sends one request
    per tag. --check also finds and restores blobs that the registry lost.
    """
    from msgspec.structs import replace

    from detlayer.transfer.commands import open_push_source
    from detlayer.transfer.push import plan_image, push_image

    console = make_console(options, json=options["as_json"])
    transfers = Transfers(console, as_events=options["as_json"])
    started = time.monotonic()
    references = read_references(options["references"])
    how = replace(read_push_options(options), plans=_read_plans(options["plan_file"]))
    kinds = {name: options[name] for name in ("whole_index", "as_blob")}
    try:
        with (
            open_memory(options, console) as memory,  # outermost: records what threads send until they stop
            open_registries(options, transfers, references) as registries,
            open_push_source(options["image"], registries, memory, **kinds) as image,
        ):
            if options["dry_run"]:
                made = plan_image(image, references, registries, options=how, memory=memory)
                show_plan(console, made, as_json=options["as_json"])
                return
            report = push_image(image, references, registries, options=how, memory=memory, reporter=transfers)
    finally:
        console.close()
    _show(console, report, transfers, as_json=options["as_json"], started=started)
    if report.first_error is not None:
        raise report.first_error
    if report.has_moved:
        ctx.exit(exits.NO)


def _read_plans(path: str | None) -> tuple[Plan, ...] | None:
    if path is None:
        return None
    from detlayer.transfer.plan_document import parse_plans

    try:
        with open(path, "rb") as file:
            return tuple(parse_plans(file.read(), printable(path)))
    except OSError as error:
        raise ConfigError("plan-invalid", f"{printable(path)}: {error.strerror}", "check the path") from error


def _show(console: Console, report: PushReport, transfers: Transfers, *, as_json: bool, started: float) -> None:
    from detlayer.oci.types import canonical_json

    for result in report.results:
        _say(console, result, report.first_error)
    ok = [one for one in report.results if one.first_error is None and not one.moved]
    if as_json:
        document = {
            "type": "result",
            "results": [one.to_document() for one in report.results],
            "requests": report.requests,
            "sentBytes": report.sent_bytes,
        }
        console.result(canonical_json(document).decode())
    elif ok:
        console.result(str(ok[0].digest))
    counts = transfers.counts()
    blobs = ", ".join(f"{number:,} {how}" for how, number in sorted(counts.items()))
    console.note(
        f"{counted(report.requests, 'request')}, {size(report.sent_bytes)} sent"
        + (f", blobs: {blobs}" if blobs else "")
        + f", {time.monotonic() - started:.1f} s"
    )


def _say(console: Console, result: PushResult, first_error: DetlayerError | None) -> None:
    """Print the result of a push to one repository, except for the first error, which ends the run."""
    for moved in result.moved:
        console.warning(
            "plan-stale", f"{result.name}:{moved} has moved since the plan was made; nothing was pushed there"
        )
    words = {"present": "is up to date", "pushed": "pushed", "failed": "failed"}
    for tag in result.tags:
        joint = "@" if tag.tag.startswith("sha256:") else ":"
        console.note(f"{result.name}{joint}{tag.tag} {words[tag.state]}")
    for error in dict.fromkeys(filter(None, (result.error, *(tag.error for tag in result.tags)))):
        if error is not first_error:
            console.failure(error)

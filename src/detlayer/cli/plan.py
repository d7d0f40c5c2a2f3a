"""`detlayer plan`: show what a push would do, blob by blob, with reasons. Also the options shared with `push`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from detlayer.cli import exits
from detlayer.cli.common import cache_options, console_options, make_console
from detlayer.cli.console import Console, counted, size
from detlayer.cli.network import network_options, open_memory, open_registries
from detlayer.cli.transfers import SHOWN_DIGEST, Transfers

if TYPE_CHECKING:
    from detlayer.oci.references import Reference
    from detlayer.transfer.plan import Plan
    from detlayer.transfer.push import PushOptions

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])

_SOURCE = (
    click.option("--as-blob", is_flag=True, help="IMAGE is a layer file; push it as an artifact."),
    click.option("--index", "whole_index", is_flag=True, help="Use a layout's whole index.json, not one image in it."),
    click.option(
        "--source",
        metavar="REPOSITORY",
        multiple=True,
        help="Another repository that may have IMAGE's blobs, to mount or fetch them. Repeatable.",
    ),
)


def source_options(command: _Decorated) -> _Decorated:
    """Add the options for the source of an image and its blobs."""
    for option in reversed(_SOURCE):
        command = option(command)
    return command


@click.command(
    epilog="""\b
Examples:
  detlayer plan oci:image registry.example/team/app:1.2
  detlayer plan oci:image 127.0.0.1:5000/app:dev --json > plan.json
"""
)
@click.argument("image", metavar="IMAGE")
@click.argument("references", metavar="REF...", nargs=-1, required=True)
@click.option("--question", is_flag=True, help="Exit with 1 if a push would change anything.")
@click.option("--check", is_flag=True, help="Check every blob and manifest, even if a tag is up to date.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON, for `push --plan`.")
@source_options
@network_options
@cache_options
@console_options
@click.pass_context
def plan(ctx: click.Context, /, **options: Any) -> None:
    """Show what `push` would do for IMAGE and each REF, and why; change nothing.

    Marks each blob: present (seen or pushed earlier), inferred (a manifest in the registry lists it), mount (another
    repository of the registry has it), upload, or foreign (registries do not accept it).
    """
    from detlayer.transfer.commands import open_push_source
    from detlayer.transfer.push import plan_image

    console = make_console(options, json=options["as_json"])
    transfers = Transfers(console)
    references = read_references(options["references"])
    how = read_push_options(options)
    kinds = {name: options[name] for name in ("whole_index", "as_blob")}
    try:
        with (
            open_memory(options, console) as memory,  # outermost: records what threads send until they stop
            open_registries(options, transfers, references) as registries,
            open_push_source(options["image"], registries, memory, **kinds) as image,
        ):
            plans = plan_image(image, references, registries, options=how, memory=memory)
    finally:
        console.close()
    show_plan(console, plans, as_json=options["as_json"])
    if options["question"] and not all(one.is_done for one in plans):
        ctx.exit(exits.NO)


def show_plan(console: Console, plans: Sequence[Plan], *, as_json: bool) -> None:
    """Print plans: a line for each blob, manifest and tag, and a total."""
    from detlayer.oci.types import canonical_json
    from detlayer.transfer.plan_document import plans_document

    if as_json:
        console.result(canonical_json({"type": "result", **plans_document(plans)}).decode())
        return
    for one in plans:
        console.line(str(one.name))
        rows: list[tuple[str, str, str, str]] = [
            (blob.action, str(blob.digest)[:SHOWN_DIGEST], size(blob.size_bytes), blob.reason) for blob in one.blobs
        ]
        rows += [
            (document.action, str(document.digest)[:SHOWN_DIGEST], size(document.size_bytes), document.reason)
            for document in one.manifests
        ]
        rows += [(tag.action, tag.tag[:SHOWN_DIGEST], size(one.root_bytes), tag.reason) for tag in one.tags]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for action, name, bytes_text, reason in rows:
            console.line(f"  {action:{widths[0]}}  {name:{widths[1]}}  {bytes_text:>{widths[2]}}  {reason}")
        if one.is_done:
            console.line("  nothing to do")
        else:
            console.line(
                f"  {counted(one.requests, 'request')} and {size(one.upload_bytes)} to send, of {size(one.all_bytes)}"
            )
    console.flush()


def read_references(texts: Sequence[str]) -> list[Reference]:
    """Parse REF arguments; raises ConfigError."""
    from detlayer.oci.references import parse_reference

    return [parse_reference(text) for text in texts]


def read_push_options(options: dict[str, Any]) -> PushOptions:
    """Convert --source and --check; raises ConfigError."""
    from detlayer.oci.references import parse_reference
    from detlayer.transfer.push import PushOptions

    sources = tuple(parse_reference(text).name for text in options["source"])
    return PushOptions(sources, options["check"])

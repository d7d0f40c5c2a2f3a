"""`detlayer verify`: check that something is reproducible; the exit code is the answer."""

from __future__ import annotations

import os
from typing import Any

import click

from detlayer.cli import exits
from detlayer.cli.common import expansion_option, make_console, quiet_option
from detlayer.cli.console import counted
from detlayer.cli.options import Ordered, pack_options, read_pack_options
from detlayer.cli.report import FORMATS, conclusion, error_to
from detlayer.errors import ConfigError, DetlayerError
from detlayer.verification import DEFAULT_RUNS, VerifyOptions
from detlayer.verification import verify as verify_targets


@click.command(
    cls=Ordered,
    epilog="""\b
Examples:
  detlayer verify .:/srv/app --exclude .git
  detlayer verify .:/srv/app --runs 1 --format json
  detlayer verify --rebuild 'mkdir -p out && cp *.py out' --output out
""",
)
@click.argument("targets", metavar="TARGET...", nargs=-1)
@click.option(
    "--runs",
    metavar="N",
    type=click.IntRange(1, 100),
    default=DEFAULT_RUNS,
    show_default=True,
    help="For sources: number of times to pack them again under varied conditions.",
)
@click.option("--against", metavar="WHAT", help="Compare with a digest, diff_id, descriptor file or layer file.")
@click.option("--rebuild", metavar="COMMAND", help="Run this build twice in varied environments; needs --output.")
@click.option("--output", metavar="PATH", help="Path that COMMAND writes, below the working directory.")
@click.option("--locked", is_flag=True, help="Repack all layers of detlayer.toml, and compare them with detlayer.lock.")
@click.option("-f", "--file", metavar="FILE", help="For --locked: the project file. [default: as for `build`]")
@click.option("--strict", is_flag=True, help="Treat suspicious contents as failures.")
@click.option(
    "--format",
    "form",
    type=click.Choice(sorted(FORMATS)),
    default="text",
    show_default=True,
    help="Report format: text, JSON, GitHub annotations or JUnit XML.",
)
@click.option("--json", "as_json", is_flag=True, help="Same as --format json.")
@expansion_option
@pack_options
@quiet_option
@click.pass_context
def verify(ctx: click.Context, /, **options: Any) -> None:
    """Check that a layer, image, tree or build is reproducible, and name what prevents it.

    TARGET is an image as oci:DIR[:TAG] or oci-archive:FILE[:TAG] (the prefix is optional), a layer file, or sources as
    for `pack`. Blobs of an image are compared with their digests, and layers with the specification. Sources are packed
    several times under varied conditions. Exits with 0 if reproducible, 1 if not, 6 if a digest or size is wrong.
    """
    form = "json" if options["as_json"] else options["form"]
    if options["locked"]:
        ctx.exit(_verify_lock(options, as_json=form == "json"))
    console = make_console(options, json=form == "json")
    try:
        report = verify_targets(
            options["targets"],
            against=options["against"],
            rebuild=options["rebuild"],
            output=options["output"],
            options=VerifyOptions(
                read_pack_options(options, ctx=ctx),
                runs=options["runs"],
                strict=options["strict"],
                max_expansion=options["max_expansion"],
                environment=os.environ,
            ),
        )
    except DetlayerError as error:
        console.close()
        if said := error_to(form, error):
            console.result(said)
        raise
    finally:
        console.close()
    console.result(FORMATS[form](report))
    if form in ("json", "junit"):
        console.note(conclusion(report))
    ctx.exit(0 if report.ok else exits.INTEGRITY if report.is_corrupt else exits.NO)


def _verify_lock(options: dict[str, Any], *, as_json: bool) -> int:
    """Pack the layers of a project without a cache, and compare them with its lock; return the exit code."""
    from detlayer.building import Build
    from detlayer.building.commands import lock_path, read_lock
    from detlayer.building.options import BuildOptions
    from detlayer.cli.projects import open_build_store, read_project
    from detlayer.cli.steps import Steps
    from detlayer.oci.types import canonical_json

    if options["targets"] or options["rebuild"] or options["against"]:
        raise ConfigError("usage", "--locked can't be used with TARGET, --rebuild or --against", "omit the others")
    console = make_console(options, json=as_json)
    project, images = read_project({**options, "images": (), "platform": ()})
    lock = read_lock(project)
    how = BuildOptions(policy="locked", lock=lock, only_layers=True, is_offline=True, jobs=options["jobs"])
    with (
        open_build_store({"no_cache": True}, console) as store,
        Build(images, how, store, None, reporter=Steps(console)) as wired,
    ):
        report = wired.run()
        for error in report.errors:
            raise error
        assert lock is not None  # the request was checked
        found = wired.compare(lock, report)
    if as_json:
        document = {"type": "result", "lock": lock_path(project), "ok": not found, "differences": found}
        console.result(canonical_json(document).decode())
    else:
        for line in found:
            console.line(line)
        console.flush()
        console.note(f"{counted(len(found), 'difference')} from the lock" if found else "all layers match the lock")
    return exits.NO if found else 0

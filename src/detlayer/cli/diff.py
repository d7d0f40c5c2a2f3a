"""`detlayer diff`: compare two inputs; exits with 1 if they differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import click

from detlayer.checks.compare import Difference
from detlayer.checks.findings import TRAPS
from detlayer.cli.common import RenamedOption, expansion_option, make_console, progress_option
from detlayer.cli.console import counted
from detlayer.difference import EXPLAIN_LIMIT, DiffReport
from detlayer.difference import diff as diff_sides
from detlayer.oci.types import canonical_json

_SHOWN = 20
_SIGNS = {"removed": "-", "added": "+", "changed": "~"}
DIFFERS = 1
_VALUES = frozenset(("mtime", "owner", "mode", "umask", "xattrs", "hardlink-form"))


@click.command(
    epilog="""\b
Examples:
  detlayer diff . .
  detlayer diff --normalized --json . .
"""
)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--normalized",
    "--normalised",
    cls=RenamedOption,
    is_flag=True,
    help="Compare the values that `pack` would write, not those on disk.",
)
@click.option(
    "--explain-limit",
    type=click.IntRange(0),
    default=EXPLAIN_LIMIT,
    show_default=True,
    help="Number of differing files whose contents are analysed.",
)
@expansion_option
@click.option("--all", "show_all", is_flag=True, help=f"Show every difference, not only {_SHOWN} of each kind.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
@progress_option
@click.option("-q", "--quiet", is_flag=True, help="Print only the last line.")
@click.pass_context
def diff(ctx: click.Context, /, **options: Any) -> None:
    """Compare A and B, and explain the differences: directories, layer files, or OCI layouts as
    oci:DIR[:TAG] or oci-archive:FILE[:TAG].

    Each line shows the path, its values in A and B, and in brackets the trap that explains the difference. Exits with
    0 if nothing differs, 1 if something does, 3 if A or B can't be read.
    """
    console = make_console(options, json=options["as_json"])
    try:
        report = diff_sides(
            options["a"],
            options["b"],
            normalized=options["normalized"],
            explain_limit=options["explain_limit"],
            max_expansion=options["max_expansion"],
            reporter=console,
        )
    finally:
        console.close()
    if options["as_json"]:
        console.result(canonical_json({"type": "result", **report.to_document()}).decode())
    else:
        lines = [] if options["quiet"] else list(_lines(report, None if options["show_all"] else _SHOWN))
        console.result("\n".join([*lines, _summary(report, options["normalized"])]))
    if not report.same:
        ctx.exit(DIFFERS)


def _lines(report: DiffReport, limit: int | None) -> Iterator[str]:
    for change in report.config:
        yield f"~ {change}"
    for change in report.blob:
        yield f"~ blob: {change}"
    groups: dict[tuple[str, ...], list[Difference]] = defaultdict(list)
    for difference in report.differences:
        groups[(difference.kind, *difference.traps)].append(difference)
    for kind, *traps in sorted(groups, key=_rank):
        group = groups[(kind, *traps)]
        for difference in group[:limit]:
            yield _line(difference)
        if limit is not None and len(group) > limit:
            yield f"  and {len(group) - limit:,} more {kind}{_bracketed(traps)}; --all shows them"
    for change in report.form:
        yield f"~ tar: {change}"
    if report.unexplained:
        yield f"  {report.unexplained:,} more contents differ but were not analysed: raise --explain-limit"
    for layer in report.layers:
        yield f"{layer.a.name} and {layer.b.name}:"
        for line in _lines(layer, limit):
            yield f"  {line}"


def _rank(group: tuple[str, ...]) -> tuple[int, bool, tuple[str, ...]]:
    """Sort removed and added entries first, then contents, then values."""
    kind, *traps = group
    return list(_SIGNS).index(kind), "content" not in traps, tuple(traps)


def _line(difference: Difference) -> str:
    line = f"{_SIGNS[difference.kind]} {difference.path}"
    if difference.kind != "changed":
        return f"{line} ({difference.what}){_bracketed([trap for trap in difference.traps if trap != 'content'])}"
    offset = f" (content from offset {difference.offset})" if difference.offset is not None else ""
    return f"{line}{offset}: {'; '.join(map(str, difference.changes))}"


def _bracketed(traps: Sequence[str]) -> str:
    return f" [{', '.join(traps)}]" if traps else ""


def _summary(report: DiffReport, normalized: bool) -> str:
    """Return the result and what to do, in one line."""
    if report.same:
        entries = f": {counted(report.a.entries, 'entry')}" if report.a.kind != "image" else ""
        return f"same{entries}"
    counts = report.counts()
    causes = ", ".join(f"{trap} {count:,}" for trap, count in list(counts.items())[:6])
    advice = _advice(counts)
    trees = "tree" in (report.a.kind, report.b.kind) and not normalized
    if trees and _VALUES & counts.keys():
        advice = "`pack` normalizes values; --normalized shows what would still differ"
    match report.verdict:
        case "compressor":
            return f"tar equal, compressor differs: the diff_id is the same, the digest is not; {advice}"
        case "form":
            return f"entries equal, written differently ({causes}): `detlayer pack` writes them in one way; {advice}"
        case "config":
            return f"layers equal, image differs ({causes}); {advice}"
        case _:
            return f"differs ({causes}); {advice}"


def _advice(counts: dict[str, int]) -> str:
    """Return the hint of the trap that explains most differences."""
    named = [trap for trap in counts if trap != "content"]
    if not named:
        return "find what wrote the entries or bytes named above"
    return f"first {named[0]}: {TRAPS[named[0]]}"

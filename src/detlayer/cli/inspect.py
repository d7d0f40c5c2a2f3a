"""`detlayer inspect`: list the contents of a layer."""

from __future__ import annotations

import time
from typing import Any

import click

from detlayer.cli.common import expansion_option
from detlayer.cli.console import Console, size, stdin_stream
from detlayer.errors import printable
from detlayer.inspection import LayerContents, entry_document
from detlayer.inspection import inspect as inspect_layer
from detlayer.layer.entry import Entry
from detlayer.oci.types import canonical_json

_KEPT_TIMES = 10_000  # every entry of a layer may have its own
_LETTERS = {"dir": "d", "file": "-", "symlink": "l", "hardlink": "h", "sparse file": "S", "FIFO": "p"}
_BITS = ((0o400, "r"), (0o200, "w"), (0o100, "x"), (0o40, "r"), (0o20, "w"), (0o10, "x"), (4, "r"), (2, "w"), (1, "x"))


@click.command(
    epilog="""\b
Examples:
  detlayer pack .:/srv/app --exclude .git -o - | detlayer inspect -
  detlayer pack .:/srv/app --exclude .git -o - | detlayer inspect - --json
""",
)
@click.argument("layer", metavar="LAYER")
@click.option("--json", "as_json", is_flag=True, help="Print entries and the result as JSON, one per line.")
@click.option("-s", "--summary", is_flag=True, help="Omit the list of entries.")
@click.option(
    "--top",
    metavar="N",
    default=10,
    show_default=True,
    type=click.IntRange(0),
    help="Number of largest entries to list.",
)
@expansion_option
def inspect(layer: str, **options: Any) -> None:
    """List the entries of a layer file, its totals, and its largest files and directories; `-` is stdin.

    Reads tar, gzip and zstd from any tool.
    """
    console = Console(json=options["as_json"])
    show = _as_json(console) if options["as_json"] else _as_text(console)
    found = inspect_layer(
        stdin_stream() if layer == "-" else layer,
        each=None if options["summary"] else show,
        top=options["top"],
        max_expansion=options["max_expansion"],
    )
    if options["as_json"]:
        console.result(canonical_json({"type": "result", **found.to_document()}).decode())
    else:
        _summarise(console, found)


def _as_json(console: Console) -> Any:
    def show(entry: Entry, kind: str) -> None:
        console.line(canonical_json({"type": "entry", **entry_document(entry, kind)}).decode())

    return show


def _as_text(console: Console) -> Any:
    modes: dict[tuple[str, int], str] = {}
    times: dict[int, str] = {}

    def show(entry: Entry, kind: str) -> None:
        mode = modes.get((kind, entry.mode))
        if mode is None:
            mode = modes[kind, entry.mode] = _LETTERS.get(kind, "?") + _permissions(entry.mode)
        when = times.get(entry.mtime)
        if when is None:
            if len(times) == _KEPT_TIMES:
                times.clear()
            when = times[entry.mtime] = _time(entry.mtime)
        line = f"{mode} {entry.uid}:{entry.gid} {entry.size_bytes:>12,} {when} {printable(entry.written_path)}"
        if entry.target:
            line += f" {'link to' if kind == 'hardlink' else '->'} {printable(entry.target)}"
        console.line(line)

    return show


def _permissions(mode: int) -> str:
    shown = [letter if mode & bit else "-" for bit, letter in _BITS]
    for bit, place, letter in ((0o4000, 2, "s"), (0o2000, 5, "s"), (0o1000, 8, "t")):
        if mode & bit:
            shown[place] = letter if shown[place] == "x" else letter.upper()
    return "".join(shown)


def _time(seconds: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    except (ValueError, OverflowError):
        return str(seconds)


def _summarise(console: Console, found: LayerContents) -> None:
    facts = found.facts
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(found.kinds.items()))
    console.line("")
    console.line(f"digest    {facts.digest}, {size(facts.blob_bytes)}")
    chunks = (
        f"{facts.compression}, {len(facts.members):,} chunk{'s'[len(facts.members) == 1 :]}"
        if facts.members
        else "not compressed"
    )
    console.line(f"diff_id   {facts.diff_id}, {size(facts.tar_bytes)}, {chunks}")
    console.line(f"entries   {found.entries:,} ({kinds}), {size(found.content_bytes)} of content")
    for title, items in (("files", found.biggest_files), ("dirs", found.biggest_directories)):
        if items:
            console.line(f"largest {title}")
            for size_bytes, path in items:
                console.line(f"  {size(size_bytes):>10}  {path}")
    console.flush()

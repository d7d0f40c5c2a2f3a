"""`detlayer explain`: what an error, a warning or a trap means, with an example and a fix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from detlayer.cli.console import Console
from detlayer.errors import ConfigError, printable

if TYPE_CHECKING:
    from detlayer.explanations import Explanation

_INDENT = "  "
_WIDTH = 92


@click.command(
    epilog="""\b
Examples:
  detlayer explain
  detlayer explain output-in-source
"""
)
@click.argument("code", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")
def explain(code: str | None, as_json: bool) -> None:
    """Explain an error code, a warning or a trap: what it means, an example, and how to fix it.

    Without CODE, list all codes. Works offline.
    """
    from detlayer.explanations import find_explanations, read_explanations

    console = Console(json=as_json)
    found = find_explanations(_bare(code)) if code is not None else read_explanations()
    if code is not None and not found:
        raise _unknown(code)
    if as_json:
        import msgspec

        for one in found:
            console.line(msgspec.json.encode(one).decode())
    elif code is None:
        for line in _listing(found):
            console.line(line)
    else:
        console.line("\n\n".join(map(_page, found)))
    console.flush()


def _bare(code: str) -> str:
    """Accept a code as messages print it: `error[CODE]:`."""
    return code.removeprefix("error[").removeprefix("warning[").rstrip("]:")


def _unknown(code: str) -> ConfigError:
    from detlayer.explanations import similar_codes

    similar = similar_codes(_bare(code))
    hint = f"did you mean {' or '.join(similar)}?" if similar else "`detlayer explain` lists all codes"
    return ConfigError("code-unknown", f"unknown code: {printable(code)}", hint)


def _listing(explanations: list[Explanation]) -> list[str]:
    from detlayer.explanations import GROUPS

    width = max(len(one.code) for one in explanations)
    lines: list[str] = []
    for group, title in GROUPS.items():
        lines += ["", f"{title}:"] if lines else [f"{title}:"]
        lines += [f"  {one.code:<{width}}  {one.title}" for one in explanations if one.group == group]
    return lines


def _page(explanation: Explanation) -> str:
    label = explanation.type if explanation.exit is None else f"{explanation.type}, exit {explanation.exit}"
    return "\n".join(
        (
            f"{explanation.code} ({label})",
            explanation.title,
            "",
            _wrapped(explanation.meaning),
            "",
            "Example:",
            _indented(explanation.example),
            "",
            "How to fix it:",
            _indented(_wrapped(explanation.fix)),
        )
    )


def _wrapped(text: str) -> str:
    """Fill each paragraph; commands in backquotes stay on one line where they fit."""
    from textwrap import fill

    paragraphs = (paragraph.replace("\n", " ") for paragraph in text.split("\n\n"))
    return "\n\n".join(
        fill(paragraph, _WIDTH, break_long_words=False, break_on_hyphens=False) for paragraph in paragraphs
    )


def _indented(text: str) -> str:
    return "\n".join(f"{_INDENT}{line}".rstrip() for line in text.splitlines())

"""Draw a graph as text, Graphviz, Mermaid or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

from detlayer.building.graph.step import Step, arrange
from detlayer.oci.types import canonical_json

Drawing = Literal["text", "dot", "mermaid", "json"]


def draw(steps: Sequence[Step[Any]], format: Drawing = "text") -> str:
    """Format steps and their dependencies, without a final newline."""
    return _DRAWINGS[format](arrange(steps))


def _text(steps: Sequence[Step[Any]]) -> str:
    lines = []
    for step in steps:
        lines.append(step.name)
        lines += [f"  {role}: {name}" for role, name in step.needs.items()]
    return "\n".join(lines)


def _dot(steps: Sequence[Step[Any]]) -> str:
    lines = ["digraph detlayer {", "  rankdir=LR;", "  node [shape=box];"]
    for step in steps:
        lines.append(f"  {_quote(step.name)};")
        lines += [f"  {_quote(name)} -> {_quote(step.name)};" for name in dict.fromkeys(step.needs.values())]
    return "\n".join([*lines, "}"])


def _mermaid(steps: Sequence[Step[Any]]) -> str:
    names = {step.name: f"s{at}" for at, step in enumerate(steps)}
    lines = ["flowchart LR"]
    for step in steps:
        label = step.name.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
        lines.append(f'  {names[step.name]}["{label}"]')
        lines += [f"  {names[name]} --> {names[step.name]}" for name in dict.fromkeys(step.needs.values())]
    return "\n".join(lines)


def _json(steps: Sequence[Step[Any]]) -> str:
    document = [
        {
            "step": step.name,
            "kind": step.kind,
            "version": step.version,
            "inputs": dict(step.inputs),
            "needs": dict(step.needs),
        }
        for step in steps
    ]
    return canonical_json({"steps": document}).decode()


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


_DRAWINGS: dict[str, Callable[[Sequence[Step[Any]]], str]] = {
    "text": _text,
    "dot": _dot,
    "mermaid": _mermaid,
    "json": _json,
}

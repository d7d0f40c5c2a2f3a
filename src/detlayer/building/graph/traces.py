"""Traces: the result of a step under the fingerprint of its inputs, and what each step was last run with."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from blake3 import blake3

from detlayer.building.graph.step import Reason, Step, Texts
from detlayer.oci.types import canonical_json

FORMAT = "detlayer-trace/1"


class Traces(Protocol):
    """Keeps traces between runs. It may forget any of them. Safe to use from several threads."""

    def get(self, key: str) -> bytes | None:
        """Return a document; None if there is none."""

    def put(self, key: str, data: bytes) -> None:
        """Keep a document under a key, replacing another."""


class Forgetful:
    """Keeps no traces: every step runs."""

    def get(self, key: str) -> bytes | None:
        return None

    def put(self, key: str, data: bytes) -> None:
        return


class Trace(msgspec.Struct, frozen=True):
    """The inputs of a step and the texts of its result."""

    version: str
    inputs: dict[str, str]
    results: dict[str, str]


class _Document(msgspec.Struct):
    format: str
    version: str
    inputs: dict[str, str]
    results: dict[str, str]


def key_of(step: Step[Any], inputs: Texts) -> str:
    """Fingerprint a step with all its inputs, which decide its result."""
    document = [FORMAT, step.kind, step.version, dict(inputs)]
    return "blake3:" + str(blake3(canonical_json(document)).hexdigest())


def last_key(scope: str, step: Step[Any]) -> str:
    """Return the key for what a step was last run with. It only serves to report what changed."""
    return "blake3:" + str(blake3(canonical_json([FORMAT, "last", scope, step.kind, step.name])).hexdigest())


def recall(traces: Traces, key: str) -> Trace | None:
    """Read a trace; None if there is none, or it cannot be read."""
    data = traces.get(key)
    if data is None:
        return None
    try:
        found = msgspec.json.decode(data, type=_Document)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return Trace(found.version, found.inputs, found.results) if found.format == FORMAT else None


def keep(traces: Traces, key: str, trace: Trace) -> None:
    """Write a trace."""
    document = {
        "format": FORMAT,
        "version": trace.version,
        "inputs": trace.inputs,
        "results": trace.results,
    }
    traces.put(key, canonical_json(document))


def compare(step: Step[Any], inputs: Texts, last: Trace | None) -> tuple[Reason, ...]:
    """Return what changed since a step was last run; empty if nothing did."""
    if last is None:
        return (Reason("first"),)
    found = [Reason("version", step.kind, last.version, step.version)] if last.version != step.version else []
    names = dict.fromkeys((*inputs, *last.inputs))
    changed = [name for name in names if inputs.get(name) != last.inputs.get(name)]
    return (*found, *(Reason("input", name, last.inputs.get(name, ""), inputs.get(name, "")) for name in changed))

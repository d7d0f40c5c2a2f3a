"""Traces: what a step made of its inputs, under the fingerprint of these; and what each step was last run with."""

from __future__ import annotations

from typing import Protocol

import msgspec
from blake3 import blake3

from detlayer.building.graph.step import Reason, Step, Values
from detlayer.oci.types import canonical_json

FORMAT = "detlayer-trace/1"


class Traces(Protocol):
    """Where traces are kept, from run to run. It may forget anything, and is used from several threads."""

    def get(self, key: str) -> bytes | None:
        """Recall a document; None if there is none."""

    def put(self, key: str, data: bytes) -> None:
        """Keep a document in place of what had the key."""


class Forgetful:
    """Keeps no traces: every step runs."""

    def get(self, key: str) -> bytes | None:
        return None

    def put(self, key: str, data: bytes) -> None:
        return


class Trace(msgspec.Struct, frozen=True):
    """The inputs of a step and what came of them."""

    version: str
    inputs: dict[str, str]
    results: dict[str, str]


class _Document(msgspec.Struct):
    format: str
    version: str
    inputs: dict[str, str]
    results: dict[str, str]


def key_of(step: Step, inputs: Values) -> str:
    """Fingerprint a step with all its inputs: what decides its results, and nothing else."""
    document = [FORMAT, step.kind, step.version, dict(inputs)]
    return "blake3:" + str(blake3(canonical_json(document)).hexdigest())


def last_key(scope: str, step: Step) -> str:
    """Name the place for what a step was last run with. It only serves to say what changed."""
    return "blake3:" + str(blake3(canonical_json([FORMAT, "last", scope, step.kind, step.name])).hexdigest())


def recall(traces: Traces, key: str) -> Trace | None:
    """Read a trace; what can't be read is none."""
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


def compare(step: Step, inputs: Values, last: Trace | None) -> tuple[Reason, ...]:
    """Say in what a step differs from when it was last run; empty if in nothing."""
    if last is None:
        return (Reason("first"),)
    found = [Reason("version", step.kind, last.version, step.version)] if last.version != step.version else []
    names = dict.fromkeys((*inputs, *last.inputs))
    changed = [name for name in names if inputs.get(name) != last.inputs.get(name)]
    return (*found, *(Reason("input", name, last.inputs.get(name, ""), inputs.get(name, "")) for name in changed))

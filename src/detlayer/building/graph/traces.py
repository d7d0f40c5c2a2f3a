"""Traces: the result of a step by the fingerprint of its inputs, and the last inputs of each step."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from blake3 import blake3

from detlayer.building.graph.step import Reason, Step, Texts
from detlayer.oci.types import canonical_json

FORMAT = "detlayer-trace/1"


class Traces(Protocol):
    """Stores traces between runs, and may lose any of them. Thread-safe."""

    def get(self, key: str) -> bytes | None:
        """Return a document; None if not found."""

    def put(self, key: str, data: bytes) -> None:
        """Store a document, replacing any with the same key."""


class Forgetful:
    """Stores no traces: every step runs."""

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
    """Return the fingerprint of a step and all its inputs."""
    document = [FORMAT, step.kind, step.version, dict(inputs)]
    return "blake3:" + str(blake3(canonical_json(document)).hexdigest())


def last_key(scope: str, step: Step[Any]) -> str:
    """Return the key for the last inputs of a step, which are only used to report changes."""
    return "blake3:" + str(blake3(canonical_json([FORMAT, "last", scope, step.kind, step.name])).hexdigest())


def recall(traces: Traces, key: str) -> Trace | None:
    """Read a trace; None if it is missing or invalid."""
    data = traces.get(key)
    if data is None:
        return None
    try:
        found = msgspec.json.decode(data, type=_Document)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return Trace(found.version, found.inputs, found.results) if found.format == FORMAT else None


def keep(traces: Traces, key: str, trace: Trace) -> None:
    document = {
        "format": FORMAT,
        "version": trace.version,
        "inputs": trace.inputs,
        "results": trace.results,
    }
    traces.put(key, canonical_json(document))


def compare(step: Step[Any], inputs: Texts, last: Trace | None) -> tuple[Reason, ...]:
    """Return what changed since the last run of a step."""
    if last is None:
        return (Reason("first"),)
    found = [Reason("version", step.kind, last.version, step.version)] if last.version != step.version else []
    names = dict.fromkeys((*inputs, *last.inputs))
    changed = [name for name in names if inputs.get(name) != last.inputs.get(name)]
    return (*found, *(Reason("input", name, last.inputs.get(name, ""), inputs.get(name, "")) for name in changed))

"""What a verification found, as values: a "no" is a report, not an exception. Knows neither how it was found nor shown.

Every finding either fails its target or is advice. A trap in how a layer is written, or one that two runs differ in, is
proof; most traps in what files hold are grounds for suspicion, since packing the same files again gives the same bytes.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from detlayer.checks.audit import Findings, LayerReport
from detlayer.checks.findings import Finding

TargetKind = Literal["layer", "layout", "sources", "rebuild"]

# In what files hold, and no proof by itself that a build differs; `pyc-timestamp` is not here: such a file is stale.
ADVICE = frozenset(
    (
        "pyc-path",
        "zip-times",
        "gzip-in-content",
        "archive-in-content",
        "installer-files",
        "editor-and-os-files",
        "build-path-in-content",
        "case-collision",
        "unicode-collision",
    )
)
# A digest or size is not what it should be: the bytes are not those that were named, whatever they hold.
INTEGRITY = frozenset(("blob-digest", "config-diff-id"))


class LayerFacts(msgspec.Struct, frozen=True):
    """A layer as it is: what a later check compares. `codec` is empty where none of ours writes these bytes."""

    name: str
    digest: str
    size_bytes: int
    diff_id: str
    key: str
    codec: str
    codec_class: str
    entries: int
    files: int
    tar_bytes: int

    def to_document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "digest": self.digest,
            "size": self.size_bytes,
            "diff_id": self.diff_id,
            "key": self.key,
            "codec": self.codec or None,
            "codec_class": self.codec_class or None,
            "entries": self.entries,
            "files": self.files,
            "tar_bytes": self.tar_bytes,
        }


def facts_of(name: str, report: LayerReport) -> LayerFacts:
    """Take what an audit told of a layer."""
    codec = report.codec
    return LayerFacts(
        name=name,
        digest=str(report.facts.digest),
        size_bytes=report.facts.blob_bytes,
        diff_id=str(report.facts.diff_id),
        key=report.key,
        codec=codec.name if codec is not None else "",
        codec_class=codec.codec_class if codec is not None else "",
        entries=report.entries,
        files=report.files,
        tar_bytes=report.facts.tar_bytes,
    )


class Perturbation(msgspec.Struct, frozen=True):
    """What was made different between runs, and its value in each."""

    what: str
    values: tuple[str, ...]


class TargetReport(msgspec.Struct, frozen=True):
    """What was found of one target. `left_out` says which perturbations could not be applied here, and why."""

    target: str
    kind: TargetKind
    layers: tuple[LayerFacts, ...] = ()
    failures: Findings = msgspec.field(default_factory=Findings)
    advice: Findings = msgspec.field(default_factory=Findings)
    applied: tuple[Perturbation, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not len(self.failures)

    @property
    def is_corrupt(self) -> bool:
        return not INTEGRITY.isdisjoint(self.failures.counts)

    def to_document(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "kind": self.kind,
            "ok": self.ok,
            "layers": [layer.to_document() for layer in self.layers],
            "failures": _findings(self.failures),
            "advice": _findings(self.advice),
            "applied": [{"what": one.what, "values": list(one.values)} for one in self.applied],
            "left_out": [{"what": what, "reason": reason} for what, reason in self.left_out],
            "notes": list(self.notes),
        }


class VerifyReport(msgspec.Struct, frozen=True):
    """The answer to `verify`: `ok` when no target has a failure. Advice never makes it False."""

    targets: tuple[TargetReport, ...]

    @property
    def ok(self) -> bool:
        return all(target.ok for target in self.targets)

    @property
    def is_corrupt(self) -> bool:
        """Tell whether a digest or size is not what it should be."""
        return any(target.is_corrupt for target in self.targets)

    @property
    def findings(self) -> list[Finding]:
        """The failures that were kept, of all targets."""
        return [finding for target in self.targets for finding in target.failures.kept]

    def to_document(self) -> dict[str, Any]:
        return {
            "type": "result",
            "ok": self.ok,
            "corrupt": self.is_corrupt,
            "targets": [target.to_document() for target in self.targets],
        }


def divide(found: Findings, *, strict: bool) -> tuple[Findings, Findings]:
    """Tell failures from advice in what an audit found; `strict` takes all as failures."""
    failures, advice = Findings(), Findings()
    for trap, count in found.counts.items():
        kept = advice if trap in ADVICE and not strict else failures
        kept.counts[trap] = count
        kept.kept += [finding for finding in found.kept if finding.trap == trap]
    return failures, advice


def _findings(found: Findings) -> dict[str, Any]:
    return {"counts": dict(sorted(found.counts.items())), "first": [finding.to_document() for finding in found.kept]}

"""The result of a verification, as values: negative results are returned, not raised.

Every finding is a failure or advice. A trap in the form of a layer, or a difference between two runs, is proof. Most
traps in file contents are only suspicious, since packing the same files again gives the same bytes.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from detlayer.checks.audit import Findings, LayerReport
from detlayer.checks.findings import Finding

TargetKind = Literal["layer", "layout", "sources", "rebuild"]

# In file contents, and no proof that a build differs; without `pyc-timestamp`, since such a file is stale.
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
# A digest or size does not match.
INTEGRITY = frozenset(("blob-digest", "config-diff-id"))


class LayerFacts(msgspec.Struct, frozen=True):
    """Facts of a layer that a later check compares. `codec` is empty if no codec of SPEC 6.2 writes these bytes."""

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
    """Convert the facts of an audit."""
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
    """What was varied between runs, and its value in each."""

    what: str
    values: tuple[str, ...]


class TargetReport(msgspec.Struct, frozen=True):
    """The result for one target. `left_out` has the perturbations that could not be applied here, and why."""

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
    """The result of `verify`: `ok` if no target has a failure. Advice never makes it False."""

    targets: tuple[TargetReport, ...]

    @property
    def ok(self) -> bool:
        return all(target.ok for target in self.targets)

    @property
    def is_corrupt(self) -> bool:
        """Tell whether a digest or size does not match."""
        return any(target.is_corrupt for target in self.targets)

    @property
    def findings(self) -> list[Finding]:
        """Return the failures that were kept, of all targets."""
        return [finding for target in self.targets for finding in target.failures.kept]

    def to_document(self) -> dict[str, Any]:
        return {
            "type": "result",
            "ok": self.ok,
            "corrupt": self.is_corrupt,
            "targets": [target.to_document() for target in self.targets],
        }


def divide(found: Findings, *, strict: bool) -> tuple[Findings, Findings]:
    """Separate failures from advice in the findings of an audit; `strict` makes all of them failures."""
    failures, advice = Findings(), Findings()
    for trap, count in found.counts.items():
        kept = advice if trap in ADVICE and not strict else failures
        kept.counts[trap] = count
        kept.kept += [finding for finding in found.kept if finding.trap == trap]
    return failures, advice


def _findings(found: Findings) -> dict[str, Any]:
    return {"counts": dict(sorted(found.counts.items())), "first": [finding.to_document() for finding in found.kept]}

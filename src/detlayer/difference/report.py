"""The result of `diff`, as values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from detlayer.checks.compare import Difference
from detlayer.checks.findings import Change

Verdict = Literal["same", "compressor", "form", "entries", "config"]


@dataclass(frozen=True, slots=True)
class Compared:
    """One side: its argument, its kind, and the results of reading it (digests only for a layer)."""

    name: str
    kind: Literal["tree", "layer", "image"]
    entries: int = 0
    size_bytes: int = 0
    digest: str = ""
    diff_id: str = ""
    compression: str = ""

    def to_document(self) -> dict[str, Any]:
        found = {"name": self.name, "kind": self.kind, "entries": self.entries}
        optional = ("size_bytes", "digest", "diff_id", "compression")
        return found | {name: value for name in optional if (value := getattr(self, name))}


@dataclass(frozen=True, slots=True)
class DiffReport:
    """How A and B differ.

    `same`: no difference in what was compared. `compressor`: equal tars, compressed differently (SPEC 6.3). `form`:
    equal entries, written differently. `entries`: entries or contents differ. `config`: images with equal layers.
    """

    verdict: Verdict
    a: Compared
    b: Compared
    differences: tuple[Difference, ...] = ()
    blob: tuple[Change, ...] = ()
    """How the compression of equal tars differs."""
    form: tuple[Change, ...] = ()
    """How the form of equal entries differs, one example per trap."""
    config: tuple[Change, ...] = ()
    """How manifests and configs of images differ."""
    layers: tuple[DiffReport, ...] = ()
    unexplained: int = 0
    """Differing contents beyond the limit of explained ones."""

    @property
    def same(self) -> bool:
        return self.verdict == "same"

    def counts(self) -> dict[str, int]:
        """Count differences by trap, most frequent first; an entry counts once for each of its traps."""
        found = Counter[str]()
        for difference in self.differences:
            found.update(difference.traps)
        found.update(change.trap for change in (*self.blob, *self.form, *self.config))
        for layer in self.layers:
            found.update(layer.counts())
        return dict(found.most_common())

    def to_document(self) -> dict[str, Any]:
        """Convert the report for JSON."""
        document: dict[str, Any] = {
            "verdict": self.verdict,
            "a": self.a.to_document(),
            "b": self.b.to_document(),
            "counts": self.counts(),
            "differences": [one.to_document() for one in self.differences],
        }
        for name in ("blob", "form", "config"):
            if getattr(self, name):
                document[name] = [change.to_document() for change in getattr(self, name)]
        if self.layers:
            document["layers"] = [layer.to_document() for layer in self.layers]
        if self.unexplained:
            document["unexplained"] = self.unexplained
        return document

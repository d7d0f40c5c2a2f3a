"""An OCI layout checked: every blob against its digest and size, configs against layers, each layer by an audit.

Never disk (`layout` reads), never the network: foreign layers are passed by.
"""

from __future__ import annotations

from collections.abc import Iterator

from detlayer.audit import Findings, audit
from detlayer.entry import Profile
from detlayer.errors import LayerError, TreeError, printable
from detlayer.finding import Finding
from detlayer.layout import Blob, Image, Layout, LayoutName, open_layout
from detlayer.oci import Digest
from detlayer.verification.layers import Expectation
from detlayer.verification.report import LayerFacts, TargetReport, divide, facts_of


def check_layout(
    target: str,
    name: LayoutName,
    *,
    profile: Profile,
    expectation: Expectation | None = None,
    strict: bool = False,
    max_expansion: int = 200,
) -> TargetReport:
    """Check what index.json leads to, or what of it has the tag in `name`.

    A blob that is not what its digest says is a finding of the report; raises LayerError or TreeError where there is no
    layout to read.
    """
    with open_layout(name, max_expansion=max_expansion) as layout:
        check = _Check(layout, profile, strict, max_expansion)
        check.take(name)
        if expectation is not None:
            check.compare(expectation)
        layers = tuple(facts for facts in check.layers.values() if facts is not None)
        return TargetReport(target, "layout", layers, check.failures, check.advice, notes=tuple(check.notes))


class _Check:
    def __init__(self, layout: Layout, profile: Profile, strict: bool, max_expansion: int) -> None:
        self._layout = layout
        self._profile = profile
        self._strict = strict
        self._max_expansion = max_expansion
        self._images: set[Digest] = set()
        self._blobs: dict[Digest, bool] = {}
        self.layers: dict[Digest, LayerFacts | None] = {}
        self.failures = Findings()
        self.advice = Findings()
        self.notes: list[str] = []

    def take(self, name: LayoutName) -> None:
        wanted = [one for one in self._layout.manifests() if not name.tag or one.is_named(name.tag)]
        if name.tag and not wanted:
            raise TreeError(
                "layout-tag",
                f"{printable(name.path)} has no image {printable(name.tag)}",
                "see the annotations in its index.json",
            )
        if not wanted:
            self.notes.append("index.json names no image")
        for found in self._layout.images(wanted, self._document):
            if isinstance(found, Blob):
                self._check_blob(found)
            elif found.blob.digest not in self._images:
                self._images.add(found.blob.digest)
                self._take_image(found)

    def _take_image(self, image: Image) -> None:
        self._check_blob(image.config)
        for one in image.layers:
            self._take_layer(one)
        if not image.config.is_config or image.config_data is None:
            return
        diff_ids = image.diff_ids()
        if not all(one.is_layer for one in image.layers):
            return  # an attestation: its "layers" are no tars, and nobody unpacks them
        if len(diff_ids) != len(image.layers):
            found, wanted = f"{len(diff_ids)} of them", f"{len(image.layers)}, one for each layer"
            self.failures.add(
                Finding("config-diff-id", str(image.blob.digest), "diff_ids of the config", found, wanted)
            )
        for number, (one, diff_id) in enumerate(zip(image.layers, diff_ids, strict=False)):
            facts = self.layers.get(one.digest)
            if facts is not None and facts.diff_id != diff_id:
                where = f"diff_ids[{number}] of config {image.config.digest}"
                self.failures.add(Finding("config-diff-id", str(one.digest), where, printable(diff_id), facts.diff_id))

    def _take_layer(self, blob: Blob) -> None:
        if blob.digest in self.layers:
            return
        self.layers[blob.digest] = None
        digest = str(blob.digest)
        if blob.is_foreign and not self._layout.has(blob):
            self.notes.append(f"{digest}: a foreign layer, which lies elsewhere; not checked")
            return
        if not self._check_blob(blob) or not blob.is_layer:
            return
        try:
            with self._layout.open(blob) as file:
                report = audit(file, profile=self._profile, max_expansion=self._max_expansion)
        except LayerError as error:
            self.failures.add(Finding("malformed-layer", digest, error.code, error.message, "a layer"))
            return
        self.layers[blob.digest] = facts_of(digest, report)
        for kept, found in zip((self.failures, self.advice), divide(report.findings, strict=self._strict), strict=True):
            for trap, count in found.counts.items():
                kept.counts[trap] = kept.counts.get(trap, 0) + count
            # A path alone does not say in which of the layers it is.
            kept.kept += [one._replace(path=f"{digest[:19]}:{one.path}" if one.path else digest) for one in found.kept]

    # -- blobs

    def _document(self, blob: Blob) -> bytes | None:
        """Read a document that is what its digest says; None, with a finding, if it is not."""
        return self._layout.document(blob) if self._check_blob(blob) else None

    def _check_blob(self, blob: Blob) -> bool:
        """Compare a blob with its digest and size; False, with a finding, if it is another."""
        known = self._blobs.get(blob.digest)
        if known is not None:
            return known
        findings = list(self._judge_blob(blob))
        for finding in findings:
            self.failures.add(finding)
        self._blobs[blob.digest] = not findings
        return not findings

    def _judge_blob(self, blob: Blob) -> Iterator[Finding]:
        damage = self._layout.judge(blob)
        shown = str(blob.digest)
        if damage is None:
            return
        if damage.digest is None:
            yield Finding("blob-digest", shown, "blob", "none", f"{blob.size_bytes} bytes")
            return
        if damage.size_bytes != blob.size_bytes:
            yield Finding("blob-digest", shown, "size", str(damage.size_bytes), str(blob.size_bytes))
        if damage.digest != blob.digest:
            yield Finding("blob-digest", shown, "digest", str(damage.digest), shown)

    def compare(self, expectation: Expectation) -> None:
        """Hold the layout against what was expected: one of its blobs, or a layer's diff_id, has to be that."""
        wanted = {expectation.either or expectation.digest, expectation.diff_id} - {""}
        known = set(map(str, self._blobs))
        for facts in self.layers.values():
            if facts is not None:
                known |= {facts.diff_id, facts.key}
        if not wanted & known:
            found = f"{len(self._blobs)} blobs, none of which is that"
            self.failures.add(
                Finding("unexpected-digest", "", "digests", found, expectation.either or expectation.digest)
            )

"""Check an OCI layout: every blob against its digest and size, configs against layers, each layer by an audit.

Does not read the disk itself (`images.layout` does) and uses no network: foreign layers are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator

from detlayer.checks.audit import Findings, audit
from detlayer.checks.findings import Finding
from detlayer.errors import LayerError, TreeError, UnreadableError, printable
from detlayer.images.layout import Layout, LayoutImage, LayoutName, Measure, open_layout
from detlayer.layer.formats import HEAD_BYTES, is_layer
from detlayer.oci.types import Descriptor, Digest
from detlayer.verification.layers import Expectation
from detlayer.verification.options import VerifyOptions
from detlayer.verification.report import LayerFacts, TargetReport, divide, facts_of

_MAX_BLOBS = 20_000


def check_layout(
    target: str, name: LayoutName, expectation: Expectation | None, options: VerifyOptions
) -> TargetReport:
    """Check the images of index.json, or those with the tag in `name`.

    A blob that does not match its digest is a finding. Raises LayerError or TreeError if there is no readable layout.
    """
    with open_layout(name, max_expansion=options.max_expansion) as layout:
        check = _Check(layout, options)
        check.take(name)
        if expectation is not None:
            check.compare(expectation)
        layers = tuple(facts for facts in check.layers.values() if facts is not None)
        return TargetReport(target, "layout", layers, check.failures, check.advice, notes=tuple(check.notes))


class _Check:
    def __init__(self, layout: Layout, options: VerifyOptions) -> None:
        self._layout = layout
        self._profile = options.pack.profile
        self._strict = options.strict
        self._max_expansion = options.max_expansion
        self._images: set[Digest] = set()
        self._blobs: dict[tuple[Digest, int], bool] = {}
        self._measures: dict[Digest, Measure | None] = {}
        self.layers: dict[Digest, LayerFacts | None] = {}
        self.failures = Findings()
        self.advice = Findings()
        self.notes: dict[str, None] = {}  # ordered, without duplicates

    def take(self, name: LayoutName) -> None:
        wanted = [one for one in self._layout.manifests() if not name.tag or one.is_named(name.tag)]
        if name.tag and not wanted:
            raise TreeError(
                "layout-tag",
                f"no image with the tag {printable(name.tag)} in {printable(name.path)}",
                "see the annotations in its index.json",
            )
        if not wanted:
            self._note("index.json lists no image; all blobs were checked")
        for found in self._layout.images(wanted, self._document):
            if isinstance(found, Descriptor):
                self._check_other(found, "no image")
            elif found.descriptor.digest not in self._images:
                self._images.add(found.descriptor.digest)
                self._take_image(found)

        if not name.tag:
            self._take_others(with_layers=not wanted)

    def _take_others(self, *, with_layers: bool) -> None:
        """Check the blobs outside of images; if there is no image (`pack --oci` makes none), also layers."""
        others = 0
        for digest in self._layout.blobs():
            if digest in self._measures:
                continue
            found = self._measure(digest)
            if found is None:
                continue
            others += 1
            blob = Descriptor("", digest, found.size_bytes)
            if self._check_blob(blob) and with_layers and self._begins_like_layer(digest):
                self._audit(digest)
        if others and not with_layers:
            self._note(f"blobs that index.json does not refer to: {others}; only their digests were checked")

    def _begins_like_layer(self, digest: Digest) -> bool:
        with self._layout.open(digest) as file:
            return is_layer(file.read(HEAD_BYTES))

    def _check_other(self, blob: Descriptor, what: str) -> None:
        # Not recorded as seen: another reference to it may have a known media type.
        if self._check_blob(blob):
            kind = printable(blob.media_type[:100]) or "no media type"
            self._note(f"{blob.digest}: {kind}, {what} of a known type; only its digest was checked")

    def _take_image(self, image: LayoutImage) -> None:
        self._check_blob(image.config)
        for one in image.layers:
            self._take_layer(one)
        if not image.config.is_config or image.config_data is None:
            return
        diff_ids = image.facts().diff_ids
        if not all(one.is_layer for one in image.layers):
            return  # an attestation: its "layers" are not tars and are never unpacked
        if len(diff_ids) != len(image.layers):
            found, wanted = f"{len(diff_ids)} of them", f"{len(image.layers)}, one for each layer"
            self.failures.add(
                Finding("config-diff-id", str(image.descriptor.digest), "diff_ids of the config", found, wanted)
            )
        for number, (one, diff_id) in enumerate(zip(image.layers, diff_ids, strict=False)):
            facts = self.layers.get(one.digest)
            if facts is not None and facts.diff_id != diff_id:
                where = f"diff_ids[{number}] of config {image.config.digest}"
                self.failures.add(Finding("config-diff-id", str(one.digest), where, printable(diff_id), facts.diff_id))

    def _take_layer(self, blob: Descriptor) -> None:
        if not blob.is_layer:
            self._check_other(blob, "no layer")
        elif blob.is_foreign and not self._layout.has(blob.digest):
            self._note(f"{blob.digest}: a foreign layer, stored elsewhere; not checked")
        elif self._check_blob(blob) and blob.digest not in self.layers:
            self._audit(blob.digest)

    def _audit(self, digest: Digest) -> None:
        self.layers[digest] = None
        shown = str(digest)
        try:
            with self._layout.open(digest) as file:
                report = audit(file, profile=self._profile, max_expansion=self._max_expansion)
        except UnreadableError:  # no verdict
            raise
        except LayerError as error:
            self.failures.add(Finding("malformed-layer", shown, error.code, error.message, "a layer"))
            return
        self.layers[digest] = facts_of(shown, report)
        for kept, found in zip((self.failures, self.advice), divide(report.findings, strict=self._strict), strict=True):
            for trap, count in found.counts.items():
                kept.counts[trap] = kept.counts.get(trap, 0) + count
            # The same path may be in several layers.
            kept.kept += [one._replace(path=f"{shown[:19]}:{one.path}" if one.path else shown) for one in found.kept]

    def _note(self, note: str) -> None:
        self.notes[note] = None

    # -- blobs

    def _document(self, blob: Descriptor) -> bytes | None:
        """Read a document and check its digest; None, with a finding, if it does not match."""
        return self._layout.document(blob) if self._check_blob(blob) else None

    def _check_blob(self, blob: Descriptor) -> bool:
        """Compare a blob with its digest and size; False, with a finding, if they differ."""
        known = self._blobs.get((blob.digest, blob.size_bytes))
        if known is not None:
            return known
        if len(self._blobs) >= _MAX_BLOBS:
            raise LayerError(
                "layout-invalid", f"over {_MAX_BLOBS} blobs", "the limit protects against malicious layouts"
            )
        findings = list(self._judge_blob(blob))
        for finding in findings:
            self.failures.add(finding)
        self._blobs[blob.digest, blob.size_bytes] = not findings
        return not findings

    def _measure(self, digest: Digest) -> Measure | None:
        """Read a blob in full, once per digest."""
        if digest not in self._measures:
            self._measures[digest] = self._layout.measure(digest)
        return self._measures[digest]

    def _judge_blob(self, blob: Descriptor) -> Iterator[Finding]:
        found = self._measure(blob.digest)
        shown = str(blob.digest)
        if found is None:
            yield Finding("blob-digest", shown, "blob", "none", f"{blob.size_bytes} bytes")
            return
        if found.size_bytes != blob.size_bytes:
            yield Finding("blob-digest", shown, "size", str(found.size_bytes), str(blob.size_bytes))
        if found.digest != blob.digest:
            yield Finding("blob-digest", shown, "digest", str(found.digest), shown)

    def compare(self, expectation: Expectation) -> None:
        """Compare the layout with the expected digest: that of one of its blobs, or a layer's diff_id."""
        wanted = {expectation.either or expectation.digest, expectation.diff_id} - {""}
        known = {str(digest) for digest, _ in self._blobs}
        for facts in self.layers.values():
            if facts is not None:
                known |= {facts.diff_id, facts.key}
        if not wanted & known:
            found = f"{len(known)} blobs, none with this digest"
            self.failures.add(
                Finding("unexpected-digest", "", "digests", found, expectation.either or expectation.digest)
            )

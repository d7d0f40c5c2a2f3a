"""An OCI layout checked: every blob against its digest and size, configs against layers, each layer by an audit.

The layout is hostile until its digests say otherwise: documents are bounded, and so are their number and depth. Media
types are those of image-spec and Docker. Never disk (`layout` reads), never the network: foreign layers are passed by.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from detlayer.audit import Findings, audit
from detlayer.blob import Readable
from detlayer.entry import Profile
from detlayer.errors import LayerError, TreeError, printable
from detlayer.finding import Finding
from detlayer.layout import MAX_DOCUMENT_BYTES, Layout, begins_like_layer, blob_name, open_layout, read_document
from detlayer.oci import Digest, parse_digest
from detlayer.tar import BLOCK_BYTES
from detlayer.verification.layers import Expectation
from detlayer.verification.report import LayerFacts, TargetReport, divide, facts_of

_INDEXES = frozenset(
    ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
)
_MANIFESTS = frozenset(
    ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
)
_CONFIGS = frozenset(("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"))
_LAYERS = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)
_FOREIGN = ("nondistributable", "rootfs.foreign")
_NAMES = ("org.opencontainers.image.ref.name", "io.containerd.image.name")
_Document = TypeVar("_Document")
_DIGEST = re.compile("sha256:[0-9a-f]{64}")
_MAX_DEPTH = 8
_MAX_BLOBS = 20_000
_PIECE_BYTES = 1 << 20


class _Descriptor(msgspec.Struct):
    digest: str
    size: int
    mediaType: str = ""
    annotations: dict[str, str] | None = None


class _Index(msgspec.Struct):
    manifests: list[_Descriptor]
    mediaType: str = ""


class _Manifest(msgspec.Struct):
    config: _Descriptor
    layers: list[_Descriptor] = []
    mediaType: str = ""


class _RootFs(msgspec.Struct):
    diff_ids: list[str] = []


class _Config(msgspec.Struct):
    rootfs: _RootFs


class _Either(msgspec.Struct):
    """Enough of a document to tell an index from a manifest where no media type does."""

    manifests: list[msgspec.Raw] | None = None


def check_layout(
    target: str,
    path: str,
    *,
    tag: str,
    is_archive: bool,
    profile: Profile,
    expectation: Expectation | None = None,
    strict: bool = False,
    max_expansion: int = 200,
) -> TargetReport:
    """Check what index.json leads to, or what of it is named `tag`.

    A blob that is not what its digest says is a finding of the report; raises LayerError or TreeError where there is no
    layout to read.
    """
    with open_layout(path, is_archive=is_archive, max_expansion=max_expansion) as layout:
        check = _Check(layout, profile, strict, max_expansion)
        check.take_index(path, tag)
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
        self._documents: dict[str, bytes | None] = {}
        self._blobs: dict[tuple[str, int], bool] = {}
        self._followed: set[str] = set()
        self.layers: dict[str, LayerFacts | None] = {}
        self.failures = Findings()
        self.advice = Findings()
        self.notes: list[str] = []

    def take_index(self, path: str, tag: str) -> None:
        data = read_document(self._layout, "index.json")
        if data is None:
            raise TreeError(
                "layout-missing",
                f"{printable(path)} has no index.json",
                "name an OCI layout: oci:DIR or oci-archive:FILE",
            )
        index = _decode(data, _Index, "index.json")
        wanted = [one for one in index.manifests if not tag or _is_named(one, tag)]
        if tag and not wanted:
            raise TreeError(
                "layout-tag",
                f"{printable(path)} has no image {printable(tag)}",
                "see the annotations in its index.json",
            )
        if not wanted:
            self.notes.append("index.json names no image; all blobs were checked")
        for one in wanted:
            self._take_document(one, 0)
        if not tag:
            self._take_others(with_layers=not wanted)

    def _take_others(self, *, with_layers: bool) -> None:
        """Check the blobs that no image leads to; where there is no image (`pack --oci` makes none), layers, too."""
        known = {digest for digest, _ in self._blobs}
        others = 0
        for name in self._layout.blobs():
            digest = f"sha256:{name}"
            if digest in known or _DIGEST.fullmatch(digest) is None:
                continue
            file = self._layout.open(blob_name(parse_digest(digest)))
            if file is None:
                continue
            found, size = _measure(file)
            is_right = str(found) == digest
            self._remember(digest, size, is_right)
            others += 1
            if not is_right:
                self.failures.add(Finding("blob-digest", digest, "digest", str(found), digest))
            elif with_layers and self._begins_like_layer(digest):
                self._audit(digest)
        if others and not with_layers:
            self.notes.append(f"blobs that index.json does not lead to: {others}; only their digests were checked")

    def _begins_like_layer(self, digest: str) -> bool:
        file = self._layout.open(blob_name(parse_digest(digest)))
        return file is not None and begins_like_layer(file.read(BLOCK_BYTES))

    def _take_document(self, descriptor: _Descriptor, depth: int) -> None:
        """Follow an index or a manifest; anything else is a blob whose digest is checked."""
        if descriptor.digest in self._followed:
            self._check_blob(descriptor)  # its size may be another here
            return
        if depth > _MAX_DEPTH:
            raise LayerError(
                "layout-invalid", f"indexes in indexes, over {_MAX_DEPTH} deep", "no honest image has these"
            )
        kind = descriptor.mediaType
        if kind and kind not in _INDEXES and kind not in _MANIFESTS:
            if self._check_blob(descriptor):
                self._note(
                    f"{descriptor.digest}: {printable(kind[:100])}, no image that we know; only its digest was checked"
                )
            return
        data = self._document(descriptor)
        if data is None:
            return
        name = descriptor.digest
        self._followed.add(name)
        if kind in _INDEXES or (not kind and _decode(data, _Either, name).manifests is not None):
            for one in _decode(data, _Index, name).manifests:
                self._take_document(one, depth + 1)
        else:
            self._take_manifest(_decode(data, _Manifest, name), name)

    def _take_manifest(self, manifest: _Manifest, name: str) -> None:
        config = self._document(manifest.config)
        for one in manifest.layers:
            self._take_layer(one)
        if manifest.config.mediaType not in _CONFIGS or config is None:
            return
        diff_ids = _decode(config, _Config, manifest.config.digest).rootfs.diff_ids
        if not all(one.mediaType.startswith(_LAYERS) for one in manifest.layers):
            return  # an attestation: its "layers" are no tars, and nobody unpacks them
        if len(diff_ids) != len(manifest.layers):
            found, wanted = f"{len(diff_ids)} of them", f"{len(manifest.layers)}, one for each layer"
            self.failures.add(Finding("config-diff-id", name, "diff_ids of the config", found, wanted))
        for number, (one, diff_id) in enumerate(zip(manifest.layers, diff_ids, strict=False)):
            facts = self.layers.get(one.digest)
            if facts is not None and facts.diff_id != diff_id:
                where = f"diff_ids[{number}] of config {manifest.config.digest}"
                self.failures.add(Finding("config-diff-id", one.digest, where, printable(diff_id), facts.diff_id))

    def _take_layer(self, descriptor: _Descriptor) -> None:
        digest = descriptor.digest
        if not descriptor.mediaType.startswith(_LAYERS):
            # Not remembered as seen: where it is named as a layer, it is looked into.
            if self._check_blob(descriptor):
                kind = printable(descriptor.mediaType[:100]) or "no media type"
                self._note(f"{digest}: {kind}, no layer that we know; only its digest was checked")
            return
        if digest in self.layers:
            self._check_blob(descriptor)  # its size may be another here
            return
        self.layers[digest] = None
        if any(word in descriptor.mediaType for word in _FOREIGN) and not self._is_there(descriptor):
            self.notes.append(f"{printable(digest)}: a foreign layer, which lies elsewhere; not checked")
            return
        if not self._check_blob(descriptor):
            return
        self._audit(digest)

    def _audit(self, digest: str) -> None:
        file = self._layout.open(blob_name(parse_digest(digest)))
        if file is None:
            return
        try:
            report = audit(file, profile=self._profile, max_expansion=self._max_expansion)
        except LayerError as error:
            self.failures.add(Finding("malformed-layer", digest, error.code, error.message, "a layer"))
            return
        self.layers[digest] = facts_of(digest, report)
        for kept, found in zip((self.failures, self.advice), divide(report.findings, strict=self._strict), strict=True):
            for trap, count in found.counts.items():
                kept.counts[trap] = kept.counts.get(trap, 0) + count
            # A path alone does not say in which of the layers it is.
            kept.kept += [one._replace(path=f"{digest[:19]}:{one.path}" if one.path else digest) for one in found.kept]

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    # -- blobs

    def _document(self, descriptor: _Descriptor) -> bytes | None:
        """Read a document that is what its digest says; None, with a finding, if it is not."""
        digest = descriptor.digest
        if digest not in self._documents:
            self._documents[digest] = None
            if descriptor.size > MAX_DOCUMENT_BYTES:
                raise LayerError(
                    "document-too-long",
                    f"{printable(digest)} says it has {descriptor.size} bytes",
                    f"registries refuse manifests of over {MAX_DOCUMENT_BYTES}",
                )
            if self._check_blob(descriptor):
                self._documents[digest] = read_document(self._layout, blob_name(self._digest(descriptor)))
        return self._documents[digest]

    def _check_blob(self, descriptor: _Descriptor) -> bool:
        """Compare a blob with its digest and size; False, with a finding, if it is another."""
        digest = descriptor.digest
        known = self._blobs.get((digest, descriptor.size))
        if known is not None:
            return known
        findings = list(self._judge_blob(descriptor))
        for finding in findings:
            self.failures.add(finding)
        self._remember(digest, descriptor.size, not findings)
        return not findings

    def _remember(self, digest: str, size: int, is_right: bool) -> None:
        if len(self._blobs) >= _MAX_BLOBS:
            raise LayerError("layout-invalid", f"over {_MAX_BLOBS} blobs", "no honest image has as many")
        self._blobs[digest, size] = is_right

    def _judge_blob(self, descriptor: _Descriptor) -> Iterator[Finding]:
        digest = self._digest(descriptor)
        shown = str(digest)
        file = self._layout.open(blob_name(digest))
        if file is None:
            yield Finding("blob-digest", shown, "blob", "none", f"{descriptor.size} bytes")
            return
        found, size = _measure(file)
        if size != descriptor.size:
            yield Finding("blob-digest", shown, "size", str(size), str(descriptor.size))
        if found != digest:
            yield Finding("blob-digest", shown, "digest", str(found), shown)

    def _is_there(self, descriptor: _Descriptor) -> bool:
        return self._layout.open(blob_name(self._digest(descriptor))) is not None

    def _digest(self, descriptor: _Descriptor) -> Digest:
        try:
            return parse_digest(descriptor.digest)
        except ValueError as error:
            raise LayerError(
                "layout-invalid",
                f"{printable(descriptor.digest)} is no sha256 digest",
                "other digests are not supported",
            ) from error

    def compare(self, expectation: Expectation) -> None:
        """Hold the layout against what was expected: one of its blobs, or a layer's diff_id, has to be that."""
        wanted = {expectation.either or expectation.digest, expectation.diff_id} - {""}
        known = {digest for digest, _ in self._blobs}
        for facts in self.layers.values():
            if facts is not None:
                known |= {facts.diff_id, facts.key}
        if not wanted & known:
            found = f"{len(self._blobs)} blobs, none of which is that"
            self.failures.add(
                Finding("unexpected-digest", "", "digests", found, expectation.either or expectation.digest)
            )


def _measure(file: Readable) -> tuple[Digest, int]:
    sha, size = hashlib.sha256(), 0
    while piece := file.read(_PIECE_BYTES):
        sha.update(piece)
        size += len(piece)
    return Digest(sha.hexdigest()), size


def _is_named(descriptor: _Descriptor, tag: str) -> bool:
    notes = descriptor.annotations or {}
    return any(notes.get(name, "") == tag or notes.get(name, "").endswith(":" + tag) for name in _NAMES)


def _decode(data: bytes, kind: type[_Document], name: str) -> _Document:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise LayerError(
            "layout-invalid", f"{printable(name)} is no such document: {error}", "make the layout anew"
        ) from error

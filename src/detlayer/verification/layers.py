"""Check a finished layer by one audit, and compare it with what was expected."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from detlayer.checks.audit import audit
from detlayer.checks.findings import Finding
from detlayer.checks.layer_diff import Run, diff_layers
from detlayer.errors import ConfigError, FormatError, printable
from detlayer.filesystem import is_file
from detlayer.images.files import open_file, read_bounded
from detlayer.layer.formats import image_archive, quoted
from detlayer.layer.writer import ANNOTATION_PREFIX
from detlayer.oci.ports import Readable
from detlayer.oci.types import MAX_DOCUMENT_BYTES, parse_digest
from detlayer.verification.options import VerifyOptions
from detlayer.verification.report import LayerFacts, TargetReport, divide, facts_of

Opener = Callable[[], AbstractContextManager[Readable]]


@dataclass(frozen=True, slots=True)
class Expectation:
    """The expected values of a layer; empty if unknown. `either` may be the digest or the diff_id."""

    name: str
    either: str = ""
    digest: str = ""
    diff_id: str = ""
    key: str = ""
    codec_class: str = ""
    layer: Opener | None = None

    def check(self, facts: LayerFacts, opened: Opener, *, max_expansion: int) -> Iterator[Finding]:
        """Compare; yield nothing if the layer is as expected. `opened` reads it again to find where it differs."""
        if self.either:
            if self.either not in (facts.digest, facts.diff_id, facts.key):
                found = f"{facts.digest} (diff_id {facts.diff_id})"
                yield Finding("unexpected-digest", "", "digest and diff_id", found, self.either)
            return
        if self.digest == facts.digest:
            return
        if facts.diff_id == self.diff_id or (self.key and facts.key == self.key):
            found, wanted = (
                f"{one.digest}, codec class {one.codec_class or 'unknown'}; tar equal, compressor differs"
                for one in (facts, self)
            )
            yield Finding("compressor-class", "", "digest", found, wanted.partition(";")[0])
            return
        yield Finding("unexpected-digest", "", "digest", facts.digest, self.digest)
        if self.diff_id:
            yield Finding("unexpected-digest", "", "diff_id", facts.diff_id, self.diff_id)
        if self.layer is not None:
            yield from diff_layers(Run(self.name, self.layer), Run(facts.name, opened), max_expansion=max_expansion)


def parse_expectation(text: str, *, max_expansion: int = 200) -> Expectation:
    """Read `--against`: a digest, diff_id, `blake3:` key, descriptor file or layer. Raises ConfigError."""
    if text.startswith(("sha256:", "blake3:")):
        try:
            parse_digest(text.replace("blake3:", "sha256:", 1))
        except ValueError as error:
            raise _odd(text, "is not a digest (sha256: and 64 hexadecimal digits)") from error
        return Expectation(text, either=text)
    try:
        has_file = is_file(text)
    except OSError as error:
        raise _odd(text, f"can't be read: {error.strerror}") from error
    if not has_file:
        raise _odd(text, "is neither a digest nor a file")
    opened = partial(open_file, text)
    with opened() as file:
        head = file.read(1)
        if head == b"{":
            rest = read_bounded(file, MAX_DOCUMENT_BYTES)
            if rest is None:
                raise _odd(text, "is too long for a descriptor")
            return _parse_descriptor(text, head + rest)
    with opened() as file:
        report = audit(file, contents=False, keep=0, max_expansion=max_expansion)
    if report.signs.kind:
        raise _odd(text, "is an archive of an image")
    facts = facts_of(text, report)
    return Expectation(text, "", facts.digest, facts.diff_id, facts.key, facts.codec_class, opened)


def check_layer(path: str, expectation: Expectation | None, options: VerifyOptions) -> TargetReport | None:
    """Check a layer file; None if it is an archive of an OCI layout, which `check_layout` checks.

    Raises LayerError if it can't be read, or is not a layer.
    """
    opened = partial(open_file, path)
    try:
        file = opened()
    except FormatError as error:
        name = quoted(f"{path}:/{os.path.basename(path)}")
        hint = f"{error.hint}; or pack it as a file: detlayer verify {name}"
        raise FormatError(error.code, error.message, hint) from error
    with file:
        report = audit(file, profile=options.pack.profile, max_expansion=options.max_expansion)
    if report.signs.kind == "oci-archive":
        return None
    if report.signs.kind:
        raise image_archive(report.signs.kind, path, report.facts.compression)
    facts = facts_of(path, report)
    failures, advice = divide(report.findings, strict=options.strict)
    if expectation is not None:
        failures.extend(expectation.check(facts, opened, max_expansion=options.max_expansion))
    return TargetReport(path, "layer", (facts,), failures, advice)


def _parse_descriptor(name: str, data: bytes) -> Expectation:
    try:
        document: Any = json.loads(data)
        digest = str(parse_digest(document["digest"]))
        notes = document.get("annotations") or {}
        about = {key: str(notes.get(ANNOTATION_PREFIX + key, "")) for key in ("diff-id", "key", "codec-class")}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _odd(name, "is not an OCI descriptor") from error
    return Expectation(name, "", digest, about["diff-id"], about["key"], about["codec-class"])


def _odd(text: str, what: str) -> ConfigError:
    return ConfigError(
        "against-invalid", f"{printable(text)} {what}", "--against takes a digest, a descriptor (JSON) or a layer file"
    )

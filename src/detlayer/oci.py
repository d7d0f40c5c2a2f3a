"""OCI nouns: digests, descriptors, and the canonical bytes of JSON documents. Never where bytes live.

Sources: image-spec descriptor.md (descriptor, digest grammar), layer.md (media types); SPEC 7.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

MEDIA_TYPE_LAYER = "application/vnd.oci.image.layer.v1."
MEDIA_TYPE_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_LAYOUT_VERSION = "1.0.0"

_SHA256 = re.compile(r"sha256:([0-9a-f]{64})\Z")


@dataclass(frozen=True, slots=True)
class Digest:
    """A sha256 digest; `str()` gives the public form `sha256:HEX`."""

    hex: str

    def __str__(self) -> str:
        return f"sha256:{self.hex}"


def parse_digest(text: str) -> Digest:
    """Read `sha256:` and 64 lower-case hex digits; raises ValueError on anything else."""
    match = _SHA256.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a sha256 digest")
    return Digest(match[1])


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Names a blob: media type, digest, size in bytes, and annotations."""

    media_type: str
    digest: Digest
    size_bytes: int
    annotations: dict[str, str] = field(default_factory=dict)

    def to_document(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size_bytes,
        }
        if self.annotations:
            document["annotations"] = dict(sorted(self.annotations.items()))
        return document

    def to_bytes(self) -> bytes:
        return canonical_json(self.to_document())


def canonical_json(document: Any) -> bytes:
    """Encode JSON with one spelling (SPEC 7.1): keys sorted, no blanks, UTF-8, no trailing newline."""
    return msgspec.json.encode(document, order="sorted")

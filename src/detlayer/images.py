"""OCI layouts read back: index, manifests, configs, and where blobs lie (image-spec image-layout.md). Never tars.

Documents are bounded, and checked against digest and size before anything in them is believed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from detlayer.errors import IntegrityError, LayerError, printable
from detlayer.oci import Digest, parse_digest

MAX_DOCUMENT_BYTES = 16 << 20
_MAX_MANIFESTS = 1000
_TAG = "org.opencontainers.image.ref.name"


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob of a layout, as a manifest names it, and the file that should hold it."""

    digest: Digest
    size_bytes: int
    media_type: str
    path: str


@dataclass(frozen=True, slots=True)
class Image:
    """One manifest with its config. `platform` is `os/architecture[/variant]`, as far as somebody says it."""

    platform: str
    digest: Digest
    manifest: dict[str, Any]
    config: dict[str, Any]
    layers: tuple[Blob, ...]


def read_images(directory: str, tag: str = "") -> list[Image]:
    """Read the images of a layout, of one tag if it is given. Raises LayerError and IntegrityError."""
    index = _decode(_read(os.path.join(directory, "index.json")), f"{directory}/index.json")
    found = [one for one in _list(index, "manifests") if not tag or _annotation(one) == tag]
    if not found:
        what = f"no image with the tag {printable(tag)}" if tag else "no image"
        tags = sorted({_annotation(one) for one in _list(index, "manifests")} - {""})
        hint = f"it has {', '.join(map(printable, tags[:10]))}" if tags else "its index.json names no manifest"
        raise LayerError("layout-image", f"{printable(directory)} has {what}", hint)
    seen: set[Digest] = set()
    return [image for one in found for image in _images(directory, one, 3, seen)]


def _images(directory: str, descriptor: dict[str, Any], depth: int, seen: set[Digest]) -> Iterator[Image]:
    """Yield the images that a descriptor leads to, each once: indexes that name one image often would never end."""
    blob = _blob(directory, descriptor)
    if blob.digest in seen:
        return
    seen.add(blob.digest)
    if len(seen) > _MAX_MANIFESTS:
        raise _invalid(f"{directory} has over {_MAX_MANIFESTS} indexes and manifests")
    document = _document(blob)
    if "manifests" in document:
        if not depth:
            raise _invalid(f"{directory}: indexes in indexes in indexes")
        for one in _list(document, "manifests"):
            yield from _images(directory, one, depth - 1, seen)
        return
    config = document.get("config")
    if not isinstance(config, dict):
        raise _invalid(f"{blob.path} is neither an index nor an image manifest")
    layers = tuple(_blob(directory, layer) for layer in _list(document, "layers"))
    config_blob = _blob(directory, config)
    # An artifact's config may be anything; what is no JSON object is compared by its digest in the manifest.
    is_config = config_blob.media_type.endswith("json")
    settings = _document(config_blob) if is_config else {}
    yield Image(_platform(descriptor, settings), blob.digest, document, settings, layers)


def _platform(descriptor: dict[str, Any], config: dict[str, Any]) -> str:
    named = descriptor.get("platform")
    said = named if isinstance(named, dict) else config
    return "/".join(str(said[key]) for key in ("os", "architecture", "variant") if said.get(key))


def _annotation(descriptor: dict[str, Any]) -> str:
    annotations = descriptor.get("annotations")
    return str(annotations.get(_TAG, "")) if isinstance(annotations, dict) else ""


def _blob(directory: str, descriptor: object) -> Blob:
    if not isinstance(descriptor, dict):
        raise _invalid(f"{directory}: something that is no descriptor")
    size = descriptor.get("size")
    try:
        digest = parse_digest(str(descriptor.get("digest")))
    except ValueError as error:
        raise _invalid(f"{directory}: {error}") from error
    if not isinstance(size, int) or size < 0:
        raise _invalid(f"{directory}: the descriptor of {digest} has no size")
    path = os.path.join(directory, "blobs", "sha256", digest.hex)
    return Blob(digest, size, str(descriptor.get("mediaType", "")), path)


def _document(blob: Blob) -> dict[str, Any]:
    data = _read(blob.path)
    if len(data) != blob.size_bytes or hashlib.sha256(data).hexdigest() != blob.digest.hex:
        raise IntegrityError(
            "blob-digest", f"{printable(blob.path)} does not hold {blob.digest}", "fetch or make the layout again"
        )
    return _decode(data, blob.path)


def _read(path: str) -> bytes:
    try:
        # Not blocking: a FIFO of that name must not hold us up.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _invalid(f"{path} is no regular file")
            data = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise LayerError(
            "input-unreadable", f"{printable(path)}: {error.strerror}", "is it an OCI layout, and complete?"
        ) from error
    if len(data) > MAX_DOCUMENT_BYTES:
        raise _invalid(f"{path} has over {MAX_DOCUMENT_BYTES} bytes")
    return data


def _decode(data: bytes, where: str) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _invalid(f"{where}: {error}") from error
    if not isinstance(document, dict):
        raise _invalid(f"{where} is no JSON object")
    return document


def _list(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = document.get(key)
    if not isinstance(found, list) or len(found) > _MAX_MANIFESTS or not all(isinstance(one, dict) for one in found):
        raise _invalid(f"a document without a list of {key}")
    return found


def _invalid(what: str) -> LayerError:
    return LayerError("layout-invalid", printable(what), "fetch or make the layout again")

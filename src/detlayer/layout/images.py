"""The images of an OCI layout: index, manifests, configs, and the layers that they name. Never tars.

Documents are checked against digest and size before anything in them is believed. Media types are those of image-spec
and Docker.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import msgspec

from detlayer.errors import IntegrityError, LayerError, TreeError, printable
from detlayer.layout.file import OpenFile
from detlayer.layout.place import MAX_DOCUMENT_BYTES, Archive, Directory, Place, blob_name, read_document
from detlayer.oci import Descriptor, Digest, parse_digest

_ARCHIVES = {"oci:": False, "oci-archive:": True}
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
_HEX = re.compile("[0-9a-f]{64}")
_MAX_DEPTH = 8
_MAX_BLOBS = 20_000
_PIECE_BYTES = 1 << 20
_Document = TypeVar("_Document")


@dataclass(frozen=True, slots=True)
class Blob(Descriptor):
    """A blob as a stranger's descriptor names it. `platform` is `os/architecture[/variant]`, as far as that says it."""

    platform: str = ""

    @property
    def is_index(self) -> bool:
        return self.media_type in _INDEXES

    @property
    def is_config(self) -> bool:
        """Whether it is the config of an image; artifacts have others."""
        return self.media_type in _CONFIGS

    @property
    def is_layer(self) -> bool:
        """Whether it is a tar to unpack; what attestations call layers is not."""
        return self.media_type.startswith(_LAYERS)

    @property
    def is_foreign(self) -> bool:
        """Whether it may lie elsewhere."""
        return any(word in self.media_type for word in _FOREIGN)

    @property
    def may_be_document(self) -> bool:
        """Whether it is an index or a manifest, as far as its media type tells."""
        return not self.media_type or self.is_index or self.media_type in _MANIFESTS

    @property
    def tag(self) -> str:
        return self.annotations.get(_NAMES[0], "")

    def is_named(self, tag: str) -> bool:
        names = [self.annotations.get(name, "") for name in _NAMES]
        return any(name == tag or name.endswith(":" + tag) for name in names)


@dataclass(frozen=True, slots=True)
class Image:
    """One manifest. `config_data` is None if the config is no JSON, or could not be had."""

    blob: Blob
    manifest: dict[str, Any]
    config: Blob
    config_data: bytes | None
    layers: tuple[Blob, ...]

    def settings(self) -> dict[str, Any]:
        """Read the config; empty if it is no JSON. Raises LayerError."""
        return {} if self.config_data is None else _decode(self.config_data, str(self.config.digest))

    def diff_ids(self) -> list[str]:
        """Say what the config of an image says of its layers; raises LayerError."""
        return _convert(self.settings(), _Config, str(self.config.digest)).rootfs.diff_ids

    def platform(self) -> str:
        """Name it as `os/architecture[/variant]`, by its descriptor or by its config; raises LayerError."""
        return self.blob.platform or _platform(self.settings())


class Measure(NamedTuple):
    """What there is instead of a blob, or as it."""

    digest: Digest
    size_bytes: int


Read = Callable[[Blob], bytes | None]


@dataclass(frozen=True, slots=True)
class _Walk:
    """What was seen on the way through a layout. A blob under another media type or size is not the same again."""

    read: Read
    # Digest, media type, size and platform of documents; of what was only named, and may be a manifest, less.
    _seen: set[tuple[Digest, str | None, int, str]] = field(default_factory=set)
    # What a document was, by its digest and size, and whether it was called an index: None if it was one.
    found: dict[tuple[Digest, int, bool], Image | None] = field(default_factory=dict)

    def enter(self, blob: Blob) -> bool:
        """Tell whether a document is to be followed."""
        place = (blob.digest, blob.media_type, blob.size_bytes, blob.platform)
        return place not in self._seen and self._add(place)

    def count(self, blob: Blob) -> None:
        """Count a blob that is only named."""
        self._add((blob.digest, None, 0, ""))

    def _add(self, place: tuple[Digest, str | None, int, str]) -> bool:
        self._seen.add(place)
        if len(self._seen) > _MAX_BLOBS:
            raise LayerError("layout-invalid", f"over {_MAX_BLOBS} blobs", "no honest image has as many")
        return True


class Layout:
    """A layout to read, blob by blob."""

    def __init__(self, path: str, place: Place) -> None:
        self._path = path
        self._place = place

    def manifests(self) -> list[Blob]:
        """Read what index.json names; raises TreeError if there is none."""
        file = self._place.open("index.json")
        if file is None and self._place.holds("index.json"):
            raise _invalid(f"{self._path}/index.json is no regular file")
        if file is None:
            raise TreeError(
                "layout-missing",
                f"{printable(self._path)} has no index.json",
                "name an OCI layout: oci:DIR or oci-archive:FILE",
            )
        return _index(_decode(read_document(file, "index.json"), "index.json"), "index.json")

    def images(self, manifests: Iterable[Blob], read: Read | None = None) -> Iterator[Image | Blob]:
        """Follow indexes to the images, each once for a platform; what is neither comes as the blob that it is.

        `read` is how documents are read: it may refuse one, by None, and go on; by default it is `document`.
        """
        walk = _Walk(read or self.document)
        for blob in manifests:
            yield from self._follow(blob, walk, 0)

    def _follow(self, blob: Blob, walk: _Walk, depth: int) -> Iterator[Image | Blob]:
        if not blob.may_be_document:
            walk.count(blob)
            yield blob
            return
        if not walk.enter(blob):
            return
        if depth > _MAX_DEPTH:
            raise LayerError(
                "layout-invalid", f"indexes in indexes, over {_MAX_DEPTH} deep", "no honest image has these"
            )
        place = (blob.digest, blob.size_bytes, blob.is_index)
        if place in walk.found:  # for another platform: it is not read again
            known = walk.found[place]
            if known is not None:
                yield replace(known, blob=blob)
            return
        data = _bounded(blob, walk.read)
        if data is None:
            return
        name = str(blob.digest)
        document = _decode(data, name)
        if blob.is_index or (not blob.media_type and document.get("manifests") is not None):
            walk.found[place] = None
            for one in _index(document, name):
                yield from self._follow(one, walk, depth + 1)
            return
        manifest = _convert(document, _Manifest, name)
        config = _blob(manifest.config)
        layers = tuple(map(_blob, manifest.layers))
        for one in (config, *layers):
            walk.count(one)
        is_json = config.media_type.endswith("json")  # an artifact's may be anything
        image = Image(blob, document, config, _bounded(config, walk.read) if is_json else None, layers)
        walk.found[place] = image
        yield image

    def blobs(self) -> list[Digest]:
        """Name the blobs that are there, in order, whether or not anything leads to them; raises LayerError."""
        return [Digest(name) for name in self._place.blobs() if _HEX.fullmatch(name)]

    def has(self, digest: Digest) -> bool:
        """Tell whether there is a file for a blob."""
        file = self._place.open(blob_name(digest))
        if file is not None:
            file.close()
        return file is not None

    def open(self, digest: Digest) -> OpenFile:
        """Open a blob, unchecked; raises LayerError if it is not there."""
        file = self._place.open(blob_name(digest))
        if file is None:
            raise LayerError(
                "input-unreadable", f"{printable(self._path)} has no {blob_name(digest)}", "is the OCI layout complete?"
            )
        return file

    def measure(self, digest: Digest) -> Measure | None:
        """Read a blob through, and say what it is; None if it is not there. Raises LayerError."""
        file = self._place.open(blob_name(digest))
        if file is None:
            return None
        sha, size_bytes = hashlib.sha256(), 0
        with file:
            while piece := file.read(_PIECE_BYTES):
                sha.update(piece)
                size_bytes += len(piece)
        return Measure(Digest(sha.hexdigest()), size_bytes)

    def document(self, blob: Blob) -> bytes:
        """Read a whole blob that is what its descriptor says; raises IntegrityError if it is not, and LayerError."""
        data = read_document(self.open(blob.digest), blob_name(blob.digest))
        if len(data) != blob.size_bytes or hashlib.sha256(data).hexdigest() != blob.digest.hex:
            raise IntegrityError(
                "blob-digest",
                f"{blob_name(blob.digest)} of {printable(self._path)} does not hold {blob.digest}",
                "fetch or make the layout again",
            )
        return data


class LayoutName(NamedTuple):
    """A layout, or the image of one tag in it, as it was named."""

    path: str
    tag: str
    is_archive: bool


def name_layout(text: str) -> LayoutName | None:
    """Read `oci:DIR[:TAG]` or `oci-archive:FILE[:TAG]`; None if it is something else.

    A path that is there as a whole has no tag.
    """
    for prefix, is_archive in _ARCHIVES.items():
        if text.startswith(prefix):
            rest = text.removeprefix(prefix)
            is_there = os.path.isfile(rest) if is_archive else os.path.isdir(rest)
            path, colon, tag = rest.rpartition(":")
            return LayoutName(path, tag, is_archive) if colon and not is_there else LayoutName(rest, "", is_archive)
    return None


@contextmanager
def open_layout(name: LayoutName, *, max_expansion: int = 200) -> Iterator[Layout]:
    """Open a layout for reading; raises TreeError where there is none, LayerError for an archive that is no tar."""
    place = Archive(name.path, max_expansion=max_expansion) if name.is_archive else Directory(name.path)
    try:
        yield Layout(name.path, place)
    finally:
        place.close()


class _Descriptor(msgspec.Struct):
    digest: str
    size: int
    mediaType: str = ""
    annotations: dict[str, str] | None = None
    platform: Any = None


class _Index(msgspec.Struct):
    manifests: list[_Descriptor]


class _Manifest(msgspec.Struct):
    config: _Descriptor
    layers: list[_Descriptor] = []


class _RootFs(msgspec.Struct):
    diff_ids: list[str] = []


class _Config(msgspec.Struct):
    rootfs: _RootFs


def _decode(data: bytes, name: str) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _invalid(f"{name} is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise _invalid(f"{name} is no JSON object")
    return document


def _convert(document: dict[str, Any], kind: type[_Document], name: str) -> _Document:
    try:
        return msgspec.convert(document, kind)
    except msgspec.MsgspecError as error:
        raise _invalid(f"{name} is no such document: {error}") from error


def _index(document: dict[str, Any], name: str) -> list[Blob]:
    return list(map(_blob, _convert(document, _Index, name).manifests))


def _blob(descriptor: _Descriptor) -> Blob:
    try:
        digest = parse_digest(descriptor.digest)
    except ValueError as error:
        raise LayerError(
            "layout-invalid", f"{printable(descriptor.digest)} is no sha256 digest", "other digests are not supported"
        ) from error
    if descriptor.size < 0:
        raise _invalid(f"the descriptor of {digest} has no size")
    platform = _platform(descriptor.platform) if isinstance(descriptor.platform, dict) else ""
    return Blob(descriptor.mediaType, digest, descriptor.size, descriptor.annotations or {}, platform)


def _platform(document: dict[str, Any]) -> str:
    return "/".join(str(document[key]) for key in ("os", "architecture", "variant") if document.get(key))


def _bounded(blob: Blob, read: Read) -> bytes | None:
    if blob.size_bytes > MAX_DOCUMENT_BYTES:
        raise LayerError(
            "document-too-long",
            f"{blob.digest} says it has {blob.size_bytes} bytes",
            f"registries refuse manifests of over {MAX_DOCUMENT_BYTES}",
        )
    return read(blob)


def _invalid(what: str) -> LayerError:
    return LayerError("layout-invalid", printable(what), "fetch or make the layout again")

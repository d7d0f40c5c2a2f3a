"""Read the images of an OCI layout: index, manifests, configs and layer descriptors. Does not read tars.

Documents are verified against digest and size before they are parsed. Supports media types of image-spec and Docker.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from detlayer.errors import IntegrityError, LayerError, TreeError, printable
from detlayer.filesystem import is_dir, is_file
from detlayer.images.files import OpenFile, unreadable
from detlayer.images.layout_files import Directory, LayoutStorage, blob_name, read_document
from detlayer.oci.documents import ConfigFacts, Document, parse_config, parse_document
from detlayer.oci.types import MAX_DOCUMENT_BYTES, Descriptor, Digest, Platform, digest_of

_ARCHIVES = {"oci:": False, "oci-archive:": True}
SAVED = "docker-archive:"
"""The prefix of archives written by `docker save` (`docker_archive`)."""
_HEX = re.compile("[0-9a-f]{64}")
_MAX_DEPTH = 8
_MAX_BLOBS = 20_000
_PIECE_BYTES = 1 << 20


class LayoutImage(msgspec.Struct, frozen=True):
    """One manifest. `config_data` is None if the config is not JSON, or not found."""

    descriptor: Descriptor
    manifest: Document
    config: Descriptor
    config_data: bytes | None

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        return self.manifest.layers

    def facts(self) -> ConfigFacts:
        """Parse the config of an image; raises LayerError."""
        if self.config_data is None or not self.config.is_config:
            return ConfigFacts(None, ())
        return parse_config(self.config_data, str(self.config.digest))

    def platform(self) -> Platform | None:
        """Return the platform from the descriptor or else the config; raises LayerError."""
        return self.descriptor.platform or self.facts().platform


class Measure(NamedTuple):
    """Actual digest and size of a blob."""

    digest: Digest
    size_bytes: int


Read = Callable[[Descriptor], bytes | None]


class _Walk(msgspec.Struct, frozen=True):
    """What a walk through a layout has visited. A blob with another media type or size is visited again."""

    read: Read
    # Documents by digest, media type, size and platform; other blobs by fewer of these.
    _seen: set[tuple[Digest, str | None, int, Platform | None]] = set()
    # Documents by digest, size and media type: None for an index.
    found: dict[tuple[Digest, int, str], LayoutImage | None] = {}

    def enter(self, blob: Descriptor) -> bool:
        """Tell whether to follow a document; False if already visited."""
        key = (blob.digest, blob.media_type, blob.size_bytes, blob.platform)
        return key not in self._seen and self._add(key)

    def count(self, blob: Descriptor) -> None:
        """Count a blob that is not followed."""
        self._add((blob.digest, None, 0, None))

    def _add(self, key: tuple[Digest, str | None, int, Platform | None]) -> bool:
        self._seen.add(key)
        if len(self._seen) > _MAX_BLOBS:
            raise LayerError("layout-invalid", f"over {_MAX_BLOBS} blobs", "do not trust this image")
        return True


class Layout:
    """A layout to read, blob by blob."""

    def __init__(self, path: str, storage: LayoutStorage) -> None:
        self._path = path
        self._storage = storage

    def index(self) -> Document:
        """Read index.json; raises TreeError if it is not found, and LayerError."""
        file = self._storage.open("index.json")
        if file is None and self._storage.holds("index.json"):
            raise _invalid(f"{self._path}/index.json is not a regular file")
        if file is None:
            raise TreeError(
                "layout-missing",
                f"{printable(self._path)} has no index.json",
                "pass an OCI layout: oci:DIR or oci-archive:FILE",
            )
        name = f"{self._path}/index.json"
        index = parse_document(read_document(file, name), name)
        if not index.is_index:
            raise _invalid(f"{name} is a manifest; expected an index")
        return index

    def manifests(self) -> tuple[Descriptor, ...]:
        """Read the descriptors in index.json; raises TreeError if it is not found, and LayerError."""
        return self.index().children

    def images(self, manifests: Iterable[Descriptor], read: Read | None = None) -> Iterator[LayoutImage | Descriptor]:
        """Follow indexes to the images, each once per platform; yields other blobs as descriptors.

        `read` reads a document, by default with `document`; it may return None to skip one.
        """
        walk = _Walk(read or self.document)
        for blob in manifests:
            yield from self._follow(blob, walk, 0)

    def _follow(self, blob: Descriptor, walk: _Walk, depth: int) -> Iterator[LayoutImage | Descriptor]:
        if blob.media_type and not blob.is_index and not blob.is_manifest:
            walk.count(blob)
            yield blob
            return
        if not walk.enter(blob):
            return
        if depth > _MAX_DEPTH:
            raise LayerError("layout-invalid", f"indexes nested over {_MAX_DEPTH} deep", "do not trust this image")
        key = (blob.digest, blob.size_bytes, blob.media_type)
        if key in walk.found:  # for another platform; do not read it again
            known = walk.found[key]
            if known is not None:
                yield replace(known, descriptor=blob)
            return
        data = _bounded(blob, walk.read)
        if data is None:
            return
        document = parse_document(data, str(blob.digest), blob.media_type)
        if document.config is None:
            walk.found[key] = None
            for one in document.children:
                yield from self._follow(one, walk, depth + 1)
            return
        for one in document.blobs:
            walk.count(one)
        config = document.config
        is_json = config.media_type.endswith("json")  # an artifact's config may be anything
        image = LayoutImage(blob, document, config, _bounded(config, walk.read) if is_json else None)
        walk.found[key] = image
        yield image

    def blobs(self) -> list[Digest]:
        """Return the digests of all blob files in order, referenced or not; raises LayerError."""
        return [Digest(name) for name in self._storage.blobs() if _HEX.fullmatch(name)]

    def find(self, digest: Digest) -> OpenFile | None:
        """Open a blob without verifying it; None if it is not found. Raises LayerError."""
        return self._storage.open(blob_name(digest))

    def has(self, digest: Digest) -> bool:
        """Tell whether a blob's file exists."""
        file = self.find(digest)
        if file is not None:
            file.close()
        return file is not None

    def open(self, digest: Digest) -> OpenFile:
        """Open a blob without verifying it; raises LayerError if it is not found."""
        file = self.find(digest)
        if file is None:
            raise LayerError(
                "input-unreadable",
                f"{printable(self._path)} has no {blob_name(digest)}",
                "build or pull the image again",
            )
        return file

    def measure(self, digest: Digest) -> Measure | None:
        """Read a blob and compute its digest and size; None if it is not found. Raises LayerError."""
        file = self.find(digest)
        return None if file is None else measure(file)

    def document(self, descriptor: Descriptor) -> bytes:
        """Read and verify a whole blob; raises IntegrityError and LayerError."""
        return checked_document(self.open(descriptor.digest), descriptor, self._path)


def measure(file: OpenFile) -> Measure:
    """Read the rest of a file, compute its digest and size, and close it; raises LayerError."""
    sha, size_bytes = hashlib.sha256(), 0
    with file:
        while piece := file.read(_PIECE_BYTES):
            sha.update(piece)
            size_bytes += len(piece)
    return Measure(Digest(sha.hexdigest()), size_bytes)


def checked_document(file: OpenFile, descriptor: Descriptor, path: str) -> bytes:
    """Read and verify a whole file, and close it; raises IntegrityError."""
    name = blob_name(descriptor.digest)
    data = read_document(file, name)
    if len(data) != descriptor.size_bytes or digest_of(data) != descriptor.digest:
        raise IntegrityError(
            "blob-digest",
            f"{name} of {printable(path)} does not match {descriptor.digest}",
            "build or pull the image again",
        )
    return data


class LayoutName(NamedTuple):
    """A layout, or the image of one of its tags, as the user wrote it."""

    path: str
    tag: str
    is_archive: bool


def name_layout(text: str) -> LayoutName | None:
    """Parse `oci:DIR[:TAG]` or `oci-archive:FILE[:TAG]`; None if it is something else.

    If the whole path exists, it has no tag.
    """
    for prefix, is_archive in _ARCHIVES.items():
        if text.startswith(prefix):
            path, tag = split_name(text.removeprefix(prefix), is_file if is_archive else is_dir)
            return LayoutName(path, tag, is_archive)
    return None


def split_name(text: str, is_there: Callable[[str], bool]) -> tuple[str, str]:
    """Split a path from a name in it, after the longest existing path, or else before the first `:`."""
    path = text
    while not _ask(is_there, path):
        path, colon, _ = path.rpartition(":")
        if not colon:
            path, _, name = text.partition(":")
            return path, name
    return path, text[len(path) + 1 :]


def _ask(is_there: Callable[[str], bool], path: str) -> bool:
    try:
        return is_there(path)
    except OSError as error:
        raise unreadable(path, error) from error


@contextmanager
def open_layout(name: LayoutName, *, max_expansion: int = 200) -> Iterator[Layout]:
    """Open a layout for reading; raises TreeError if it is not found, LayerError for an invalid tar."""
    storage: LayoutStorage
    if name.is_archive:
        from detlayer.images.archive_files import Archive  # reads tars; not needed for directories

        storage = Archive(name.path, max_expansion=max_expansion)
    else:
        storage = Directory(name.path)
    try:
        yield Layout(name.path, storage)
    finally:
        storage.close()


def _bounded(blob: Descriptor, read: Read) -> bytes | None:
    if blob.size_bytes > MAX_DOCUMENT_BYTES:
        raise LayerError(
            "document-too-long",
            f"{blob.digest} has {blob.size_bytes} bytes by its descriptor",
            f"registries reject manifests of over {MAX_DOCUMENT_BYTES} bytes: remove large annotations",
        )
    return read(blob)


def _invalid(what: str) -> LayerError:
    return LayerError("layout-invalid", printable(what), "build or pull the image again")

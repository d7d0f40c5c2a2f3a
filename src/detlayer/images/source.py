"""Open an image to push from an OCI layout, an OCI archive or a `docker save` archive.

Nothing is extracted or copied. Documents are verified here; the registry verifies blobs on upload. Blobs skipped by
`detlayer pull --manifests-only` are found through an annotation of the descriptor in index.json, which names their
repository.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import msgspec

from detlayer.errors import ConfigError, FormatError, IntegrityError, LayerError, printable
from detlayer.images.files import OpenFile, layer_type, open_file
from detlayer.images.layout import SAVED, Layout, LayoutName, checked_document, measure, name_layout, open_layout
from detlayer.images.layout_files import blob_name
from detlayer.layer.formats import HEAD_BYTES, is_layer, quoted
from detlayer.oci.documents import Document, parse_document
from detlayer.oci.ports import Body
from detlayer.oci.references import RepositoryName, parse_repository
from detlayer.oci.types import MEDIA_TYPE_MANIFEST, Descriptor, Digest, canonical_json, digest_of

SOURCE = "dev.detlayer.source"
"""The annotation of a descriptor in index.json that names the repository of the missing blobs."""
_NOTHING = b"{}"
EMPTY = Descriptor("application/vnd.oci.empty.v1+json", digest_of(_NOTHING), len(_NOTHING))
"""The placeholder for a missing config (image-spec manifest.md)."""
_FORMS = "oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REPOSITORY:TAG], or a layer file with --as-blob"

Find = Callable[[Digest], OpenFile | None]


class FileBody(msgspec.Struct, frozen=True):
    """A blob in a file (`oci.ports.Body`). Readers yield at most `size_bytes` bytes."""

    digest: Digest
    size_bytes: int
    find: Find

    def open(self, offset: int = 0) -> OpenFile:
        """Open for reading from `offset`; raises LayerError, also while reading a file that is too short."""
        file = self.find(self.digest)
        if file is None:
            raise LayerError("input-changed", f"{self.digest} was removed during use", "build or pull the image again")
        with file:
            return file.stretch(offset, self.size_bytes - offset)


class EmptyBody(msgspec.Struct, frozen=True):
    """The empty config of an artifact (`oci.ports.Body`)."""

    size_bytes: int = EMPTY.size_bytes

    def open(self, offset: int = 0) -> io.BytesIO:
        return io.BytesIO(_NOTHING[offset:])


class OpenedImage:
    """An image whose blobs are files (`oci.ports.ImageSource`). Thread-safe.

    `root` is the index or manifest to push, `origin` the repository of the missing blobs.
    """

    def __init__(self, path: str, find: Find, root: Document, origin: RepositoryName | None = None) -> None:
        self.path = path
        self._find = find
        self.root = root
        self.origin = origin

    def document(self, descriptor: Descriptor) -> bytes:
        """Read and verify a document; raises IntegrityError and LayerError."""
        if descriptor.digest == self.root.digest and descriptor.size_bytes == len(self.root.data):
            return self.root.data
        file = self._find(descriptor.digest)
        if file is None:
            raise LayerError(
                "input-unreadable",
                f"{printable(self.path)} has no {blob_name(descriptor.digest)}",
                "the image is incomplete: build or pull it again",
            )
        return checked_document(file, descriptor, self.path)

    def body(self, descriptor: Descriptor) -> Body | None:
        """Return a blob's bytes; None if it is not local. Raises IntegrityError for a wrong size."""
        file = self._find(descriptor.digest)
        if file is None:
            return None
        with file:
            size_bytes = file.size_bytes
        if size_bytes != descriptor.size_bytes:
            raise IntegrityError(
                "blob-digest",
                f"{blob_name(descriptor.digest)} of {printable(self.path)} has {size_bytes} bytes, "
                f"expected {descriptor.size_bytes}",
                "build or pull the image again",
            )
        return FileBody(descriptor.digest, size_bytes, self._find)


class OpenedFile(OpenedImage):
    """A layer file (`blob`) with a generated artifact manifest."""

    def __init__(self, path: str, find: Find, root: Document, blob: Descriptor) -> None:
        super().__init__(path, find, root)
        self.blob = blob

    def body(self, descriptor: Descriptor) -> Body | None:
        return EmptyBody() if descriptor == EMPTY else super().body(descriptor)


@contextmanager
def open_image(
    text: str, *, whole_index: bool = False, as_blob: bool = False, max_expansion: int = 200
) -> Iterator[OpenedImage]:
    """Open `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]` or `docker-archive:FILE[:REPOSITORY:TAG]`.

    As with crane, a layout without a tag must have one image; `whole_index` selects its index.json instead. With
    `as_blob`, `text` is the path of a layer file. Raises ConfigError, TreeError, LayerError and IntegrityError.
    """
    name = None if as_blob else name_layout(text)
    if whole_index and (name is None or name.tag):
        raise ConfigError(
            "image-index", f"{printable(text)} is not a whole layout", "remove the tag: oci:DIR or oci-archive:FILE"
        )
    if as_blob:
        yield _open_file(text)
    elif name is not None:
        with open_layout(name, max_expansion=max_expansion) as layout:
            yield _open_all(layout, name) if whole_index else _open_one(layout, name)
    elif text.startswith(SAVED):
        from detlayer.images.docker_archive import open_saved

        with open_saved(text, max_expansion=max_expansion) as saved:
            yield OpenedImage(saved.path, saved.find, saved.manifest)
    else:
        raise ConfigError("image-invalid", f"{printable(text)!r} has no known image prefix", _FORMS)


def _open_file(path: str) -> OpenedFile:
    """Wrap a layer file into an artifact (image-spec manifest.md, "Guidelines for Artifact Usage").

    Registries may delete blobs without a manifest, and a tag can only name a manifest.
    """
    with open_file(path) as file:
        head = file.read(HEAD_BYTES)
    if not is_layer(head):
        raise FormatError(
            "layer-format",
            f"{printable(path)} is not a layer; expected a tar, plain or compressed with gzip or zstd",
            f"make a layer of it: detlayer pack {quoted(path)} -o layer.tar.gz",
        )
    found = measure(open_file(path))
    blob = Descriptor(layer_type(head), found.digest, found.size_bytes)
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MEDIA_TYPE_MANIFEST,
            "artifactType": blob.media_type,
            "config": EMPTY.to_document(),
            "layers": [blob.to_document()],
        }
    )

    def find(digest: Digest) -> OpenFile | None:
        return open_file(path) if digest == blob.digest else None

    return OpenedFile(path, find, parse_document(manifest, path), blob)


def _open_all(layout: Layout, name: LayoutName) -> OpenedImage:
    index = layout.index()
    origins = {_origin(one, name.path) for one in index.children}
    return OpenedImage(name.path, layout.find, index, origins.pop() if len(origins) == 1 else None)


def _open_one(layout: Layout, name: LayoutName) -> OpenedImage:
    descriptor = _choose(layout.manifests(), name)
    if not (descriptor.is_index or descriptor.is_manifest or not descriptor.media_type):
        raise LayerError(
            "layout-image",
            f"{printable(name.path)}: {descriptor.digest} is {printable(descriptor.media_type)}, not an image",
            "push a layer file with --as-blob",
        )
    root = parse_document(layout.document(descriptor), str(descriptor.digest), descriptor.media_type)
    return OpenedImage(name.path, layout.find, root, _origin(descriptor, name.path))


def _choose(manifests: Iterable[Descriptor], name: LayoutName) -> Descriptor:
    """Select the requested image; raises LayerError unless there is exactly one."""
    known = tuple(manifests)
    exact = [one for one in known if one.tag == name.tag]
    found = {one.digest: one for one in (exact or [one for one in known if not name.tag or one.is_named(name.tag)])}
    if not name.tag:
        found = {one.digest: one for one in known}
    if len(found) == 1:
        return found.popitem()[1]
    tags = sorted({one.tag for one in known} - {""})
    listed = f"available tags: {', '.join(map(printable, tags[:10]))}" + (" and more" if len(tags) > 10 else "")
    what = f"{printable(name.path)} has {len(found) or 'no'} image{'s' * (len(found) != 1)}"
    if name.tag:
        what += f" with the tag {printable(name.tag)}"
    raise LayerError(
        "layout-image",
        what,
        listed if tags else "no image has a tag" if known else "make an image of packed layers: `detlayer image`",
    )


def _origin(descriptor: Descriptor, path: str) -> RepositoryName | None:
    text = descriptor.annotations.get(SOURCE)
    if text is None:
        return None
    try:
        return parse_repository(text)
    except ConfigError as error:
        raise LayerError(
            "layout-invalid", f"{printable(path)}: {SOURCE} of {descriptor.digest}: {error.message}", error.hint
        ) from error

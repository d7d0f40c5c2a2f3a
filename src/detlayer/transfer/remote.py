"""An image in a registry as a source to push or pull from; blobs are streamed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detlayer.errors import IntegrityError, LayerError
from detlayer.oci.documents import Document, Wanted, parse_document
from detlayer.oci.ports import Amnesia, Body, ImageSource, Memory
from detlayer.oci.references import RepositoryName
from detlayer.oci.types import Descriptor, Digest, digest_of

if TYPE_CHECKING:
    from detlayer.registry.client import Repository

_MAX_DEPTH = 8
_MAX_DOCUMENTS = 10_000
_MAX_ALL_BYTES = 128 << 20


class RemoteImage:
    """An ImageSource for a repository. Documents come from memory if possible: digests never go stale."""

    def __init__(self, repository: Repository, root: Document, memory: Memory | None = None) -> None:
        self._repository = repository
        self._memory = memory or Amnesia()
        self.root = root

    @property
    def origin(self) -> RepositoryName | None:
        return self._repository.name

    def document(self, descriptor: Descriptor) -> bytes:
        """Fetch a manifest; raises RegistryError, IntegrityError and LayerError."""
        if descriptor.digest == self.root.digest:
            return self.root.data
        return self.child(descriptor).data

    def child(self, descriptor: Descriptor) -> Document:
        """Fetch a manifest of an index by its digest; raises RegistryError, IntegrityError and LayerError."""
        known = self._memory.document(descriptor.digest)
        if known is not None:
            return parse_document(known, str(descriptor.digest), descriptor.media_type)
        document = self._repository.get_manifest(str(descriptor.digest))
        self._memory.keep_document(document.data)
        return document

    def body(self, descriptor: Descriptor) -> Body | None:
        from detlayer.registry.download import RemoteBody

        return RemoteBody(self._repository, descriptor)


def gather(source: ImageSource, root: Document) -> Wanted:
    """Read all documents of an image, children before parents, the root last.

    Raises the source's errors, LayerError for deep nesting or contradictory sizes of a blob, and IntegrityError for a
    document with a wrong digest.
    """
    found: dict[str, Document] = {}
    sizes: dict[Digest, int] = {root.digest: len(root.data)}
    read_bytes = 0

    def visit(document: Document, depth: int) -> None:
        nonlocal read_bytes
        read_bytes += len(document.data)
        if depth > _MAX_DEPTH or len(found) > _MAX_DOCUMENTS or read_bytes > _MAX_ALL_BYTES:
            raise LayerError(
                "document-invalid", f"{root.digest} has too many manifests or nested indexes", "do not trust this image"
            )
        for one in (*document.children, *document.layers, *((document.config,) if document.config else ())):
            if sizes.setdefault(one.digest, one.size_bytes) != one.size_bytes:
                raise LayerError(
                    "document-invalid",
                    f"{document.digest} gives {one.digest} {one.size_bytes} bytes, "
                    f"another document gives it {sizes[one.digest]}",
                    "build or pull the image again",
                )
        for child in document.children:
            key = str(child.digest)
            if key in found or not child.is_document:
                continue
            data = source.document(child)
            if digest_of(data) != child.digest or len(data) != child.size_bytes:
                raise IntegrityError(
                    "blob-digest", f"{child.digest} does not match its digest or size", "build or pull the image again"
                )
            visit(parse_document(data, key, child.media_type), depth + 1)
        found[str(document.digest)] = document

    visit(root, 0)
    return Wanted(tuple(found.values()))

"""State that the steps of a build share: documents, blobs in the store, and open bases. Thread-safe."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import ExitStack
from threading import RLock
from typing import TYPE_CHECKING

import msgspec

from detlayer.building.stored_traces import StoreTraces
from detlayer.errors import LayerError, UnavailableError
from detlayer.oci.documents import Document, parse_document
from detlayer.oci.ports import Body
from detlayer.oci.references import Reference, RepositoryName
from detlayer.oci.types import Descriptor, Digest, digest_of
from detlayer.store import LostBlobError, Store

if TYPE_CHECKING:
    from detlayer.images.source import OpenedImage
    from detlayer.registry.client import Registries, Repository
    from detlayer.transfer.push import Knowledge

BaseName = Reference | str
"""A reference, or a layout by its name (`oci:DIR[:TAG]`)."""


class BuildContext:
    """Closes on exit what was opened for the build. `registries` is None for a build without network."""

    def __init__(self, store: Store, registries: Callable[[], Registries] | None) -> None:
        self.store = store
        self._registries = registries
        self._opened: Registries | None = None
        self._knowledge: Knowledge | None = None
        self.traces = StoreTraces(store)
        self._documents: dict[Digest, bytes] = {}
        self._packed: set[Digest] = set()
        self._layouts: dict[str, OpenedImage] = {}
        self._stack = ExitStack()
        self._lock = RLock()

    def __enter__(self) -> BuildContext:
        return self

    def __exit__(self, *failed: object) -> None:
        self._stack.close()

    # -- documents

    def put(self, data: bytes) -> Digest:
        """Keep a document for this run, and in the store if possible."""
        digest = digest_of(data)
        with self._lock:
            if digest in self._documents:
                return digest
            self._documents[digest] = data
        self.store.memory.keep_document(data)
        return digest

    def known(self, digest: Digest) -> bytes | None:
        """Return a document that was put in this run or an earlier one."""
        found = self._documents.get(digest)
        if found is None:
            found = self.store.memory.document(digest)
            if found is not None:
                self._documents[digest] = found
        return found

    def data(self, digest: Digest) -> bytes:
        """Return a document that an earlier step put; raises LayerError."""
        found = self.known(digest)
        if found is None:
            raise LayerError("input-changed", f"{digest} is no longer in the cache", "run the build again")
        return found

    def document(self, digest: Digest) -> Document:
        """Return an index or manifest; raises LayerError."""
        return parse_document(self.data(digest), str(digest))

    # -- bases

    def repository(self, name: RepositoryName) -> Repository:
        """Return a repository; raises UnavailableError in a build without network."""
        return self.registries.repository(name)

    @property
    def registries(self) -> Registries:
        if self._registries is None:
            raise UnavailableError(
                "offline", "a registry is needed, and the build is offline", "build once without --offline"
            )
        with self._lock:
            if self._opened is None:
                self._opened = self._registries()
            return self._opened

    @property
    def counts(self) -> tuple[int, int]:
        """The numbers of requests and bytes sent to registries."""
        if self._opened is None:
            return 0, 0
        counts = self._opened.transport.counts
        return counts.requests, counts.sent_bytes

    @property
    def knowledge(self) -> Knowledge:
        """What this build knows about registries, shared by all publish steps."""
        from detlayer.transfer.push import Knowledge

        with self._lock:
            if self._knowledge is None:
                self._knowledge = Knowledge(self.store.memory)
            return self._knowledge

    def cancel(self) -> None:
        """Cancel network requests."""
        if self._opened is not None:
            self._opened.cancel()

    @property
    def is_offline(self) -> bool:
        return self._registries is None

    def layout(self, name: str) -> OpenedImage:
        """Open a base in a layout, once; raises TreeError and LayerError."""
        from detlayer.images.source import open_image

        with self._lock:
            if name not in self._layouts:
                self._layouts[name] = self._stack.enter_context(open_image(name))
            return self._layouts[name]

    def base_source(self, base: BaseName) -> BaseSource:
        """Return the source of a base's documents and blobs."""
        return BaseSource(self, base)

    # -- blobs

    def packed(self, digest: Digest) -> None:
        """Record that a layer of this build is in the store, and nowhere else."""
        self._packed.add(digest)

    def body(self, blob: Descriptor) -> Body | None:
        """Return a blob of the store; None if it is missing, corrupt or has another size.

        Raises LostBlobError if it is a layer of this build, which was in the store.
        """
        body = self.store.blobs.body(blob.digest)
        if body is not None and body.size_bytes == blob.size_bytes:
            return body
        data = self._documents.get(blob.digest)  # kept in memory if the store is not writable
        if data is None and blob.digest in self._packed:
            raise LostBlobError(
                "cache-vanished", f"{blob.digest} is no longer in the cache", "build again", blob.digest
            )
        return BytesBody(data) if data is not None else None


class BytesBody(msgspec.Struct, frozen=True):
    """A small blob in memory (`oci.ports.Body`)."""

    data: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def open(self, offset: int = 0) -> io.BytesIO:
        return io.BytesIO(self.data[offset:])


class BaseSource:
    """The documents and blobs of a base (`oci.ports.ImageSource`), from the cache, the layout, or the registry."""

    def __init__(self, context: BuildContext, base: BaseName) -> None:
        self._context = context
        self._base = base

    def document(self, descriptor: Descriptor) -> bytes:
        """Read a manifest or config and verify its digest; raises RegistryError, LayerError, IntegrityError."""
        known = self._context.known(descriptor.digest)
        if known is not None:
            return known
        if isinstance(self._base, str):
            data = self._context.layout(self._base).document(descriptor)
        elif descriptor.is_config:
            from detlayer.transfer.pull import fetch_blob  # imported late: most builds fetch nothing

            data = fetch_blob(self._context.repository(self._base.name), descriptor, self._context.store.memory)
        else:
            data = self._context.repository(self._base.name).get_manifest(str(descriptor.digest)).data
        self._context.put(data)
        return data

    def body(self, descriptor: Descriptor) -> Body | None:
        """Return the body of a layer; None if the layout lacks it."""
        from detlayer.registry.download import RemoteBody

        found = self._context.body(descriptor)
        if found is not None:
            return found
        if isinstance(self._base, str):
            layout = self._context.layout(self._base)
            body = layout.body(descriptor)
            if body is None and layout.origin is not None:
                return RemoteBody(self._context.repository(layout.origin), descriptor)
            return body
        return RemoteBody(self._context.repository(self._base.name), descriptor)

    @property
    def origin(self) -> RepositoryName | None:
        """The repository that has the blobs which are not local."""
        if isinstance(self._base, str):
            return self._context.layout(self._base).origin
        return self._base.name


class BuiltSource:
    """An image of this build, as a `transfer.push.PushSource`."""

    def __init__(self, context: BuildContext, root: Document, base: BaseName | None) -> None:
        self._context = context
        self.root = root
        self._source = context.base_source(base) if base is not None else None

    @property
    def origin(self) -> RepositoryName | None:
        return self._source.origin if self._source is not None else None

    def document(self, descriptor: Descriptor) -> bytes:
        return self._context.data(descriptor.digest)

    def body(self, descriptor: Descriptor) -> Body | None:
        found = self._context.body(descriptor)
        if found is not None or self._source is None:
            return found
        return self._source.body(descriptor)

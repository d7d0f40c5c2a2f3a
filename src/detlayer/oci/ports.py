"""Where the documents and blobs of images come from, what is known of registries, and who is told of transfers."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple, Protocol

from detlayer.oci.references import RepositoryName
from detlayer.oci.types import Descriptor, Digest


class Readable(Protocol):
    """Something to read from, to the end."""

    def read(self, size: int, /) -> bytes:
        """Read up to `size` bytes, none at the end."""


class Body(Protocol):
    """A blob's bytes, which can be opened more than once, and from an offset: an upload may have to start again."""

    @property
    def size_bytes(self) -> int: ...

    def open(self, offset: int = 0) -> AbstractContextManager[Readable]:
        """Open for reading from `offset`; raises an error that names the blob."""


class ImageSource(Protocol):
    """Where the manifests and blobs of an image come from: a layout, an archive, a registry."""

    def document(self, descriptor: Descriptor) -> bytes:
        """Read a document whole, held against its digest and size; raises IntegrityError and LayerError."""

    def body(self, descriptor: Descriptor) -> Body | None:
        """Name a blob's bytes; None if they are not here."""


Proof = Literal["uploaded", "mounted", "seen", "inferred"]


class BlobLocation(NamedTuple):
    """A repository that is known to have had a blob or manifest, and how that is known."""

    name: RepositoryName
    digest: Digest
    proof: Proof


class Session(NamedTuple):
    """An upload that was begun: the newest Location of the registry, and how many bytes it has confirmed."""

    location: str
    offset: int


class Memory(Protocol):
    """What is remembered of registries from run to run: positive facts of bounded age, open uploads, documents.

    It may forget anything at any time, and never fails: a memory that can't be written is one that forgets. `principal`
    tells whom the registry took us for, without the secret. Safe to use from several threads and processes.
    """

    def locations(self, registry: str, principal: str, digests: Collection[Digest]) -> list[BlobLocation]:
        """Say which repositories of a registry are known to have any of these."""

    def remember(self, principal: str, locations: Collection[BlobLocation]) -> None:
        """Keep facts, as of now."""

    def forget(self, principal: str, name: RepositoryName, digests: Collection[Digest] | None = None) -> None:
        """Drop facts that proved wrong; without `digests` all facts of the repository."""

    def session(self, principal: str, name: RepositoryName, digest: Digest) -> Session | None:
        """Say what is known of an upload that did not end."""

    def keep_session(self, principal: str, name: RepositoryName, digest: Digest, session: Session | None) -> None:
        """Keep the newest state of an upload; None when it is over."""

    def document(self, digest: Digest) -> bytes | None:
        """Recall a manifest, an index or a config: its bytes are what the digest says."""

    def keep_document(self, data: bytes) -> None:
        """Keep a document under its digest."""


class Amnesia:
    """A memory that forgets everything (`--no-cache`)."""

    def locations(self, registry: str, principal: str, digests: Collection[Digest]) -> list[BlobLocation]:
        return []

    def remember(self, principal: str, locations: Collection[BlobLocation]) -> None:
        return

    def forget(self, principal: str, name: RepositoryName, digests: Collection[Digest] | None = None) -> None:
        return

    def session(self, principal: str, name: RepositoryName, digest: Digest) -> Session | None:
        return None

    def keep_session(self, principal: str, name: RepositoryName, digest: Digest, session: Session | None) -> None:
        return

    def document(self, digest: Digest) -> bytes | None:
        return None

    def keep_document(self, data: bytes) -> None:
        return


class TransferReporter(Protocol):
    """Is told of transfers and of what was done; called from several threads."""

    def transfer(self, name: str, total_bytes: int) -> None:
        """Say that a blob of this size is on its way."""

    def advance(self, name: str, count_bytes: int) -> None:
        """Say that so many more bytes of it went; a negative number takes back what has to be sent again."""

    def done(self, name: str, how: str) -> None:
        """Say that it has arrived, and how: `uploaded`, `mounted`, `pulled`."""

    def warning(self, code: str, message: str) -> None:
        """Say something that the user should know though it is no error."""


class SilentTransfers:
    """A reporter of transfers that says nothing."""

    def transfer(self, name: str, total_bytes: int) -> None:
        return

    def advance(self, name: str, count_bytes: int) -> None:
        return

    def done(self, name: str, how: str) -> None:
        return

    def warning(self, code: str, message: str) -> None:
        return

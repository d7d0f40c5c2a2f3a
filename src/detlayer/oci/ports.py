"""Interfaces for sources of documents and blobs, for facts about registries, and for progress reports."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple, Protocol

from detlayer.oci.references import RepositoryName
from detlayer.oci.types import Descriptor, Digest


class Readable(Protocol):
    """A stream to read to its end."""

    def read(self, size: int, /) -> bytes:
        """Read up to `size` bytes, none at the end."""


class Body(Protocol):
    """The bytes of a blob; can be opened repeatedly and from an offset, since an upload may restart."""

    @property
    def size_bytes(self) -> int: ...

    def open(self, offset: int = 0) -> AbstractContextManager[Readable]:
        """Open for reading from `offset`; raises an error that names the blob."""


class ImageSource(Protocol):
    """A source of the manifests and blobs of an image: a layout, an archive, a registry."""

    def document(self, descriptor: Descriptor) -> bytes:
        """Read and verify a document; raises IntegrityError and LayerError."""

    def body(self, descriptor: Descriptor) -> Body | None:
        """Return a blob's bytes; None if they are not local."""


Proof = Literal["uploaded", "mounted", "seen", "inferred"]


class BlobLocation(NamedTuple):
    """A repository known to have had a blob or manifest, with the proof."""

    name: RepositoryName
    digest: Digest
    proof: Proof


class Session(NamedTuple):
    """An open upload: the latest Location from the registry, and the number of confirmed bytes."""

    location: str
    offset: int


class Memory(Protocol):
    """Facts about registries kept between runs: existing blobs, of bounded age, open uploads, documents.

    It may drop facts at any time and never fails: one that cannot be written drops them. `principal` is the user
    name in the registry, without secrets. Safe for several threads and processes.
    """

    def locations(self, registry: str, principal: str, digests: Collection[Digest]) -> list[BlobLocation]:
        """Return the repositories of a registry known to have any of these digests."""

    def remember(self, principal: str, locations: Collection[BlobLocation]) -> None:
        """Store facts with the current time."""

    def forget(self, principal: str, name: RepositoryName, digests: Collection[Digest] | None = None) -> None:
        """Drop wrong facts; without `digests`, all facts of the repository."""

    def session(self, principal: str, name: RepositoryName, digest: Digest) -> Session | None:
        """Return an open upload; None if there is none."""

    def keep_session(self, principal: str, name: RepositoryName, digest: Digest, session: Session | None) -> None:
        """Store the latest state of an upload; None removes it."""

    def document(self, digest: Digest) -> bytes | None:
        """Return a stored manifest, index or config; its bytes match the digest."""

    def keep_document(self, data: bytes) -> None:
        """Store a document under its digest."""


class Amnesia:
    """A memory that stores nothing (`--no-cache`)."""

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
    """Receives the progress of transfers; called from several threads."""

    def transfer(self, name: str, total_bytes: int) -> None:
        """Report the start of a blob's transfer."""

    def advance(self, name: str, count_bytes: int) -> None:
        """Report transferred bytes; negative if they must be sent again."""

    def done(self, name: str, how: str) -> None:
        """Report the end of a transfer and its kind: `uploaded`, `mounted`, `pulled`."""

    def warning(self, code: str, message: str) -> None:
        """Report a warning."""


class SilentTransfers:
    """A reporter of transfers that prints nothing."""

    def transfer(self, name: str, total_bytes: int) -> None:
        return

    def advance(self, name: str, count_bytes: int) -> None:
        return

    def done(self, name: str, how: str) -> None:
        return

    def warning(self, code: str, message: str) -> None:
        return

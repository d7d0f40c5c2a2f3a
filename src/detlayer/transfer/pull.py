"""Implement `resolve` and `pull`: resolve a reference, and fetch its blobs into an OCI layout, verified."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from typing import Any, Protocol

import msgspec

from detlayer.errors import IntegrityError, LayerError, NotFoundError
from detlayer.images.source import SOURCE
from detlayer.oci.documents import Document, Wanted, parse_config
from detlayer.oci.platforms import listed, select
from detlayer.oci.ports import Amnesia, Memory, SilentTransfers, TransferReporter
from detlayer.oci.references import Reference
from detlayer.oci.types import CONFIG_TYPES, MAX_DOCUMENT_BYTES, Descriptor, Platform
from detlayer.registry.client import Registries, Repository
from detlayer.registry.download import RemoteReader
from detlayer.transfer.remote import RemoteImage, gather
from detlayer.transfer.workers import Job, work_off

_PIECE_BYTES = 1 << 20


class Resolved(msgspec.Struct, frozen=True):
    """A resolved reference: the document, and the platforms of an index or image."""

    reference: Reference
    document: Document
    platform: Platform | None
    platforms: tuple[Platform, ...]

    def to_document(self) -> dict[str, Any]:
        return {
            "reference": str(self.reference),
            "digest": str(self.document.digest),
            "mediaType": self.document.media_type,
            "size": len(self.document.data),
            "platforms": [str(one) for one in self.platforms],
        }


def resolve_reference(
    reference: Reference,
    registries: Registries,
    *,
    platform: Platform | None = None,
    memory: Memory | None = None,
    reporter: TransferReporter | None = None,
) -> Resolved:
    """Resolve a reference; with a platform, to that manifest of an index.

    Raises RegistryError, including `platform-missing` if no manifest matches; IntegrityError and LayerError.
    """
    memory, reporter = memory or Amnesia(), reporter or SilentTransfers()
    repository = registries.repository(reference.name)
    document = repository.get_manifest(reference.target)
    memory.keep_document(document.data)
    if not document.is_index:
        try:
            own = _own_platform(repository, document, memory)
        except (LayerError, IntegrityError, NotFoundError) as error:
            if platform is not None:
                raise
            # The digest is known anyway, and a copy does not need to understand the bytes.
            reporter.warning("platform-unknown", f"can't determine the platform of {reference}: {error.message}")
            own = None
        if platform is not None and (own is None or select([document.descriptor(own)], platform) is None):
            raise _no_platform(reference, platform, [own] if own is not None else [])
        return Resolved(reference, document, own, (own,) if own is not None else ())
    offered = listed(document.children)
    if platform is None:
        return Resolved(reference, document, None, tuple(offered))
    chosen = select(document.children, platform)
    if chosen is None:
        raise _no_platform(reference, platform, offered)
    data = RemoteImage(repository, document, memory).child(chosen)
    return Resolved(reference, data, chosen.platform, (chosen.platform,) if chosen.platform is not None else ())


def _own_platform(repository: Repository, document: Document, memory: Memory) -> Platform | None:
    """Read the platform of an image without an index from its config."""
    config = document.config
    if config is None or config.media_type not in CONFIG_TYPES:
        return None  # an artifact
    return parse_config(fetch_blob(repository, config, memory), str(config.digest)).platform


def fetch_blob(repository: Repository, blob: Descriptor, memory: Memory) -> bytes:
    """Fetch a small blob, such as a config, into memory; raises RegistryError and IntegrityError."""
    known = memory.document(blob.digest)
    if known is not None:
        return known
    if blob.size_bytes > MAX_DOCUMENT_BYTES:
        raise NotFoundError(
            "config-too-long",
            f"config {blob.digest} of {repository.name} has {blob.size_bytes} bytes",
            "do not trust this image; if it is yours, remove large labels and history",
        )
    with closing(RemoteReader(repository, blob)) as reader:
        data = b"".join(iter(lambda: reader.read(_PIECE_BYTES), b""))
    memory.keep_document(data)
    return data


def _no_platform(reference: Reference, platform: Platform, offered: Sequence[Platform]) -> NotFoundError:
    has = ", ".join(sorted(map(str, offered))) or "no platform"
    return NotFoundError("platform-missing", f"{reference} is not for {platform}", f"available: {has}")


class Part(Protocol):
    """A blob being written to a layout, possibly resumed."""

    @property
    def offset(self) -> int:
        """The number of bytes already written."""

    def write(self, data: bytes, /) -> None:
        """Append bytes; raises OutputError."""

    def finish(self) -> None:
        """Verify size and digest, then publish the blob; raises IntegrityError and OutputError."""


class Target(Protocol):
    """A layout to pull into."""

    def has(self, descriptor: Descriptor) -> bool:
        """Tell whether a blob with this digest and size exists."""

    def part(self, descriptor: Descriptor) -> AbstractContextManager[Part]:
        """Start or resume a blob; a failed one can be resumed later. Raises OutputError."""

    def put(self, data: bytes) -> None:
        """Write a document; raises OutputError."""

    def tag(self, descriptor: Descriptor, tag: str) -> None:
        """Add an image to index.json, replacing the one with the same name; raises OutputError."""


class Pulled(msgspec.Struct, frozen=True):
    """The result of a pull: the image, and the number of blobs and bytes fetched."""

    resolved: Resolved
    blobs: int
    fetched_bytes: int

    def to_document(self) -> dict[str, Any]:
        return {**self.resolved.to_document(), "blobs": self.blobs, "fetchedBytes": self.fetched_bytes}


class PullOptions(msgspec.Struct, frozen=True):
    """Options of a pull: one platform or all, and the tag in the layout, by default that of the reference.

    With `manifests_only`, layers stay in the registry, and the layout names the repository.
    """

    tag: str = ""
    platform: Platform | None = None
    manifests_only: bool = False


def pull_image(
    reference: Reference,
    target: Target,
    registries: Registries,
    *,
    options: PullOptions | None = None,
    memory: Memory | None = None,
    reporter: TransferReporter | None = None,
) -> Pulled:
    """Pull an image into a layout.

    Skips existing blobs and resumes interrupted ones. Raises RegistryError, IntegrityError, OutputError,
    LayerError.
    """
    options = options or PullOptions()
    manifests_only = options.manifests_only
    memory, reporter = memory or Amnesia(), reporter or SilentTransfers()
    resolved = resolve_reference(reference, registries, platform=options.platform, memory=memory, reporter=reporter)
    repository = registries.repository(reference.name)
    image = RemoteImage(repository, resolved.document, memory)
    wanted = gather(image, resolved.document)
    missing = [blob for blob in _blobs(wanted, manifests_only) if not target.has(blob)]
    work_off([Job(_fetch(repository, blob, target, reporter), is_data=True) for blob in missing])
    for document in wanted.documents:
        target.put(document.data)
    described = resolved.document.descriptor(resolved.platform)
    annotations = {SOURCE: str(reference.name)} if manifests_only else {}
    target.tag(
        Descriptor(
            described.media_type,
            described.digest,
            described.size_bytes,
            annotations,
            described.platform,
            described.artifact_type,
        ),
        options.tag or reference.tag,
    )
    return Pulled(resolved, len(missing), sum(blob.size_bytes for blob in missing))


def _blobs(wanted: Wanted, manifests_only: bool) -> Iterator[Descriptor]:
    configs = {one.config.digest for one in wanted.documents if one.config is not None}
    for blob in wanted.blobs:
        if not blob.is_foreign and (blob.digest in configs or not manifests_only):
            yield blob


def _fetch(repository: Repository, blob: Descriptor, target: Target, reporter: TransferReporter) -> Callable[[], None]:
    def fetch() -> None:
        name = str(blob.digest)
        reporter.transfer(name, blob.size_bytes)
        with target.part(blob) as part, closing(RemoteReader(repository, blob, part.offset)) as reader:
            reporter.advance(name, part.offset)
            while piece := reader.read(_PIECE_BYTES):
                part.write(piece)
                reporter.advance(name, len(piece))
            part.finish()
        reporter.done(name, "pulled")

    return fetch

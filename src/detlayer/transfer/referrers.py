"""Referrers of a manifest: listed by the registry, or by clients in an index under a fallback tag.

Source: distribution-spec 1.1, "Listing Referrers", "Pushing Manifests with Subject", "Referrers Tag Schema". Registries
do not lock such a tag, so each write is read back, and repeated if another client has overwritten it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from detlayer.errors import NotFoundError, RejectedError, UnavailableError
from detlayer.oci.documents import Document
from detlayer.oci.types import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_DOCUMENT_BYTES,
    MEDIA_TYPE_INDEX,
    Digest,
    canonical_json,
    digest_of,
)
from detlayer.registry.client import Repository
from detlayer.registry.error_responses import DeniedError, RefusedError, error_of, read_digest
from detlayer.transfer.workers import Job, work_off

_MAX_WRITES = 10
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 5.0
_ACCEPT = {"accept": MEDIA_TYPE_INDEX}


def fallback_tag(subject: Digest) -> str:
    """Return the tag that lists referrers in registries without the referrers API."""
    return f"sha256-{subject.hex}"


def confirm_referrers(repository: Repository, documents: Iterable[Document]) -> None:
    """Ensure that existing documents are listed as referrers of their subjects, if any.

    A registry with the referrers API does this itself. Raises RegistryError and IntegrityError.
    """
    by_subject: dict[Digest, list[Document]] = {}
    for one in documents:
        if one.subject is not None:
            by_subject.setdefault(one.subject.digest, []).append(one)
    if by_subject and repository.lists_referrers is None:
        repository.lists_referrers = _has_api(repository, next(iter(by_subject)))
    if by_subject and not repository.lists_referrers:
        work_off([Job(lambda item=item: _add(repository, *item)) for item in by_subject.items()])  # type: ignore[misc]


def _has_api(repository: Repository, subject: Digest) -> bool:
    answer = repository.fetch("GET", f"referrers/{subject}", _ACCEPT)
    if answer.status == 200:
        answer.drain()
        return answer.media_type == MEDIA_TYPE_INDEX
    refusal = answer.refusal()
    if refusal.is_passing:
        raise error_of(refusal, f"list the referrers of {subject}", repository.name.registry)
    return False


def _add(repository: Repository, subject: Digest, documents: Sequence[Document]) -> None:
    """Add documents to the list of a subject, and wait until it keeps them.

    A client that read the list earlier may still overwrite it. Clients need about the same time for that, so the list
    is read again after that time.
    """
    name = f"{repository.name}:{fallback_tag(subject)}"
    pace = repository.transport.pace
    listing = repository.listing(subject)
    with listing.lock:
        listing.own.update({one.digest: _entry(one) for one in documents})
        for written in range(_MAX_WRITES + 1):
            began = pace.now()
            current = _read(repository, fallback_tag(subject), name, documents[0])
            missing = [entry for digest, entry in listing.own.items() if digest not in current.digests]
            if not missing:
                return
            if written < _MAX_WRITES:
                _write(repository, fallback_tag(subject), name, current.with_entries(missing))
                grown_s = min(_FIRST_WAIT_S * (2**written - 1), _LONGEST_WAIT_S)
                wait_s = (2 * (pace.now() - began) + grown_s) * pace.jitter()
                repository.transport.announce(f"other clients to finish writing {name}", wait_s)
                pace.wait(wait_s)
    raise UnavailableError(
        "referrers-lost",
        f"{name}, the list of referrers of {subject}, loses its entries: another client overwrites it",
        "push again when no other client pushes referrers of this image",
    )


def _entry(document: Document) -> bytes:
    """Return the JSON entry of a document in a list of referrers."""
    described = document.descriptor().to_document()
    if not document.artifact_type and document.config is not None:
        described["artifactType"] = document.config.media_type
    if document.annotations:
        described["annotations"] = document.annotations
    return canonical_json(described)


class _List(NamedTuple):
    """A list of referrers; the JSON of each field and entry is kept unchanged."""

    fields: dict[str, msgspec.Raw]
    entries: list[msgspec.Raw]
    digests: frozenset[Digest]

    def with_entries(self, added: Iterable[bytes]) -> bytes:
        entries = [*self.entries, *map(msgspec.Raw, added)]
        return msgspec.json.encode({**self.fields, "manifests": entries})


class _Named(msgspec.Struct):
    digest: str


def _read(repository: Repository, tag: str, name: str, document: Document) -> _List:
    try:
        data, media_type = repository.get_manifest_data(tag)
    except NotFoundError:
        return _parse(_EMPTY, MEDIA_TYPE_INDEX)
    except DeniedError:
        # Some registries answer 403 for a missing manifest. If we may read the document, 403 means not found.
        if repository.head_manifest(str(document.digest)) is None:
            raise
        return _parse(_EMPTY, MEDIA_TYPE_INDEX)
    try:
        return _parse(data, media_type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise RejectedError(
            "referrers-invalid",
            f"{name} is not an image index; expected the list of referrers of "
            f"{document.subject and document.subject.digest}",
            "delete this tag, or move its image to another tag",
        ) from error


_EMPTY = canonical_json({"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": []})


def _parse(data: bytes, media_type: str) -> _List:
    """Parse a list; raises ValueError, and msgspec's errors, for anything but an image index."""
    fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    own = msgspec.json.decode(fields["mediaType"], type=str) if "mediaType" in fields else ""
    kinds = {kind for kind in (own, media_type) if kind == own or kind in INDEX_TYPES | MANIFEST_TYPES} - {""}
    if kinds - {MEDIA_TYPE_INDEX} or "manifests" not in fields or {"config", "layers"} & fields.keys():
        raise ValueError("not an image index")
    named = msgspec.json.decode(fields["manifests"], type=list[_Named] | None) or []
    entries = msgspec.json.decode(fields["manifests"], type=list[msgspec.Raw] | None) or []
    return _List(fields, entries, frozenset(filter(None, (read_digest(one.digest) for one in named))))


def _write(repository: Repository, tag: str, name: str, data: bytes) -> None:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise RejectedError(
            "referrers-refused", f"{name} would have over {MAX_DOCUMENT_BYTES:,} bytes", "delete old referrers"
        )
    refused = repository.put_manifest(tag, Document(MEDIA_TYPE_INDEX, data, digest_of(data)))
    if isinstance(refused, RefusedError):
        raise RejectedError(
            "referrers-refused",
            f"{repository.name.registry} refused the list of referrers {name} ({refused.refusal})",
            "it may list deleted manifests: delete this tag, and push all referrers again",
        ) from refused
    if refused is not None:
        raise refused

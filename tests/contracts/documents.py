"""Manifests, tags and referrers of a strict registry, with all rules checked. No blobs, no authorization.

Sources: distribution-spec 1.1, "Pushing manifests", "Listing tags", "Listing referrers"; image-spec manifest.md.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any
from urllib.parse import quote

from tests.contracts.http_records import Answer, RefusedError, Request, error_answer, json_answer
from tests.contracts.http_server import Incoming
from tests.contracts.registry_behaviour import Rules
from tests.contracts.storage import (
    INDEX,
    INDEXES,
    MANIFESTS,
    Repository,
    Storage,
    Stored,
    named_blobs,
    named_children,
    sha256,
)
from tests.contracts.uploads import DIGEST, need_length

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_MAX_BYTES = 4 << 20


class Documents:
    """The documents of a registry. `base` is the prefix of absolute URLs."""

    def __init__(self, storage: Storage, rules: Rules, base: str) -> None:
        self._storage = storage
        self._rules = rules
        self._base = base

    def read(self, name: str, target: str, request: Request) -> Answer:
        """Answer a GET or HEAD by tag or digest."""
        _check_target(target)
        if request.method == "HEAD" and self._rules.head_status:
            raise RefusedError(self._rules.head_status, "DENIED", "HEAD is not for you")
        with self._storage.lock:
            repository = self._storage.repositories.get(name, Repository())
            digest = repository.tags.get(target, target)
            if old := repository.old_tags.get(target):
                digest = old.pop()
            stored = repository.manifests.get(digest)
        if stored is None or not self._accepted(stored.media_type, request):
            raise RefusedError(self._rules.absent_status, "MANIFEST_UNKNOWN", "manifest unknown", detail=target)
        return Answer(200, (("Content-Type", stored.media_type), *self._digest(digest)), stored.data)

    def put(self, name: str, target: str, request: Request, body: Incoming) -> Answer:
        """Answer a PUT after checking the document and everything it names."""
        _check_target(target)
        need_length(request, body)
        if (body.length or 0) > _MAX_BYTES:
            text = f"a manifest has at most {_MAX_BYTES} bytes"
            raise RefusedError(413, "MANIFEST_INVALID", text, violation="manifest-size", close=True)
        data = body.read()
        digest = sha256(data)
        if DIGEST.match(target) and target != digest:
            text = f"the manifest has the digest {digest}, not {target}"
            raise RefusedError(400, "DIGEST_INVALID", text, violation="digest")
        kind = request.header("content-type")
        document = _parse(data, kind)
        if not DIGEST.match(target):
            time.sleep(self._rules.tag_write_s)
        with self._storage.lock:
            repository = self._storage.repository(name)
            tagged = repository.tags.get(target)
            if self._rules.immutable_tags and tagged:
                text = f"The image tag '{target}' already exists and cannot be overwritten: the tag is immutable."
                raise RefusedError(400, "TAG_INVALID", text)
            missing = repository.missing(document, sparse=self._rules.sparse_indexes)
            if missing and self._rules.checks_blobs:
                return self._unknown(repository, missing)
            _check_sizes(repository, document)
            self._check_subject(repository, document)
            if not DIGEST.match(target):
                repository.old_tags[target] = [tagged or ""] * self._rules.stale_reads
            self._storage.put_manifest(name, data, kind, "" if DIGEST.match(target) else target)
        headers = [("Location", f"{self._base}/v2/{name}/manifests/{digest}"), *self._digest(digest)]
        if (subject := document.get("subject")) and self._rules.referrers:
            headers.append(("OCI-Subject", subject["digest"]))
        return _blame_early(repository, missing, Answer(201, tuple(headers)))

    def delete(self, name: str, target: str) -> Answer:
        _check_target(target)
        if not self._rules.deletes:
            raise RefusedError(405, "UNSUPPORTED", "deletes are off")
        with self._storage.lock:
            repository = self._storage.repository(name)
            if repository.tags.pop(target, None) is None and repository.manifests.pop(target, None) is None:
                raise RefusedError(404, "MANIFEST_UNKNOWN", "manifest unknown", detail=target)
            repository.tags = {tag: digest for tag, digest in repository.tags.items() if digest != target}
        return Answer(202)

    def list_tags(self, name: str, request: Request) -> Answer:
        """Answer a list of tags, one page at a time."""
        with self._storage.lock:
            repository = self._storage.repositories.get(name)
            if repository is None:
                raise RefusedError(404, "NAME_UNKNOWN", "repository name not known to registry", detail=name)
            tags = sorted(repository.tags)
        tags = [tag for tag in tags if tag > request.parameter("last")]
        asked = request.parameter("n")
        if asked and not asked.isdecimal():
            raise RefusedError(400, "PAGINATION_NUMBER_INVALID", f"n={asked}", violation="page")
        page = min(filter(None, (int(asked or 0), self._rules.page_entries)), default=0)
        headers: tuple[tuple[str, str], ...] = ()
        if page and len(tags) > page:
            tags = tags[:page]
            headers = (("Link", f'</v2/{name}/tags/list?last={quote(tags[-1])}&n={page}>; rel="next"'),)
        return json_answer(200, {"name": name, "tags": tags}, headers=headers)

    def list_referrers(self, name: str, subject: str, request: Request) -> Answer:
        """Answer the referrers of `subject`; 404 if this registry has no such list."""
        if not self._rules.referrers:
            raise RefusedError(404, "UNSUPPORTED", "404 page not found")
        wanted, start = request.parameter("artifactType"), int(request.parameter("start") or 0)
        with self._storage.lock:
            repository = self._storage.repositories.get(name, Repository())
            found = [
                _describe(digest, stored)
                for digest, stored in sorted(repository.manifests.items())
                if (stored.document.get("subject") or {}).get("digest") == subject
            ]
        headers = []
        if wanted:
            found = [one for one in found if one["artifactType"] == wanted]
            headers.append(("OCI-Filters-Applied", "artifactType"))
        page = self._rules.page_entries or len(found)
        if start + page < len(found):
            query = f"?artifactType={quote(wanted)}&start={start + page}"
            headers.append(("Link", f'</v2/{name}/referrers/{subject}{query}>; rel="next"'))
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": found[start : start + page]}
        return json_answer(200, document, content_type=INDEX, headers=tuple(headers))

    def _accepted(self, media_type: str, request: Request) -> bool:
        accepted = {item.partition(";")[0].strip() for item in request.header("accept").split(",")}
        return not self._rules.accept_counts or media_type in accepted

    def _digest(self, digest: str) -> tuple[tuple[str, str], ...]:
        match self._rules.digest_header:
            case "none":
                return ()
            case "wrong":
                return (("Docker-Content-Digest", sha256(digest.encode())),)
        return (("Docker-Content-Digest", digest),)

    def _check_subject(self, repository: Repository, document: dict[str, Any]) -> None:
        subject = (document.get("subject") or {}).get("digest")
        if self._rules.wants_subject == "no" or subject is None or subject in repository.manifests:
            return
        if self._rules.wants_subject == "named":
            raise RefusedError(404, "MANIFEST_UNKNOWN", "subject unknown to registry", detail=subject)
        raise RefusedError(400, "MANIFEST_INVALID", "manifest invalid")

    def _unknown(self, repository: Repository, missing: list[str]) -> Answer:
        """Refuse a manifest; by default the error lists all missing digests, as in docker-registry."""
        style, status, code = (
            self._rules.unknown_blob_detail,
            self._rules.unknown_blob_status,
            self._rules.unknown_blob_code,
        )
        named = missing[: self._rules.unknown_blob_most or None]
        details: list[Any] = [{"digest": digest} if style == "object" else digest for digest in named]
        if style == "none":
            details = [None]
        errors = [(code, "blob unknown to registry", detail) for detail in details]
        answer = error_answer(status, *errors) if code else Answer(status, (), b"<html>something is missing</html>")
        return _blame_early(repository, missing, answer)


def _blame_early(repository: Repository, missing: list[str], answer: Answer) -> Answer:
    """Answer a manifest with missing parts; a violation if they were never uploaded."""
    if never := [digest for digest in missing if digest not in repository.lost]:
        refused = RefusedError(400, "", f"a manifest whose blobs are not here: {never}", violation="manifest-early")
        refused.answer = answer
        raise refused
    return answer


def _check_target(target: str) -> None:
    if not (_TAG.match(target) or DIGEST.match(target)):
        raise RefusedError(400, "TAG_INVALID", f"{target!r} is neither tag nor digest", violation="target")


def _parse(data: bytes, kind: str) -> dict[str, Any]:
    """Parse a document and check it against image-spec and its Content-Type."""

    def invalid(text: str) -> RefusedError:
        return RefusedError(400, "MANIFEST_INVALID", text, violation="manifest")

    try:
        document = json.loads(data)
    except ValueError as error:
        raise invalid(f"the manifest is no JSON: {error}") from error
    if kind not in INDEXES | MANIFESTS:
        raise RefusedError(415, "MANIFEST_INVALID", f"Content-Type: {kind}", violation="content-type")
    if not isinstance(document, dict) or document.get("schemaVersion") != 2:
        raise invalid("schemaVersion is not 2")
    if document.get("mediaType", kind) != kind:
        text = f"Content-Type: {kind} of a {document['mediaType']}"
        raise RefusedError(400, "MANIFEST_INVALID", text, violation="content-type")
    needed = ("manifests",) if kind in INDEXES else ("config", "layers")
    if any(key not in document for key in needed) or ({"manifests", "layers"} <= document.keys()):
        raise invalid(f"not just {needed} of a {kind}")
    subject = document.get("subject")
    everything = [document["config"], *document["layers"]] if kind in MANIFESTS else document["manifests"]
    for one in (*everything, *((subject,) if subject else ())):
        if not (one.get("mediaType") and DIGEST.match(one.get("digest", "")) and isinstance(one.get("size"), int)):
            raise invalid(f"{one} is no descriptor")
    return document


def _check_sizes(repository: Repository, document: dict[str, Any]) -> None:
    sizes = {digest: len(stored.data) for digest, stored in repository.manifests.items()}
    for one in (*named_blobs(document), *named_children(document)):
        blob = repository.blobs.get(one["digest"])
        size = len(blob) if blob is not None else sizes.get(one["digest"], one["size"])
        if size != one["size"]:
            text = f"{one['digest']} has {size} bytes, not {one['size']}"
            raise RefusedError(400, "SIZE_INVALID", text, violation="size")


def _describe(digest: str, stored: Stored) -> dict[str, Any]:
    document = stored.document
    kind = document.get("artifactType") or (document.get("config") or {}).get("mediaType", "")
    described = {"mediaType": stored.media_type, "digest": digest, "size": len(stored.data), "artifactType": kind}
    if annotations := document.get("annotations"):
        described["annotations"] = annotations
    return described

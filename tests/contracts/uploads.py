"""Upload sessions of distribution-spec 1.1 ("Pushing blobs"), with all rules checked. No authorization."""

from __future__ import annotations

import re
import uuid
from typing import Protocol

from tests.contracts.http_records import Answer, RefusedError, Request
from tests.contracts.http_server import BrokenError, Incoming
from tests.contracts.registry_behaviour import Rules
from tests.contracts.storage import Storage, Upload, sha256

DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*\Z")
_RANGE = re.compile(r"([0-9]+)-([0-9]+)\Z")


class Grants(Protocol):
    """Tells whether the client may read another repository, and whether it could have requested that."""

    def __call__(self, repository: str, action: str, /) -> bool | None: ...


class Uploads:
    """The sessions of a registry. `base` and `elsewhere` are the prefixes of Locations."""

    def __init__(self, storage: Storage, rules: Rules, *, base: str, elsewhere: str) -> None:
        self._storage = storage
        self._rules = rules
        self._bases = {
            "absolute": base,
            "relative": "",
            "http": base.replace("https://", "http://"),
            "elsewhere": elsewhere,
        }

    def begin(self, name: str, request: Request, body: Incoming, may: Grants) -> Answer:
        """Answer a POST: a session, a mount, or a blob in a single request."""
        need_length(request, body)
        digest = request.parameter("digest")
        if "mount" in dict(request.parameters):
            if body.length:
                raise RefusedError(400, "BLOB_UPLOAD_INVALID", "a mount has no body", violation="mount-body")
            if (mounted := self._mount(name, request, may)) is not None:
                return mounted
        elif digest:
            need_octets(request)
            data = body.read()
            if self._rules.single_post:
                self._hold(data, digest)
                self._storage.put_blob(name, data)
                return self._created(name, digest)
        elif body.length:
            raise RefusedError(400, "BLOB_UPLOAD_INVALID", "a body without digest=", violation="post-body")
        upload = Upload(str(uuid.uuid4()), name, "")
        with self._storage.lock:
            self._storage.uploads[upload.id] = upload
        minimum = self._rules.chunk_min_bytes
        return self._accepted(upload, 202, (("OCI-Chunk-Min-Length", str(minimum)),) if minimum else ())

    def _mount(self, name: str, request: Request, may: Grants) -> Answer | None:
        digest, source = valid_digest(request.parameter("mount")), request.parameter("from")
        if not source:
            raise RefusedError(400, "NAME_INVALID", "a mount without from=", violation="mount-from")
        if not NAME.match(source):
            raise RefusedError(400, "NAME_INVALID", f"from={source!r} is no name", violation="name")
        allowed = may(source, "pull")
        if allowed is False:
            text = f"a mount from {source} by a token without its pull scope, which was to be had"
            raise RefusedError(400, "DENIED", text, violation="mount-scope")
        if not self._rules.mounts or not allowed:
            return None
        with self._storage.lock:
            data = self._storage.repository(source).blobs.get(digest)
            if data is None:
                return None
            self._storage.put_blob(name, data)
            return self._created(name, digest)

    def append(self, id_: str, request: Request, body: Incoming) -> Answer:
        """Answer a PATCH: a chunk with its range, or a stream without one."""
        upload = self._find(id_, request)
        need_octets(request)
        stated = request.header("content-range")
        limit = self._rules.chunk_max_bytes
        if stated:
            need_length(request, body)
            self._check_range(upload, stated, body.length or 0)
            self._check_minimum(upload)
        elif upload.chunks or upload.data:
            text = "a chunk after the first without Content-Range"
            raise RefusedError(400, "BLOB_UPLOAD_INVALID", text, violation="content-range")
        elif not body.chunked:
            need_length(request, body)
        if limit and (body.length or 0) > limit:
            raise RefusedError(413, "SIZE_INVALID", f"a chunk has at most {limit} bytes", close=True)
        before = len(upload.data)
        self._receive(upload, body)
        if limit and len(upload.data) - before > limit:
            del upload.data[before:]
            raise RefusedError(413, "SIZE_INVALID", f"a chunk has at most {limit} bytes", close=True)
        upload.chunks += 1
        upload.last_chunk_bytes = len(upload.data) - before
        upload.disturbed = False
        return self._accepted(upload, 202)

    def finish(self, id_: str, request: Request, body: Incoming) -> Answer:
        """Answer a PUT: the rest of the bytes, if any, and the digest."""
        upload = self._find(id_, request)
        need_length(request, body)
        digests = [value for key, value in request.parameters if key == "digest"]
        if len(digests) != 1:
            raise RefusedError(400, "DIGEST_INVALID", f"digest= is there {len(digests)} times", violation="digest")
        digest = valid_digest(digests[0])
        if body.length:
            need_octets(request)
            stated = request.header("content-range")
            if stated:
                self._check_range(upload, stated, body.length)
            elif upload.data:
                text = "a last chunk without Content-Range"
                raise RefusedError(400, "BLOB_UPLOAD_INVALID", text, violation="content-range")
            self._check_minimum(upload)
            limit = self._rules.put_max_bytes
            if limit and body.length > limit:
                raise RefusedError(413, "SIZE_INVALID", f"a PUT has at most {limit} bytes", close=True)
            self._receive(upload, body)
        with self._storage.lock:
            self._storage.uploads.pop(upload.id, None)
            self._storage.finished.add(upload.id)
        self._hold(upload.data, digest)
        self._storage.put_blob(upload.repository, bytes(upload.data))
        return self._created(upload.repository, digest)

    def status(self, id_: str, request: Request) -> Answer:
        """Answer a GET: the offset, and the latest Location."""
        upload = self._find(id_, request, asks=True)
        upload.disturbed = False
        return self._accepted(upload, 204)

    def cancel(self, id_: str, request: Request) -> Answer:
        upload = self._find(id_, request, asks=True)
        with self._storage.lock:
            del self._storage.uploads[upload.id]
        return Answer(204)

    def disturb(self, id_: str | None) -> None:
        """Excuse a wrong state of a session, or of all: the client may not have received the last response."""
        with self._storage.lock:
            for upload in self._storage.uploads.values():
                upload.disturbed |= id_ in (None, upload.id)
            if id_ is None:
                self._storage.ended |= self._storage.finished
            elif id_ in self._storage.finished:
                self._storage.ended.add(id_)

    def _find(self, id_: str, request: Request, *, asks: bool = False) -> Upload:
        with self._storage.lock:
            upload = self._storage.uploads.get(id_)
            excused = id_ in self._storage.ended
        name = request.path.removeprefix("/v2/").partition("/blobs/uploads/")[0]
        if upload is None or upload.repository != name:
            violation = "" if excused else "session-unknown"
            raise RefusedError(404, "BLOB_UPLOAD_UNKNOWN", "there is no such upload", violation=violation)
        if self._rules.location_query:
            state = request.parameter("_state")
            if not state:
                text = "the query of Location was lost: no _state"
                raise RefusedError(400, "BLOB_UPLOAD_INVALID", text, violation="location-query")
            excused = upload.disturbed
            answers = asks and excused and self._rules.stale_location == "answers"
            if state != upload.state and not answers:
                violation = "" if excused else "location-stale"
                text = "not the newest Location of this upload"
                raise RefusedError(404, "BLOB_UPLOAD_INVALID", text, violation=violation)
        return upload

    def _check_range(self, upload: Upload, stated: str, length: int) -> None:
        match = _RANGE.match(stated)
        if match is None:
            text = f"Content-Range: {stated} is not START-END"
            raise RefusedError(400, "BLOB_UPLOAD_INVALID", text, violation="content-range")
        start, end = int(match[1]), int(match[2])
        if start != len(upload.data) or end - start + 1 != length:
            text = f"Content-Range: {stated} with {length} bytes, where {len(upload.data)} have come so far"
            raise RefusedError(
                416,
                "BLOB_UPLOAD_INVALID",
                text,
                violation="" if upload.disturbed else "content-range",
                headers=(("Location", self._location(upload)), ("Range", _range(upload))),
            )

    def _check_minimum(self, upload: Upload) -> None:
        minimum = self._rules.chunk_min_bytes
        if upload.chunks and upload.last_chunk_bytes < minimum and not upload.disturbed:
            text = f"the chunk before had {upload.last_chunk_bytes} bytes, and {minimum} is the least"
            raise RefusedError(400, "SIZE_INVALID", text, violation="chunk-minimum")

    def _receive(self, upload: Upload, body: Incoming) -> None:
        """Read the body; bytes before a fault are kept, and make the client's Location stale."""
        try:
            for piece in body.pieces():
                upload.data += piece
        except BrokenError:
            upload.disturbed = True
            if upload.data:
                self._location(upload)  # the state contains the offset, so the client's Location is stale
            raise

    def _hold(self, data: bytes | bytearray, digest: str) -> None:
        found = sha256(data)
        if found != digest:
            text = f"{len(data)} bytes have the digest {found}, not {digest}"
            raise RefusedError(400, "DIGEST_INVALID", text, violation="digest")

    def _location(self, upload: Upload) -> str:
        base = self._bases[self._rules.location]
        upload.state = f"{uuid.uuid4().hex}+/=="
        query = f"?_state={upload.state.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}"
        path = f"{base}/v2/{upload.repository}/blobs/uploads/{upload.id}"
        return path + (query if self._rules.location_query else "")

    def _accepted(self, upload: Upload, status: int, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
        with self._storage.lock:
            named = (
                ("Location", self._location(upload)),
                ("Range", _range(upload)),
                ("Docker-Upload-UUID", upload.id),
            )
        return Answer(status, (*named, *headers))

    def _created(self, name: str, digest: str) -> Answer:
        base = self._bases["relative" if self._rules.location == "elsewhere" else self._rules.location]
        return Answer(201, (("Location", f"{base}/v2/{name}/blobs/{digest}"), ("Docker-Content-Digest", digest)))


def _range(upload: Upload) -> str:
    """Return the Range of an upload in docker-registry's format: zero bytes and one byte look the same."""
    return f"0-{max(len(upload.data) - 1, 0)}"


def valid_digest(text: str) -> str:
    if not DIGEST.match(text):
        raise RefusedError(400, "DIGEST_INVALID", f"{text!r} is no digest", violation="digest")
    return text


def need_length(request: Request, body: Incoming) -> None:
    if body.length is None:
        text = f"{request.method} without Content-Length"
        raise RefusedError(411, "SIZE_INVALID", text, violation="content-length")


def need_octets(request: Request) -> None:
    kind = request.header("content-type")
    if kind != "application/octet-stream":
        text = f"Content-Type: {kind or '(none)'} is not application/octet-stream"
        raise RefusedError(400, "BLOB_UPLOAD_INVALID", text, violation="content-type")

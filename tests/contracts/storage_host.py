"""Another host that a registry redirects blobs and uploads to. It must not receive credentials."""

from __future__ import annotations

import re
import ssl
import uuid
from typing import TYPE_CHECKING
from urllib.parse import quote

from tests.contracts.http_records import Answer, RefusedError, Request
from tests.contracts.http_server import Incoming, WireServer
from tests.contracts.storage import Storage

if TYPE_CHECKING:
    from tests.contracts.uploads import Uploads

_RANGE = re.compile(r"bytes=([0-9]+)-([0-9]*)\Z")


class Elsewhere:
    """A store on `localhost`, while the registry is on 127.0.0.1. Blob URLs are signed, as in clouds."""

    def __init__(self, storage: Storage, tls: ssl.SSLContext | None, registry_url: str) -> None:
        self._storage = storage
        self._registry_url = registry_url
        self._signed: dict[str, tuple[str, str, bool]] = {}
        self.uploads: Uploads | None = None
        self.server = WireServer(self, tls=tls, host="localhost")

    def blob_url(self, name: str, digest: str, *, fishes: bool) -> str:
        signature = f"{uuid.uuid4().hex}+/="
        self._signed[signature] = (name, digest, fishes)
        return f"{self.server.url}/store/{quote(digest)}?X-Signature={quote(signature, safe='')}"

    def answer(self, request: Request, body: Incoming) -> Answer:
        """Answer for blobs and upload sessions."""
        for header in ("authorization", "cookie", "proxy-authorization"):
            if request.has(header):
                text = f"{header} was sent to another host"
                raise RefusedError(400, "UNSUPPORTED", text, violation=f"leaked-{header}")
        if request.path.startswith("/elsewhere/v2/") and self.uploads is not None:
            return self._upload(request, body)
        signed = self._signed.get(request.parameter("X-Signature"))
        if signed is None or request.method != "GET":
            raise RefusedError(403, "DENIED", "SignatureDoesNotMatch", violation="signature")
        name, digest, fishes = signed
        if fishes:
            challenge = ("WWW-Authenticate", 'Basic realm="please log in"')
            raise RefusedError(401, "UNAUTHORIZED", "who are you?", headers=(challenge,))
        with self._storage.lock:
            data = self._storage.repository(name).blobs.get(digest)
        if data is None:
            raise RefusedError(403, "DENIED", "AccessDenied")  # S3's response for a missing object
        return byte_range(data, "", request)

    def disturbed(self, request: Request | None) -> None:
        if self.uploads is not None:
            self.uploads.disturb(request.path.rpartition("/")[2] if request else None)

    def _upload(self, request: Request, body: Incoming) -> Answer:
        assert self.uploads is not None
        here = Request(request.number, request.method, request.target.removeprefix("/elsewhere"), request.headers)
        session = here.path.rpartition("/")[2]
        match request.method:
            case "PATCH":
                return self.uploads.append(session, here, body)
            case "PUT":
                return self.uploads.finish(session, here, body)
            case "GET":
                return self.uploads.status(session, here)
            case "DELETE":
                return self.uploads.cancel(session, here)
        raise RefusedError(405, "UNSUPPORTED", f"{request.method} of an upload", violation="method")


def byte_range(data: bytes, digest: str, request: Request, *, ranges: bool = True) -> Answer:
    """Answer a GET or HEAD of bytes, or of the requested range (RFC 9110, 14)."""
    named = [("Content-Type", "application/octet-stream")]
    if digest:
        named.append(("Docker-Content-Digest", digest))
    if ranges:
        named.append(("Accept-Ranges", "bytes"))
    stated = request.header("range")
    if not stated or not ranges or request.method == "HEAD":
        return Answer(200, tuple(named), data)
    match = _RANGE.match(stated)
    if match is None:
        text = f"Range: {stated} is not bytes=START-[END]"
        raise RefusedError(400, "RANGE_INVALID", text, violation="range")
    start, end = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
    if start >= len(data):
        headers = (("Content-Range", f"bytes */{len(data)}"),)
        raise RefusedError(416, "RANGE_INVALID", f"there are {len(data)} bytes", headers=headers)
    named.append(("Content-Range", f"bytes {start}-{end}/{len(data)}"))
    return Answer(206, tuple(named), data[start : end + 1])

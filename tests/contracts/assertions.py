"""Assertions for any registry: stored blobs and tags, sent requests, leaked secrets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from urllib.parse import quote

from tests.contracts.http_records import Request
from tests.contracts.images import Descriptor, Layout
from tests.contracts.servers import Server
from tests.contracts.storage import named_blobs, sha256


def seed(server: Server, name: str, layout: Layout, descriptor: Descriptor, *tags: str) -> str:
    """Store an image in a repository without HTTP; returns its digest."""
    documents = layout.documents_of(descriptor)
    named = {one["digest"] for one in documents}
    for digest, data in layout.blobs_of(descriptor).items():
        if digest not in named:
            server.put_blob(name, data)
    for one in documents:
        server.put_manifest(name, layout.read(one["digest"]), one["mediaType"])
    for tag in tags:
        server.put_manifest(name, layout.read(descriptor["digest"]), descriptor["mediaType"], tag)
    return str(descriptor["digest"])


def holes(server: Server, name: str, digest: str) -> list[str]:
    """Return the digests of an image that a repository lacks or has corrupt."""
    found = server.manifest(name, digest)
    if found is None or sha256(found[1]) != digest:
        return [digest]
    document = json.loads(found[1])
    lacking = [hole for child in document.get("manifests", []) for hole in holes(server, name, child["digest"])]
    for one in named_blobs(document):
        data = server.blob(name, one["digest"])
        if data is None or len(data) != one["size"] or sha256(data) != one["digest"]:
            lacking.append(one["digest"])
    return lacking


def broken_tags(server: Server) -> dict[str, list[str]]:
    """Return the tags of incomplete images, with the missing digests. Must always be empty."""
    return {
        f"{name}:{tag}": lacking
        for name in server.repositories()
        for tag, digest in server.tags(name).items()
        if (lacking := holes(server, name, digest))
    }


def assert_has(server: Server, name: str, tag: str, layout: Layout, descriptor: Descriptor) -> None:
    """Assert that a tag names an image that is complete and equal to the layout."""
    assert server.tags(name).get(tag) == descriptor["digest"]
    assert holes(server, name, descriptor["digest"]) == []
    for one in layout.documents_of(descriptor):
        assert server.manifest(name, one["digest"]) == (one["mediaType"], layout.read(one["digest"]))


def present(server: Server, name: str, digests: Iterable[str]) -> set[str]:
    """Return those of the blobs that a repository has."""
    return {digest for digest in digests if server.blob(name, digest) is not None}


def without_auth(requests: Iterable[Request]) -> list[Request]:
    """Drop the requests of a login: pings, and those answered by 401."""
    return [one for one in requests if one.path != "/v2/" and one.status != 401]


def uploaded(requests: Iterable[Request]) -> Counter[str]:
    """Count the completed uploads by digest, without mounts."""
    return Counter(one.parameter("digest") for one in requests if _ended(one))


def uploaded_bytes(requests: Iterable[Request]) -> int:
    """Count the bytes of blobs that were sent, including wasted ones."""
    return sum(one.body_bytes for one in requests if "/blobs/uploads/" in one.path)


def mounted(requests: Iterable[Request]) -> Counter[str]:
    """Count the successful mounts by digest."""
    return Counter(
        one.parameter("mount")
        for one in requests
        if one.method == "POST" and one.status == 201 and "mount=" in one.query
    )


def downloaded(requests: Iterable[Request]) -> Counter[str]:
    """Count the successful GETs of blobs by digest."""
    return Counter(
        one.path.rpartition("/")[2]
        for one in requests
        if one.method == "GET" and "/blobs/sha256:" in one.path and one.status in (200, 206, 307)
    )


def leaks(server: Server, *texts: str) -> set[str]:
    """Return the secrets in a text, plain or URL-encoded. Must always be empty."""
    whole = "\n".join(texts)
    return {secret for secret in server.secrets if secret in whole or quote(secret, safe="") in whole}


def _ended(request: Request) -> bool:
    return request.method in ("PUT", "POST") and request.status == 201 and "digest=" in request.query

"""Behaviour of a strict registry where registries differ, as data; and traps, each a variation of it or faults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from tests.contracts.faults import (
    BLOB,
    MANIFEST,
    SESSION,
    UPLOADS,
    CutAnswer,
    CutRequest,
    Endless,
    Fault,
    LoseAnswer,
    Reply,
    Silence,
    WrongLength,
)
from tests.contracts.http_records import Answer, error_answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Rules; the defaults are docker-registry's, or else those of distribution-spec 1.1. 0 means no limit.

    `location`: `absolute`, `relative`, `http` (even if the registry has TLS), `elsewhere` (another host, without
    authorization). `location_query`: Location has a `_state` that must be sent back. `blobs`: `here`, or `elsewhere`:
    GET redirects to another host, which asks for credentials if it `fishes`. `digest_header`: of manifests.

    `one_at_a_time`: a request waits until the previous one is answered. `wants_subject`: a manifest is refused if its
    subject is missing; the refusal may name the subject. `tag_write_s`: the delay until a written tag is stored.
    `stale_reads`: the number of reads of a tag after a write that return the old image.
    `anonymous_status`: the status for requests without credentials, where only `/v2/` sends a challenge; 0: all do.
    `checks_blobs`: a manifest with missing parts is refused by `unknown_blob_code`, without JSON if that is empty; the
    error lists at most `unknown_blob_most` of them.
    """

    location: Literal["absolute", "relative", "http", "elsewhere"] = "absolute"
    location_query: bool = True
    stale_location: Literal["answers", "lost"] = "answers"
    mounts: bool = True
    single_post: bool = False
    chunk_min_bytes: int = 0
    chunk_max_bytes: int = 0
    put_max_bytes: int = 0
    ranges: bool = True
    blobs: Literal["here", "elsewhere"] = "here"
    fishes: bool = False
    digest_header: Literal["right", "none", "wrong"] = "right"
    accept_counts: bool = True
    absent_status: int = 404
    head_status: int = 0
    checks_blobs: bool = True
    unknown_blob_status: int = 400
    unknown_blob_code: str = "MANIFEST_BLOB_UNKNOWN"
    unknown_blob_most: int = 0
    unknown_blob_detail: Literal["text", "object", "none"] = "text"
    sparse_indexes: bool = False
    immutable_tags: bool = False
    read_only: bool = False
    creates_repositories: bool = True
    deletes: bool = True
    referrers: bool = True
    page_entries: int = 0
    denied_status: int = 401
    anonymous_status: int = 0
    one_at_a_time: bool = False
    wants_subject: Literal["no", "named", "unnamed"] = "no"
    tag_write_s: float = 0.0
    stale_reads: int = 0


@dataclass(frozen=True, slots=True)
class Tokens:
    """Rules of a token service.

    `uses`: the number of requests that a token is valid for (0: no limit); unfair to clients with several workers,
    which may use up each other's tokens. `expires_at`: at these requests, counting those with a valid token, all tokens
    expire. `realm`: a false address of the service in the challenge, if set.
    """

    get: bool = True
    post: bool = True
    post_refusal: int = 404
    field: Literal["token", "access_token", "both"] = "both"
    says_lifetime: bool = True
    lifetime_s: int = 300
    uses: int = 0
    expires_at: frozenset[int] = frozenset()
    realm: str = ""


@dataclass(frozen=True, slots=True)
class Trap:
    """A behaviour of registries that breaks clients. `passes`: a push or pull must succeed anyway."""

    rules: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    faults: tuple[Fault, ...] = ()
    tokens: Tokens | None = None
    passes: bool = True
    tls: bool = False
    bearer: bool = False

    def __add__(self, other: Trap) -> Trap:
        return Trap(
            {**self.rules, **other.rules},
            self.faults + other.faults,
            other.tokens or self.tokens,
            self.passes and other.passes,
            self.tls or other.tls,
            self.bearer or other.bearer,
        )

    def apply(self, rules: Rules) -> Rules:
        return dataclasses.replace(rules, **self.rules)


def busy(status: int, retry_after: str = "") -> Answer:
    """The response of an overloaded registry."""
    headers = (("Retry-After", retry_after),) if retry_after else ()
    return error_answer(status, ("TOOMANYREQUESTS", "try again later", None), headers=headers)


HTML = Answer(200, (("Content-Type", "text/html"),), b"<html><body>Please sign in to the network</body></html>")
HTML_ERROR = Answer(403, (("Content-Type", "text/html"),), b"<html>\x1b[31mForbidden\x07</html>")
NO_JSON = Answer(200, (("Content-Type", "application/json"),), b'{"errors": [')
PAST = "Sun, 06 Nov 1994 08:49:37 GMT"

PUSH_TRAPS: dict[str, Trap] = {
    "location-relative": Trap({"location": "relative"}),
    "location-without-query": Trap({"location_query": False}),
    "location-relative-without-query": Trap({"location": "relative", "location_query": False}),
    "location-http": Trap({"location": "http"}, tls=True),
    "location-elsewhere": Trap({"location": "elsewhere"}, bearer=True),
    "mount-refused": Trap({"mounts": False}),
    "single-post": Trap({"single_post": True}),
    "chunk-minimum": Trap({"chunk_min_bytes": 4096, "put_max_bytes": 1}),
    "chunk-maximum": Trap({"chunk_max_bytes": 1 << 16, "put_max_bytes": 1}),
    "put-too-large": Trap({"put_max_bytes": 1 << 10}),
    "tokens-expire-at-once": Trap(tokens=Tokens(expires_at=frozenset((1,))), bearer=True),
    "tokens-expire-in-upload": Trap(tokens=Tokens(expires_at=frozenset((6,))), bearer=True),
    "tokens-expire-late": Trap(tokens=Tokens(expires_at=frozenset((12,))), bearer=True),
    "busy-retry-seconds": Trap(faults=(Fault(Reply(busy(429, "0")), times=2),)),
    "busy-retry-date": Trap(faults=(Fault(Reply(busy(429, PAST)), times=2),)),
    "busy-in-upload": Trap(faults=(Fault(Reply(busy(429, "0")), "PUT|PATCH", SESSION),)),
    "unavailable-twice": Trap(faults=(Fault(Reply(busy(503, "0")), times=2),)),
    "bad-gateway-in-upload": Trap(faults=(Fault(Reply(Answer(502)), "PUT|PATCH", SESSION),)),
    "bad-gateway-on-manifest": Trap(faults=(Fault(Reply(Answer(502)), "PUT", MANIFEST),)),
    "unavailable-for-ever": Trap(faults=(Fault(Reply(busy(503, "0")), times=0),), passes=False),
    "cut-at-once": Trap(faults=(Fault(LoseAnswer()),)),
    "cut-upload-at-0": Trap(faults=(Fault(CutRequest(0), "PUT|PATCH", SESSION),)),
    "cut-upload-at-100": Trap(faults=(Fault(CutRequest(100), "PUT|PATCH", SESSION),)),
    "cut-upload-is-lost": Trap({"stale_location": "lost"}, (Fault(CutRequest(100), "PUT|PATCH", SESSION),)),
    "cut-upload-with-reset": Trap(faults=(Fault(CutRequest(100, reset=True), "PUT|PATCH", SESSION),)),
    "answer-lost-of-post": Trap(faults=(Fault(LoseAnswer(), "POST", UPLOADS),)),
    "answer-lost-of-put": Trap(faults=(Fault(LoseAnswer(), "PUT", SESSION),)),
    "answer-lost-of-manifest": Trap(faults=(Fault(LoseAnswer(), "PUT", MANIFEST),)),
    "answer-cut": Trap(faults=(Fault(CutAnswer(3), "GET|PUT|POST"),)),
    "session-lost": Trap(
        faults=(Fault(Reply(error_answer(404, ("BLOB_UPLOAD_UNKNOWN", "no such upload", None))), "PUT|PATCH", SESSION),)
    ),
    "digest-header-none": Trap({"digest_header": "none"}),
    "digest-header-wrong": Trap({"digest_header": "wrong"}, passes=False),
    "absent-is-forbidden": Trap({"absent_status": 403}),
    "head-is-forbidden": Trap({"head_status": 403}),
    "head-is-not-allowed": Trap({"head_status": 405}),
    "unknown-blob-is-404": Trap({"unknown_blob_status": 404}),
    "unknown-blob-in-object": Trap({"unknown_blob_detail": "object"}),
    "unknown-blob-unnamed": Trap({"unknown_blob_detail": "none"}),
    "unknown-blob-one-at-a-time": Trap({"unknown_blob_most": 1}),
    "unknown-blob-is-invalid": Trap({"unknown_blob_code": "MANIFEST_INVALID", "unknown_blob_detail": "none"}),
    "unknown-blob-is-422": Trap({"unknown_blob_status": 422, "unknown_blob_code": "BLOB_UNKNOWN"}),
    "unknown-blob-is-name-unknown": Trap({"unknown_blob_status": 404, "unknown_blob_code": "NAME_UNKNOWN"}),
    "unknown-blob-is-manifest-unknown": Trap({"unknown_blob_status": 404, "unknown_blob_code": "MANIFEST_UNKNOWN"}),
    "unknown-blob-in-no-json": Trap({"unknown_blob_code": ""}),
    "unknown-blob-in-no-json-404": Trap({"unknown_blob_status": 404, "unknown_blob_code": ""}),
    "accepts-anything": Trap({"checks_blobs": False}),
    "no-referrers": Trap({"referrers": False}),
    "no-deletes": Trap({"deletes": False}),
    "read-only": Trap({"read_only": True}, passes=False),
    "repository-missing": Trap({"creates_repositories": False}, passes=False),
    "garbage-on-post": Trap(faults=(Fault(Reply(HTML), "POST", UPLOADS, times=0),), passes=False),
    "error-in-html": Trap(faults=(Fault(Reply(HTML_ERROR), "PUT|POST", times=0),), passes=False),
    "error-without-end": Trap(faults=(Fault(Endless(403), "PUT|POST", times=0),), passes=False),
    "never-answers": Trap(faults=(Fault(Silence(), times=0),), passes=False),
    "token-get-only": Trap(tokens=Tokens(post=False), bearer=True),
    "token-get-only-405": Trap(tokens=Tokens(post=False, post_refusal=405), bearer=True),
    "token-field-token": Trap(tokens=Tokens(field="token"), bearer=True),
    "token-field-access-token": Trap(tokens=Tokens(field="access_token"), bearer=True),
    "token-without-lifetime": Trap(tokens=Tokens(says_lifetime=False), bearer=True),
    "realm-private": Trap(tokens=Tokens(realm="http://10.255.255.1/token"), bearer=True, passes=False),
    "realm-link-local": Trap(tokens=Tokens(realm="http://169.254.169.254/token"), bearer=True, passes=False),
}

PULL_TRAPS: dict[str, Trap] = {
    "blobs-elsewhere": Trap({"blobs": "elsewhere"}, bearer=True),
    "blobs-elsewhere-fishing": Trap({"blobs": "elsewhere", "fishes": True}, bearer=True, passes=False),
    "no-ranges": Trap({"ranges": False}, (Fault(CutAnswer(100), "GET", BLOB),)),
    "cut-blob-at-0": Trap(faults=(Fault(CutAnswer(0), "GET", BLOB),)),
    "cut-blob-at-100": Trap(faults=(Fault(CutAnswer(100), "GET", BLOB),)),
    "cut-blob-twice": Trap(faults=(Fault(CutAnswer(100), "GET", BLOB, times=2),)),
    "cut-manifest": Trap(faults=(Fault(CutAnswer(10), "GET", MANIFEST),)),
    "length-too-long": Trap(faults=(Fault(WrongLength(10), "GET", BLOB, times=0),), passes=False),
    "length-too-short": Trap(faults=(Fault(WrongLength(-10), "GET", BLOB, times=0),), passes=False),
    "busy-on-blob": Trap(faults=(Fault(Reply(busy(429, "0")), "GET", BLOB, times=2),)),
    "unavailable-on-manifest": Trap(faults=(Fault(Reply(busy(503, "0")), "GET", MANIFEST),)),
    "tokens-expire-at-once": Trap(tokens=Tokens(expires_at=frozenset((1,))), bearer=True),
    "tokens-expire-among-blobs": Trap(tokens=Tokens(expires_at=frozenset((6,))), bearer=True),
    "digest-header-none": Trap({"digest_header": "none"}),
    "digest-header-wrong": Trap({"digest_header": "wrong"}, passes=False),
    "head-is-forbidden": Trap({"head_status": 403}),
    "head-is-not-allowed": Trap({"head_status": 405}),
    "garbage-manifest": Trap(faults=(Fault(Reply(HTML), "GET|HEAD", MANIFEST, times=0),), passes=False),
    "no-json-manifest": Trap(faults=(Fault(Reply(NO_JSON), "GET", MANIFEST, times=0),), passes=False),
    "endless-manifest": Trap(faults=(Fault(Endless(), "GET", MANIFEST, times=0),), passes=False),
    "endless-blob": Trap(faults=(Fault(Endless(), "GET", BLOB, times=0),), passes=False),
    "never-answers": Trap(faults=(Fault(Silence(), times=0),), passes=False),
}

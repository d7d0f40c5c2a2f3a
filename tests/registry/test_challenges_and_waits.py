"""Parts of the registry client that need no server: challenges, refusals, realms, redirects, waits."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detlayer.errors import AuthError, NotFoundError, RejectedError, UnavailableError
from detlayer.oci.types import digest_of
from detlayer.registry.address import is_loopback, shown_url
from detlayer.registry.auth import Challenge, parse_challenges
from detlayer.registry.connections import Network
from detlayer.registry.error_responses import MAX_ERROR_BYTES, Refusal, RefusedError, error_of, read_faults
from detlayer.registry.transport import Request, Transport


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        (
            ['Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push"'],
            [
                Challenge(
                    "bearer",
                    {
                        "realm": "https://auth.example/token",
                        "service": "registry.example",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        (["Basic realm=registry"], [Challenge("basic", {"realm": "registry"})]),
        (["BASIC"], [Challenge("basic", {})]),
        (
            ['Basic realm="a, b", Bearer realm="https://x/", error="invalid_token"'],
            [
                Challenge("basic", {"realm": "a, b"}),
                Challenge("bearer", {"realm": "https://x/", "error": "invalid_token"}),
            ],
        ),
        (["Negotiate", 'Bearer REALM="q\\"q"'], [Challenge("negotiate", {}), Challenge("bearer", {"realm": 'q"q'})]),
        ([""], []),
        (["===", ',,,"'], []),
    ],
)
def test_challenges(headers: list[str], found: list[Challenge]) -> None:
    """RFC 9110 11.6.1"""
    assert parse_challenges(headers) == found


@given(st.text(max_size=200))
def test_any_challenge_is_read_without_a_fuss(header: str) -> None:
    for challenge in parse_challenges([header]):
        assert challenge.scheme == challenge.scheme.lower()


def test_faults_name_digests_wherever_they_are() -> None:
    """docker-registry reports each missing blob in its own error; other registries nest them."""
    one, two, three = (digest_of(text) for text in (b"1", b"2", b"3"))
    body = {
        "errors": [
            {"code": "MANIFEST_BLOB_UNKNOWN", "message": "blob unknown", "detail": {"digest": str(one)}},
            {"code": "MANIFEST_BLOB_UNKNOWN", "message": "blob unknown", "detail": str(two)},
            {"code": "MANIFEST_BLOB_UNKNOWN", "detail": {"Missing": [{"d": str(three)}, str(one)]}},
            "no object",
            {"code": 5, "message": None, "detail": 7},
        ]
    }
    refusal = Refusal("https://x/", 400, read_faults(json.dumps(body).encode()))
    assert refusal.digests == (one, two, three)
    assert refusal.says("MANIFEST_BLOB_UNKNOWN")


_JSON = st.recursive(
    st.none() | st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(st.binary(max_size=300) | _JSON.map(lambda value: json.dumps({"errors": value}).encode()))
def test_any_error_body_is_read_without_a_fuss(body: bytes) -> None:
    assert str(Refusal("https://x/", 500, read_faults(body))).startswith("500")


def test_a_deep_error_body() -> None:
    body = b'{"errors":[{"code":"X","detail":' + b"[" * 20_000 + b"]" * 20_000 + b"}]}"
    assert len(body) < MAX_ERROR_BYTES
    assert read_faults(body) == ()


@pytest.mark.parametrize(
    ("status", "code", "family", "expected"),
    [
        (401, "UNAUTHORIZED", AuthError, "registry-auth"),
        (403, "DENIED", AuthError, "registry-denied"),
        (404, "NAME_UNKNOWN", NotFoundError, "repository-missing"),
        (404, "MANIFEST_UNKNOWN", NotFoundError, "not-found"),
        (400, "TAG_INVALID", RefusedError, "tag-immutable"),
        (405, "UNSUPPORTED", RefusedError, "registry-read-only"),
        (405, "UNSUPPORTED", RefusedError, "registry-refused"),
        (413, "", RefusedError, "too-large"),
        (429, "TOOMANYREQUESTS", UnavailableError, "registry-busy"),
        (503, "", UnavailableError, "registry-busy"),
        (418, "", RejectedError, "registry-refused"),
    ],
)
def test_refusals_become_errors(status: int, code: str, family: type[Exception], expected: str) -> None:
    body = json.dumps({"errors": [{"code": code, "message": "m"}]}).encode()
    what = "push to a/b" if expected == "registry-read-only" else "pull a/b"
    error = error_of(Refusal("https://x/", status, read_faults(body)), what, "registry.example")
    assert isinstance(error, family)
    assert error.code == expected
    assert error.hint


def test_what_a_registry_says_stays_on_one_line() -> None:
    body = json.dumps({"errors": [{"code": "DENIED", "message": "a\n::error::x\x1b[31m" + "y" * 5000}]}).encode()
    error = error_of(Refusal("https://x/", 403, read_faults(body)), "pull a", "registry.example")
    assert "\n" not in error.message
    assert "\x1b" not in error.message
    assert len(error.message) < 600


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("[::1]:5000", True),
        ("LOCALHOST:5000", True),
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost.evil.example", False),
        ("127.evil.example", False),
        ("127.0.0.1.evil.example:5000", False),
        ("[::1].evil.example", False),
        ("[::2]:5000", False),
        ("", False),
        ("registry.example", False),
    ],
)
def test_loopback(host: str, answer: bool) -> None:
    assert is_loopback(host) is answer


def test_plain_http_is_for_loopback_or_by_leave() -> None:
    transport = Transport(Network(insecure=frozenset({"old.example:5000"})))
    assert transport.base_url("registry.example") == "https://registry.example"
    assert transport.base_url("old.example:5000") == "http://old.example:5000"
    assert transport.base_url("127.0.0.1:5000") == "http://127.0.0.1:5000"
    assert Transport(Network(ca_file="ca.pem")).base_url("127.0.0.1:5000") == "https://127.0.0.1:5000"


def test_urls_are_shown_without_what_may_be_secret() -> None:
    secret = base64.b64encode(b"me:secret").decode()
    shown = shown_url(f"https://me:{secret}@storage.example/blob?X-Amz-Signature={secret}")
    assert secret not in shown
    assert shown == "https://storage.example/blob?…"


def test_a_request_shows_nothing_secret() -> None:
    request = Request("PUT", "https://me:pass@x/u?state=signed", {"authorization": "Bearer token"}, b"refresh_token=r")
    assert repr(request) == f"{request}" == "PUT https://x/u?…"

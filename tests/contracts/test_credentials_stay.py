"""Credentials are sent only to their host, not along redirects, and are requested as rarely as possible."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest

from detlayer.errors import AuthError, RegistryError, UnavailableError
from detlayer.oci.references import RepositoryName
from detlayer.registry.credentials import Credentials
from detlayer.registry.transport import Request
from detlayer.registry.upload import upload
from tests.contracts.raw_server import Asked, RawServer, answer
from tests.contracts.test_addresses import BLOB, ME, Bytes, repository

BEARER = 'Bearer realm="http://{}/token",service="it"'


@pytest.fixture
def other() -> Iterator[RawServer]:
    """Another host that accepts everything and asks for credentials."""

    def say(asked: Asked) -> bytes:
        if asked.method == "GET":
            return answer(401, www_authenticate='Basic realm="fishing"')
        return answer(201)

    with RawServer(say) as server:
        yield server


@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_an_upload_is_sent_on(other: RawServer, status: int, method: str) -> None:
    """To the registry with credentials, to another host without; the body is sent completely."""

    def say(asked: Asked) -> bytes:
        if "authorization" not in asked.headers:
            return answer(401, www_authenticate="Basic")
        if asked.method == method and not asked.target.startswith("/moved"):
            return answer(status, location=f"http://{server.address}/moved{asked.target}")
        if asked.method == "PUT" and method == "PUT":
            return answer(status, location=f"http://{other.address}/moved")
        return answer(202, location="/u") if asked.method == "POST" else answer(201)

    with RawServer(say) as server, repository(server, ME) as one:
        assert upload(one, BLOB, Bytes) == "uploaded"
        moved = [asked for asked in server.asked if asked.target.startswith("/moved")]
        assert [asked.headers.get("authorization", "")[:5] for asked in moved] == ["Basic"]
        last = other.asked[-1] if method == "PUT" else server.asked[-1]
    assert last.body == Bytes().data
    assert [asked.headers.get("authorization") for asked in other.asked] == [None] * (method == "PUT")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_fishing_host_gets_nothing(other: RawServer, status: int) -> None:
    def say(asked: Asked) -> bytes:
        if "authorization" not in asked.headers:
            return answer(401, www_authenticate="Basic")
        return answer(status, location=f"http://{other.address}/blob")

    with RawServer(say) as server, repository(server, ME) as one:
        for get in (lambda: one.get_blob(BLOB.digest), lambda: one.get_manifest("1")):
            with pytest.raises(RegistryError) as caught:
                get()
            assert caught.value.code == "redirect-refused"
        assert len(server.asked) == 1 + 2  # its challenge is remembered
    assert [asked.headers.get("authorization") for asked in other.asked] == [None, None]


def test_a_host_that_is_busy_for_now() -> None:
    """For example the storage behind a registry: a retry may help, and the exit code says so."""
    with RawServer(lambda asked: answer(503)) as busy:
        with RawServer(lambda asked: answer(307, location=f"http://{busy.address}/")) as server:
            with repository(server) as one, pytest.raises(UnavailableError) as caught:
                one.get_blob(BLOB.digest)
            assert len(server.asked) == 1
        assert len(busy.asked) == 2  # with one retry
    assert caught.value.code == "registry-busy"


@pytest.mark.parametrize("status", [301, 302, 303])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_redirect_that_would_lose_the_body(status: int, method: str) -> None:
    def say(asked: Asked) -> bytes:
        if asked.method == method:
            return answer(status, location="/elsewhere")
        return answer(202, location="/u") if asked.method == "POST" else answer(404)

    with RawServer(say) as server, repository(server) as one:
        with pytest.raises(RegistryError) as caught:
            upload(one, BLOB, Bytes)
        assert [asked.target for asked in server.asked if "/elsewhere" in asked.target] == []
    assert caught.value.code == "registry-garbage"


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_redirects_without_end(method: str) -> None:
    with RawServer(lambda asked: answer(307, location=asked.target)) as server, repository(server) as one:
        with pytest.raises(RegistryError) as caught:
            one.call(Request(method, one.url("manifests/1"), content=b"{}" if method == "PUT" else None))  # type: ignore[arg-type]
        assert len(server.asked) == 5
    assert caught.value.code == "registry-garbage"


def test_a_token_service_may_not_send_us_elsewhere(other: RawServer) -> None:
    def say(asked: Asked) -> bytes:
        if asked.target.startswith("/token"):
            return answer(307, location=f"http://{other.address}/token")
        return answer(401, www_authenticate=BEARER.format(server.address))

    with RawServer(say) as server, repository(server, ME) as one, pytest.raises(RegistryError) as caught:
        one.head_manifest("1")
    assert caught.value.code == "redirect-host"
    assert other.asked == []


@pytest.mark.parametrize("error", ["insufficient_scope", "invalid_token", ""])
def test_a_401_for_good_ends_soon(error: str) -> None:
    """Docker Hub's response for a missing repository, if the user may only pull."""

    def say(asked: Asked) -> bytes:
        if asked.target.startswith("/token"):
            return answer(200, b'{"token": "t%d"}' % len(server.asked))
        return answer(401, www_authenticate=BEARER.format(server.address) + (f',error="{error}"' if error else ""))

    with RawServer(say) as server, repository(server, ME) as one:
        with pytest.raises(AuthError) as caught:
            one.get_manifest("1")
        most = 3 if error == "insufficient_scope" else 5
        assert sum(asked.target.startswith("/v2") for asked in server.asked) == most
    # The token service accepts the credentials, but its token lacks the permission.
    assert caught.value.code == ("registry-denied" if error == "insufficient_scope" else "registry-auth")


@pytest.mark.parametrize("refuses", ["mount", "token"])
@pytest.mark.parametrize("status", [401, 403])
def test_a_mount_that_is_forbidden_is_an_upload(refuses: str, status: int) -> None:
    """Whether the registry refuses it, or the token service issues no token for such scopes."""

    def say(asked: Asked) -> bytes:
        if asked.target.startswith("/token"):
            if refuses == "token" and "secret" in asked.target:
                return answer(status)
            return answer(200, b'{"token": "t0ken"}')
        challenge = BEARER.format(server.address) + ',error="insufficient_scope"'
        if "authorization" not in asked.headers or "mount=" in asked.target:
            return answer(status if "mount=" in asked.target else 401, www_authenticate=challenge)
        return answer(202, location="/u") if asked.method == "POST" else answer(201)

    with RawServer(say) as server, repository(server, ME) as one:
        source = RepositoryName(server.address, "secret/base")
        one.expect_push([source])
        assert upload(one, BLOB, Bytes, mount_from=source) == "uploaded"
        assert any("mount=" in asked.target for asked in server.asked)


@pytest.mark.parametrize("scheme", ["basic", "bearer", "identity"])
@pytest.mark.parametrize("status", [401, 403, 400, 500])
def test_a_host_that_says_back_what_it_was_sent(scheme: str, status: int) -> None:
    """Some servers repeat requests in errors for debugging; secrets must not enter our messages."""
    me = Credentials(identity_token="identity-token") if scheme == "identity" else ME

    def say(asked: Asked) -> bytes:
        header = asked.headers.get("authorization", "")
        login = base64.b64decode(header.partition(" ")[2]).decode() if header.startswith("Basic") else ""
        text = f"no: {header} {login} {asked.body.decode()}"
        told = answer(status, json.dumps({"errors": [{"code": text, "message": text}]}).encode())
        if asked.target.startswith("/token"):
            return told if scheme == "identity" else answer(200, b'{"token": "t0ken-of-the-service"}')
        if not header:
            return answer(401, www_authenticate="Basic" if scheme == "basic" else BEARER.format(server.address))
        return told

    with RawServer(say) as server, repository(server, me) as one, pytest.raises(RegistryError) as caught:
        one.get_manifest("1")
    shown = caught.value.message + caught.value.hint
    assert "no: " in shown
    for secret in ("hunter2-secret", "bWU6aHVudGVyMi1zZWNyZXQ=", "t0ken-of-the-service", "identity-token"):
        assert secret not in shown

"""Invalid URLs in Locations, challenges and tokens: parsed unambiguously, or rejected."""

from __future__ import annotations

import contextlib
import io
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from detlayer.errors import AuthError, RegistryError
from detlayer.oci.ports import Session
from detlayer.oci.references import RepositoryName
from detlayer.oci.types import Descriptor, digest_of
from detlayer.registry import Network, Registries, Repository, Transport
from detlayer.registry.credentials import Credentials
from detlayer.registry.upload import CHUNKED_FROM_BYTES, upload
from tests.contracts.client import FastPace
from tests.contracts.raw_server import Asked, RawServer, answer

SECRET = "hunter2-secret"
ME = Credentials("me", SECRET)
DATA = b"x" * 1000
BLOB = Descriptor("application/octet-stream", digest_of(DATA), len(DATA))


@dataclass(frozen=True)
class Bytes:
    data: bytes = DATA

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    @contextlib.contextmanager
    def open(self, offset: int = 0) -> Iterator[io.BytesIO]:
        yield io.BytesIO(self.data[offset:])


@contextlib.contextmanager
def repository(server: RawServer, credentials: Credentials | None = None, **how: object) -> Iterator[Repository]:
    network = Network(read_s=10, connect_s=10, retries=1, **how)  # type: ignore[arg-type]
    with Registries(Transport(network, pace=FastPace()), lambda name: credentials) as registries:
        yield registries.repository(RepositoryName(server.address, "team/app"))


def registry(location: str = "", *, challenge: str = "", token: bytes = b'{"token":"t0ken"}') -> RawServer:
    """A registry that redirects every upload to `location`, and requires credentials by `challenge`."""

    def say(asked: Asked) -> bytes:
        if asked.target.startswith("/token"):
            return answer(200, token)
        if challenge and "authorization" not in asked.headers:
            return answer(401, www_authenticate=challenge.replace("HERE", server.address))
        if asked.method == "POST":
            return answer(202, location=location.replace("HERE", server.address))
        return answer(404 if asked.method == "HEAD" else 201)

    server = RawServer(say)
    return server


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/v2/u", "/v2/u"),
        ("u", "/v2/team/app/blobs/uploads/u"),
        ("?_state=a%2Bb", "/v2/team/app/blobs/uploads/?_state=a%2Bb"),
        ("//HERE/u", "/u"),
        ("http://HERE/u#fragment", "/u"),
        ("http://HERE/u?_state=a#fragment", "/u?_state=a"),
        ("HTTP://HERE/u?", "/u"),
        ("/ä b", "/%C3%A4%20b"),
        ("/../../u", "/u"),
    ],
)
def test_locations(location: str, target: str) -> None:
    with registry(location, challenge='Basic realm="x"') as server, repository(server, ME) as one:
        assert upload(one, BLOB, Bytes) == "uploaded"
        put = server.asked[-1]
    assert put.method == "PUT"
    assert put.target == f"{target}{'&' if '?' in target else '?'}digest={BLOB.digest}"
    assert put.headers["authorization"].startswith("Basic ")


@pytest.mark.parametrize(
    "location",
    [
        "",
        "http://[::1",
        "http://[:::]/u",
        "http://HERE\\@evil.example/u",
        "http://evil.example\\u",
        "http://me:secret@HERE/u",
        "http://127.0.0.1:0/u",
        "http://127.0.0.1:99999/u",
        "http://127.0.0.1:port/u",
        "http://bücher.example/u",
        f"http://{'a' * 64}.example/u",
        f"http://{'a.' * 127}example/u",
        "http://a..example/u",
        "javascript:alert(1)",
        "file:///etc/passwd",
        "ftp://HERE/u",
        "/" + "a" * 9000,
    ],
)
@pytest.mark.parametrize("status", [202, 307])
def test_locations_that_are_none(location: str, status: int) -> None:
    def say(asked: Asked) -> bytes:
        return answer(status, location=location.replace("HERE", server.address))

    with RawServer(say) as server, repository(server) as one:
        with pytest.raises(RegistryError) as caught:
            upload(one, BLOB, Bytes)
        assert len(server.asked) == 1  # no request is redirected or retried
    assert caught.value.code == "registry-garbage"
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("location", ["http://[::1", "http://127.0.0.1:x/", "gopher://127.0.0.1/", "http://bücher/"])
def test_redirects_to_nowhere(location: str) -> None:
    with RawServer(lambda asked: answer(302, location=location)) as server, repository(server) as one:
        with pytest.raises(RegistryError) as caught:
            one.get_manifest("1")
        assert len(server.asked) == 1
    assert caught.value.code == "registry-garbage"


@pytest.mark.parametrize(
    "realm",
    [
        "",
        "token",
        "http://[::1",
        "http://me:secret@HERE/token",
        "http://HERE\\@evil.example/token",
        "http://127.0.0.1:x/token",
        "ftp://HERE/token",
        f"http://{'a' * 64}.example/token",
    ],
)
def test_realms_that_are_none(realm: str) -> None:
    with registry(challenge=f'Bearer realm="{realm}"') as server, repository(server, ME) as one:
        with pytest.raises(RegistryError) as caught:
            one.head_manifest("1")
        assert len(server.asked) == 1
    assert caught.value.code == "registry-garbage"
    assert SECRET not in caught.value.message


@pytest.mark.parametrize("realm", ["http://HERE/token#fragment", "http://HERE/token?a=b", "http://HERE/token?"])
def test_realms(realm: str) -> None:
    with registry(challenge=f'Bearer realm="{realm}",service="it"') as server, repository(server, ME) as one:
        assert one.head_manifest("1") is None
        token = next(asked for asked in server.asked if asked.target.startswith("/token"))
    assert "service=it" in token.target
    assert "scope=repository%3Ateam%2Fapp%3Apull" in token.target
    assert SECRET not in token.target


@pytest.mark.parametrize(
    "reply",
    [
        b'{"token": null, "access_token": "t0ken"}',
        b'{"access_token": "t0ken", "expires_in": null, "refresh_token": null}',
        b'{"token": "t0ken", "expires_in": "300", "issued_at": 5}',
        b'{"token": "t0ken", "expires_in": -1}',
        b'{"token": "t0ken", "expires_in": "soon"}',
        b'{"token": "t0ken", "expires_in": 1e300}',
        b'{"token": "t0ken", "expires_in": {}, "scope": [[]]}',
    ],
)
def test_tokens_of_services_that_are_lax(reply: bytes) -> None:
    with registry(challenge='Bearer realm="http://HERE/token"', token=reply) as server, repository(server, ME) as one:
        assert one.head_manifest("1") is None
        assert server.asked[-1].headers["authorization"] == "Bearer t0ken"


@pytest.mark.parametrize(
    "reply",
    [b"", b"[]", b"{}", b'{"token": 5}', b'{"token": "a\\r\\nX: y"}', b'{"token": "\\u00e4"}', b"[" * 100_000],
)
def test_tokens_that_are_none(reply: bytes) -> None:
    with (
        registry(challenge='Bearer realm="http://HERE/token"', token=reply) as server,
        repository(server, ME) as one,
        pytest.raises(RegistryError) as caught,
    ):
        one.head_manifest("1")
    assert caught.value.code == "registry-garbage"


@pytest.mark.parametrize("token", [SECRET + "\r\nX: y", SECRET + "ä", SECRET + "\udcff"])
def test_a_registry_token_that_is_no_header(token: str) -> None:
    with registry(challenge='Bearer realm="http://HERE/token"') as server:
        with repository(server, Credentials(registry_token=token)) as one, pytest.raises(AuthError) as caught:
            one.head_manifest("1")
        assert len(server.asked) == 1
    assert SECRET not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    "credentials",
    [Credentials("me\udcff", "\udcfe"), Credentials("m:e\n", "\r\n"), Credentials(identity_token="\udcff")],
)
@pytest.mark.parametrize("challenge", ["Basic", 'Bearer realm="http://HERE/token"'])
def test_credentials_that_are_no_text(credentials: Credentials, challenge: str) -> None:
    """From an environment that is not UTF-8: the bytes are sent unchanged."""
    with registry(challenge=challenge) as server, repository(server, credentials) as one:
        if credentials.identity_token and challenge == "Basic":
            with pytest.raises(AuthError):
                one.head_manifest("1")
        else:
            assert one.head_manifest("1") is None


def test_names_that_differ_in_case_are_one_host() -> None:
    """A registry named in upper case that sends lower-case Locations receives its credentials."""
    with registry("http://localhost:PORT/u", challenge='Basic realm="x"') as server:
        server_script = server.script

        def say(asked: Asked) -> bytes:
            said = server_script(asked)
            assert isinstance(said, bytes)
            return said.replace(b"PORT", str(server.port).encode())

        server.script = say
        with Registries(Transport(Network(retries=0)), lambda name: ME) as registries:
            one = registries.repository(RepositoryName(f"LOCALHOST:{server.port}", "team/app"))
            assert upload(one, BLOB, Bytes) == "uploaded"
        assert server.asked[-1].headers["authorization"].startswith("Basic ")


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_ipv6() -> None:
    def say(asked: Asked) -> bytes:
        return answer(202, location=f"http://{server.address}/u") if asked.method == "POST" else answer(201)

    with RawServer(say, family=socket.AF_INET6) as server, repository(server) as one:
        assert upload(one, BLOB, Bytes) == "uploaded"
        assert server.asked[-1].headers["host"] == server.address


@pytest.mark.parametrize("location", ["http://HERE/elsewhere", "http://[::1", "file:///etc/passwd", "http://me@HERE/u"])
def test_a_session_that_is_remembered_is_not_trusted(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may name another host, which gets no credentials, or be invalid: then the upload starts again."""
    monkeypatch.setattr("detlayer.registry.upload.CHUNKED_FROM_BYTES", 100)
    assert CHUNKED_FROM_BYTES > 100
    with RawServer(lambda asked: answer(404)) as other, registry("/v2/u", challenge="Basic") as server:
        session = Session(location.replace("HERE", other.address), 500)
        with repository(server, ME) as one:
            one.head_manifest("1")
            assert upload(one, BLOB, Bytes, resume=session) == "uploaded"
        assert [asked.headers.get("authorization") for asked in other.asked] == [None] * ("HERE/e" in location)

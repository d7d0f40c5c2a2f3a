"""Connections to registries: proxies from the environment, never for loopback; client certificates."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import ssl
import threading
from pathlib import Path

import pytest

from detlayer.errors import ConfigError, RegistryError
from detlayer.oci.references import RepositoryName
from detlayer.oci.types import digest_of
from detlayer.registry import Network, Registries, Transport
from detlayer.registry.credentials import Credentials
from tests.contracts.certificates import authority, ca_path
from tests.contracts.raw_server import Asked, RawServer, answer

FAR = RepositoryName("registry.example:5000", "team/app")
ME = Credentials("me", "hunter2-secret")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def look_up(name: RepositoryName, network: Network, credentials: Credentials | None = None) -> None:
    with Registries(Transport(network), lambda name: credentials) as registries:
        assert registries.repository(name).head_manifest("1") is None


PLAIN = Network(insecure=frozenset({"registry.example:5000"}), retries=0, connect_s=5, read_s=5, proxies=os.environ)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_plain_http_by_a_proxy(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(lambda asked: answer(404)) as proxy:
        monkeypatch.setenv(variable, f"http://proxy-user:proxy-password@{proxy.address}")
        look_up(FAR, PLAIN)
    (asked,) = proxy.asked
    assert asked.target == "http://registry.example:5000/v2/team/app/manifests/1"
    assert base64.b64decode(asked.headers["proxy-authorization"].split()[1]) == b"proxy-user:proxy-password"
    assert "authorization" not in asked.headers


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_loopback_is_never_proxied(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = socket.AF_INET6 if host == "[::1]" else socket.AF_INET
    with RawServer(lambda asked: answer(502)) as proxy, RawServer(lambda asked: answer(404), family=family) as server:
        for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(variable, f"http://{proxy.address}")
        look_up(RepositoryName(f"{host}:{server.port}", "team/app"), Network(retries=0, proxies=os.environ))
        assert len(server.asked) == 1
    assert proxy.asked == []


@pytest.mark.parametrize("hosts", ["registry.example", ".example", "*", "other.example,registry.example:5000"])
def test_who_is_not_to_be_proxied(hosts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(lambda asked: answer(404)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
        monkeypatch.setenv("NO_PROXY", hosts)
        with pytest.raises(RegistryError) as caught:
            look_up(FAR, PLAIN)
    assert caught.value.code == "registry-unreachable"
    assert proxy.asked == []


class Tunnel:
    """A proxy that connects every CONNECT to one server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.heads: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._lead, args=(client,), daemon=True).start()

    def _lead(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", self._port)) as server:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += client.recv(1)
            self.heads.append(head)
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=self._copy, args=(server, client), daemon=True)
            back.start()
            self._copy(client, server)
            back.join(10)

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def server_context(*names: str) -> ssl.SSLContext:
    """A TLS context for these names, which requests but does not require a client certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(*names).configure_cert(context)
    context.load_verify_locations(ca_path())
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def test_tls_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy sees the host, but no content."""

    def say(asked: Asked) -> bytes:
        return answer(404) if "authorization" in asked.headers else answer(401, www_authenticate="Basic")

    with RawServer(say, tls=server_context("registry.example")) as server:
        with contextlib.closing(Tunnel(server.port)) as tunnel:
            monkeypatch.setenv("HTTPS_PROXY", tunnel.url)
            look_up(FAR, Network(ca_file=str(ca_path()), retries=0, proxies=os.environ), ME)
        assert [asked.headers["host"] for asked in server.asked] == ["registry.example:5000"] * 2
    assert tunnel.heads
    for head in tunnel.heads:
        assert head.startswith(b"CONNECT registry.example:5000 HTTP/1.1\r\n")
        assert b"authorization" not in head.lower()


@pytest.mark.parametrize("status", [403, 407, 502])
def test_a_proxy_that_does_not_lead_there(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(lambda asked: answer(status)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:hunter2-secret@{proxy.address}")
        with pytest.raises(RegistryError) as caught:
            look_up(FAR, Network(retries=0, proxies=os.environ))
    assert caught.value.code == "proxy-failed"
    assert "hunter2-secret" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("proxy", ["ftp://127.0.0.1:1", "socks5://127.0.0.1:1", "http://[::1", "http://me:hunter2@h:x"])
def test_a_proxy_that_is_none(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(ConfigError) as caught:
        look_up(FAR, Network(retries=0, proxies=os.environ))
    assert caught.value.code == "proxy-invalid"
    assert "hunter2" not in caught.value.message


@pytest.fixture
def client_files(tmp_path: Path) -> tuple[str, str]:
    leaf = authority().issue_cert("me@example.com")
    certificate, key = tmp_path / "me.crt", tmp_path / "me.key"
    leaf.cert_chain_pems[0].write_to_path(str(certificate))
    leaf.private_key_pem.write_to_path(str(key))
    return str(certificate), str(key)


def test_a_client_certificate_is_for_registries(client_files: tuple[str, str]) -> None:
    """Not for the hosts that store the blobs."""
    data = b"data"
    with (
        RawServer(lambda asked: answer(200, data), tls=server_context("localhost")) as storage,
        RawServer(
            lambda asked: answer(307, location=f"https://localhost:{storage.port}/signed"),
            tls=server_context("127.0.0.1"),
        ) as server,
    ):
        certificate, key = client_files
        network = Network(ca_file=str(ca_path()), client_cert=certificate, client_key=key, retries=0)
        with Registries(Transport(network)) as registries:
            one = registries.repository(RepositoryName(server.address, "team/app"))
            assert one.get_blob(digest_of(data)).read(100) == data
    assert [asked.showed_certificate for asked in server.asked] == [True]
    assert [asked.showed_certificate for asked in storage.asked] == [False]


def test_a_client_certificate_that_is_none(client_files: tuple[str, str], tmp_path: Path) -> None:
    certificate, key = client_files
    (tmp_path / "empty").write_bytes(b"")
    for wrong in ((key, None), (certificate, certificate), (str(tmp_path / "empty"), None), ("missing", None)):
        network = Network(ca_file=str(ca_path()), client_cert=wrong[0], client_key=wrong[1], retries=0)
        with pytest.raises(ConfigError) as caught:
            look_up(RepositoryName("127.0.0.1:1", "team/app"), network)
        assert caught.value.code == "certificate-unreadable"

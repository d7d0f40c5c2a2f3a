"""Connections time out on a peer that trickles bytes, although each byte restarts a socket's own timeout."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import httpcore
import pytest

from detlayer.errors import RegistryError
from detlayer.oci.references import RepositoryName
from detlayer.registry import Network, Registries, Transport
from detlayer.registry.backend import Backend
from tests.contracts.raw_server import RawServer, answer

READ_S = 0.5


def trickle(data: bytes, pieces: int) -> Iterator[bytes]:
    """Send a response in pieces over three times the client's timeout, then end, so that no client hangs."""
    size = len(data) // pieces + 1
    for at in range(0, len(data), size):
        time.sleep(3 * READ_S / pieces)
        yield data[at : at + size]


@pytest.mark.parametrize("is_proxied", [False, True])
def test_head_that_trickles_in_is_a_timeout(is_proxied: bool) -> None:
    with RawServer(lambda asked: trickle(answer(404), 12)) as server:
        name = RepositoryName("registry.example" if is_proxied else server.address, "team/app")
        network = Network(
            insecure=frozenset({"registry.example"}),
            retries=0,
            read_s=READ_S,
            proxies={"http_proxy": f"http://{server.address}"},
        )
        with Registries(Transport(network), lambda name: None) as registries, pytest.raises(RegistryError) as caught:
            registries.repository(name).head_manifest("1")
    assert caught.value.code == "registry-timeout"


def test_a_connection_on_which_nothing_moves_is_kept_alive() -> None:
    """Routers forget idle connections, such as one on which a registry stores a blob for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stream = Backend(httpcore.SyncBackend()).connect_tcp("127.0.0.1", server.getsockname()[1], timeout=30)
        connection: socket.socket = stream.get_extra_info("socket")
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        stream.close()

"""Slow, endless or non-HTTP responses: an error within the user's timeout."""

from __future__ import annotations

import gzip
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import IO, Any

import pytest

from detlayer.errors import DetlayerError, UnavailableError
from detlayer.oci.references import RepositoryName
from detlayer.oci.types import Descriptor, digest_of
from detlayer.registry import Network, Registries, Transport
from detlayer.registry.download import RemoteReader
from detlayer.registry.transport import Request, Stretch
from detlayer.registry.upload import upload
from tests.contracts.certificates import ca_path, server_context
from tests.contracts.client import FastPace
from tests.contracts.raw_server import Asked, RawServer, answer
from tests.contracts.test_addresses import Bytes

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\n"


def trickle(server: RawServer, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Send a piece from time to time, while the client reads."""
    for piece in pieces:
        if server.over.wait(0.05):
            return
        yield piece


Say = Callable[[RawServer], bytes | Iterable[bytes]]


def ask(say: Say, read_s: float) -> DetlayerError:
    """Fetch a manifest from a server with this response; returns the error."""
    with RawServer(lambda asked: say(server)) as server:
        transport = Transport(Network(read_s=read_s, retries=0))
        with Registries(transport) as registries, pytest.raises(DetlayerError) as caught:
            registries.repository(RepositoryName(server.address, "team/app")).get_manifest("1")
        assert len(server.asked) == 1
    return caught.value


SLOW: dict[str, Say] = {
    "head": lambda server: itertools.chain([HEAD], trickle(server, itertools.repeat(b"X"))),
    "headers": lambda server: itertools.chain([HEAD], trickle(server, itertools.repeat(b"X-A: b\r\n"))),
    "informational": lambda server: trickle(server, itertools.repeat(b"HTTP/1.1 102 Processing\r\n\r\n")),
    "body": lambda server: itertools.chain(
        [HEAD, b"Content-Length: 1000000\r\n\r\n"], trickle(server, itertools.repeat(b" "))
    ),
    "chunk-extension": lambda server: itertools.chain(
        [HEAD, b"Transfer-Encoding: chunked\r\n\r\n1;"], trickle(server, itertools.repeat(b"x"))
    ),
}


@pytest.mark.parametrize("name", SLOW)
def test_what_trickles_in_ends(name: str) -> None:
    """Each byte is in time, but the whole is not: without a total limit, this test would never end."""
    assert ask(SLOW[name], 0.5).code == "registry-timeout"


def test_an_error_that_trickles_in_is_known_by_its_status() -> None:
    def say(server: RawServer) -> Iterable[bytes]:
        return itertools.chain(
            [b"HTTP/1.1 403 No\r\nContent-Length: 9999\r\n\r\n"], trickle(server, itertools.repeat(b" "))
        )

    assert ask(say, 0.5).code == "registry-denied"


ERRORS = [{"code": "DENIED", "message": "m" * 50}] * 1000
WRONG: dict[str, tuple[bytes | list[bytes], str]] = {
    "no-http-at-length": (b"x" * 60_000 + b"\r\n\r\n", "registry-broke-off"),
    "no-http": (b"hello\r\n\r\n", "registry-broke-off"),
    "http-2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "registry-broke-off"),
    "two-lengths": (HEAD + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabc", "registry-broke-off"),
    "many-headers": ([HEAD, *[b"X-A: " + b"b" * 1000 + b"\r\n"] * 1000], "registry-broke-off"),
    "gzip": (answer(200, gzip.compress(b"{}"), content_encoding="gzip"), "document-invalid"),
    "deep": (answer(200, b"[" * 1_000_000), "document-invalid"),
    "deep-object": (answer(200, b'{"a":' * 500_000), "document-invalid"),
    "thousands-of-errors": (answer(403, json.dumps({"errors": ERRORS}).encode()), "registry-denied"),
    "deep-error": (answer(403, b'{"errors":[{"detail":' * 3000), "registry-denied"),
    "too-long": ([HEAD, b"\r\n", *[b" " * 65536] * 65], "manifest-too-long"),
    "binary-status": (b"HTTP/1.1 200 \x1b[31m\x00\r\n\r\n", "registry-broke-off"),
    "empty": (answer(200), "document-invalid"),
    "no-content": (answer(204), "registry-garbage"),
    "status-99": (b"HTTP/1.1 099 ?\r\nContent-Length: 0\r\n\r\n", "registry-broke-off"),
    "status-999": (answer(999), "registry-refused"),
}


@pytest.mark.parametrize("name", WRONG)
def test_answers_that_are_none(name: str) -> None:
    said, code = WRONG[name]
    error = ask(lambda server: said, 10.0)
    assert error.code == code
    assert error.message.isprintable()
    assert len(error.message) < 600


# -- transfers: 64 KiB within each timeout

LONG = bytes(range(256)) * 16384  # 4 MiB: more than the socket buffers of both sides
SHORT = LONG[: 600 << 10]


class Trickle:
    """Reads request bodies in pieces, with a pause after each."""

    def __init__(self, piece_bytes: int, pause_s: float) -> None:
        self._piece_bytes = piece_bytes
        self._pause_s = pause_s
        self.over = threading.Event()

    def __call__(self, stream: IO[bytes], length: int) -> bytes:
        body = bytearray()
        while len(body) < length and not self.over.wait(self._pause_s):
            body += stream.read(min(self._piece_bytes, length - len(body)))
        return bytes(body)


@contextmanager
def trickling(piece_bytes: int, pause_s: float, *, tls: bool = False) -> Iterator[RawServer]:
    """A server that reads bodies like this, and answers 201."""
    take = Trickle(piece_bytes, pause_s)
    context = server_context() if tls else None
    with RawServer(lambda asked: answer(201), take=take, tls=context, receive_bytes=16 << 10) as server:
        yield server
        take.over.set()


def send(server: RawServer, data: bytes, read_s: float, *, tls: bool = False) -> int:
    """Send data in one request; returns the status."""
    network = Network(read_s=read_s, retries=0, ca_file=str(ca_path()) if tls else None)
    transport = Transport(network)
    try:
        body = Stretch(Bytes(data), 0, len(data), lambda count_bytes: None)
        url = f"{'https' if tls else 'http'}://{server.address}/"
        said = transport.send(Request("PUT", url, content=body, repeat=False))
        said.drain()
        return said.status
    finally:
        transport.close()


@pytest.mark.parametrize("tls", [False, True])
def test_a_peer_that_takes_a_few_bytes_now_and_then_is_given_up(tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read is in time, but the whole is not: without a minimum rate, this test would take minutes."""
    connect = socket.create_connection

    def connect_narrowly(*arguments: Any, **options: Any) -> socket.socket:
        made = connect(*arguments, **options)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # so that each read of the peer unblocks the sender
        return made

    monkeypatch.setattr(socket, "create_connection", connect_narrowly)
    with trickling(1600, 0.02, tls=tls) as server, pytest.raises(UnavailableError) as caught:
        send(server, LONG, 0.5, tls=tls)
    assert caught.value.code == "registry-timeout"
    assert "64 KiB" in caught.value.message


def test_the_time_to_store_a_blob_begins_when_it_has_arrived() -> None:
    """A peer that takes no more bytes is given up as in any transfer, although it has an hour to store them."""
    stuck = threading.Event()

    def take(stream: IO[bytes], length: int) -> bytes:
        stuck.wait(60)
        return b""

    body = Stretch(Bytes(SHORT), 0, len(SHORT), lambda count_bytes: None)
    transport = Transport(Network(read_s=0.3, retries=0))
    with RawServer(lambda asked: answer(201), take=take, receive_bytes=1 << 16) as server:
        request = Request("PUT", f"http://{server.address}/", content=body, store="a blob", patience_s=3600)
        with pytest.raises(UnavailableError) as caught:
            transport.send(request)
        stuck.set()
    transport.close()
    assert caught.value.message.endswith("accepts data too slowly: less than 64 KiB in 0.3 s")


@pytest.mark.parametrize("tls", [False, True])
def test_a_slow_link_has_the_time_that_it_needs(tls: bool) -> None:
    """The whole takes longer than the timeout, also after the last byte is in the socket buffer."""
    with trickling(16 << 10, 0.05, tls=tls) as server:
        assert send(server, SHORT, 1.0, tls=tls) == 201
        assert server.asked[0].body == SHORT


def fetch(say: Callable[[RawServer, Asked], bytes | Iterable[bytes]], data: bytes, read_s: float) -> bytes:
    """Fetch a blob from a server with this response."""
    transport = Transport(Network(read_s=read_s, retries=2), pace=FastPace())
    with RawServer(lambda asked: say(server, asked)) as server, Registries(transport) as registries:
        repository = registries.repository(RepositoryName(server.address, "team/app"))
        with closing(RemoteReader(repository, Descriptor("", digest_of(data), len(data)))) as reader:
            return b"".join(iter(lambda: reader.read(1 << 20), b""))


def part(asked: Asked, data: bytes) -> tuple[bytes, bytes]:
    """Return the head of a response to a GET of a blob, and the bytes after it."""
    start = int(asked.headers.get("range", "bytes=0-")[6:-1])
    return answer(206 if start else 200, content_length=str(len(data) - start)), data[start:]


def test_a_peer_that_sends_a_few_bytes_now_and_then_is_given_up() -> None:
    def say(server: RawServer, asked: Asked) -> Iterable[bytes]:
        head, rest = part(asked, LONG)
        return itertools.chain([head], trickle(server, (rest[at : at + 1] for at in range(len(rest)))))

    with pytest.raises(UnavailableError) as caught:
        fetch(say, LONG, 0.2)
    assert caught.value.code == "registry-timeout"
    assert "64 KiB" in caught.value.message


def test_a_peer_that_sends_a_few_bytes_on_each_connection_is_given_up() -> None:
    """Each connection makes progress, and ends long before its timeout."""

    def say(server: RawServer, asked: Asked) -> Iterable[bytes]:
        head, rest = part(asked, LONG)
        return itertools.chain([head], trickle(server, [rest[:1]]))

    with pytest.raises(UnavailableError) as caught:
        fetch(say, LONG, 0.1)
    assert caught.value.code == "registry-broke-off"


def test_a_slow_sender_has_the_time_that_it_needs() -> None:
    def say(server: RawServer, asked: Asked) -> Iterable[bytes]:
        head, rest = part(asked, SHORT)
        return itertools.chain([head], trickle(server, (rest[at : at + 20000] for at in range(0, len(rest), 20000))))

    assert fetch(say, SHORT, 1.0) == SHORT


def test_an_upload_that_gains_a_few_bytes_on_each_connection_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The download is resumed repeatedly, one byte further each time."""
    monkeypatch.setattr("detlayer.registry.upload.CHUNKED_FROM_BYTES", 1)
    taken = 1

    def say(asked: Asked) -> bytes | Iterable[bytes]:
        nonlocal taken
        if asked.method == "HEAD":
            return answer(404)
        if asked.method == "PATCH":
            taken += 1
            return trickle(server, [b""])  # closes after a while
        return answer(204 if asked.method == "GET" else 202, location="/u", range=f"0-{taken}")

    with RawServer(say) as server, Registries(Transport(Network(read_s=0.1, retries=2))) as registries:
        repository = registries.repository(RepositoryName(server.address, "team/app"))
        with pytest.raises(UnavailableError):
            upload(repository, Descriptor("", digest_of(SHORT), len(SHORT)), lambda: Bytes(SHORT))
        assert taken < 100

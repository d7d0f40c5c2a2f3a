"""Answers that trickle in, that are too large, or that are no HTTP: an error within the time that the user allows."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable, Iterable, Iterator

import pytest

from detlayer.errors import DetlayerError
from detlayer.names import RepositoryName
from detlayer.registry import Network, Registries, Transport
from tests.contracts.raw import RawServer, answer

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\n"


def trickle(server: RawServer, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """A piece now and then, for as long as anybody listens."""
    for piece in pieces:
        if server.over.wait(0.05):
            return
        yield piece


Say = Callable[[RawServer], bytes | Iterable[bytes]]


def ask(say: Say, read_s: float) -> DetlayerError:
    """Fetch a manifest from whoever answers so; returns what is raised."""
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
    """Each byte is in time, and the whole is not: without a bound on that, this test would never end."""
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

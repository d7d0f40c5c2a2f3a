"""Retries: which requests, how often, and when; only if safe and useful, and separately for each host."""

from __future__ import annotations

import threading

import pytest

from detlayer.errors import RegistryError
from detlayer.oci.references import RepositoryName
from detlayer.oci.types import Descriptor, digest_of
from detlayer.registry import Network, Registries, Transport
from detlayer.registry.transport import Request, Stretch
from detlayer.registry.upload import upload
from tests.contracts.client import FastPace
from tests.contracts.raw_server import Asked, RawServer, answer
from tests.contracts.test_addresses import BLOB, Bytes, repository

RETRIES = 3
GO_400 = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request"
)
REFUSED = b'{"errors": [{"code": "MANIFEST_INVALID", "message": "manifest invalid"}]}'
PASSING = (429, 500, 502, 503, 504)
FINAL = (400, 402, 403, 404, 405, 406, 408, 409, 410, 413, 416, 418, 422, 451, 501, 505)


def transport(pace: FastPace | None = None) -> Transport:
    return Transport(Network(retries=RETRIES, read_s=10), pace=pace or FastPace())


@pytest.mark.parametrize("status", [*PASSING, *FINAL])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE"])
def test_how_often_a_request_is_sent_again(status: int, method: str) -> None:
    body = {"body": REFUSED, "content_type": "application/json"} if status == 400 else {}
    with RawServer(lambda asked: answer(status, **body)) as server:  # type: ignore[arg-type]
        sender = transport()
        said = sender.send(Request(method, f"http://{server.address}/"))  # type: ignore[arg-type]
        said.drain()
        sender.close()
    assert said.status == status
    assert len(server.asked) == (RETRIES + 1 if status in PASSING else 1)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize(
    ("said", "is_repeated"),
    [
        (GO_400, True),
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", True),
        (answer(400), True),
        (b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n", False),
        (answer(400, REFUSED, content_type="application/json"), False),
        (answer(400, b"<html>400 Bad Request</html>", content_type="text/html"), False),
    ],
    ids=["go", "node", "empty", "go-plain-http", "oci", "html"],
)
def test_a_request_that_arrives_in_part(said: bytes, is_repeated: bool, method: str) -> None:
    """The HTTP server answers 400 by itself, which says nothing about the request."""
    with RawServer(lambda asked: said) as server:
        sender = transport()
        last = sender.send(Request(method, f"http://{server.address}/"))  # type: ignore[arg-type]
        assert last.status == 400
        last.drain()
        sender.close()
    assert len(server.asked) == (RETRIES + 1 if is_repeated else 1)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("body", [b"the tag is too long", b'{"errors":[{"code":"TAG_INVALID"}]}', b"x" * 100_000])
def test_a_true_400_is_read_as_a_whole(body: bytes, method: str) -> None:
    """Looking at the beginning of the body takes nothing from it."""
    with RawServer(lambda asked: answer(400, body)) as server:
        sender = transport()
        said = sender.send(Request(method, f"http://{server.address}/"))  # type: ignore[arg-type]
        assert said.read(1 << 20) == body
        sender.close()
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", PASSING)
def test_a_body_that_streams_is_not_sent_again(status: int) -> None:
    """The caller must find out the outcome of the first attempt."""
    with RawServer(lambda asked: answer(status)) as server:
        sender, body = transport(), Bytes()
        stretch = Stretch(body, 0, body.size_bytes, lambda count_bytes: None)
        sender.send(Request("PUT", f"http://{server.address}/", content=stretch, repeat=False)).drain()
        sender.close()
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [*PASSING, 0])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_uploads_end(status: int, method: str) -> None:
    """The number of requests is bounded for any behaviour of the registry; 0 closes the connection."""

    def say(asked: Asked) -> bytes:
        if asked.method == method:
            return answer(status) if status else b""
        return answer(202, location="/u") if asked.method == "POST" else answer(404)

    with RawServer(say) as server, repository(server) as one:
        with pytest.raises(RegistryError):
            upload(one, BLOB, Bytes)
        assert len(server.asked) < 30


def test_waits_grow_and_have_an_end() -> None:
    pace = FastPace()
    sender = Transport(Network(retries=20), pace=pace)
    with RawServer(lambda asked: answer(503)) as server:
        for _ in range(60):  # more failures than a limit by number would allow
            sender.send(Request("GET", f"http://{server.address}/")).drain()
        sender.close()
    assert pace.waits_s[0] <= 0.25
    assert 10 < max(pace.waits_s) <= 30


@pytest.mark.parametrize(
    ("text", "least_s", "most_s"),
    [
        ("7", 6.9, 7),
        ("0", 0, 0),
        ("-5", 0, 1),
        ("soon", 0, 1),
        ("9" * 400, 0, 60),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0, 0),
    ],
)
def test_retry_after(text: str, least_s: float, most_s: float) -> None:
    pace = FastPace()
    sender = transport(pace)
    with RawServer(lambda asked: answer(429, retry_after=text)) as server:
        sender.send(Request("GET", f"http://{server.address}/")).drain()
        sender.close()
        assert len(server.asked) == (1 if len(text) > 300 else RETRIES + 1)
    assert all(least_s <= wait_s <= most_s for wait_s in pace.waits_s)


def test_one_busy_host_does_not_keep_others_waiting() -> None:
    """All requests to a busy host wait, not only the one that it answered."""
    pace = FastPace()
    sender = Transport(Network(retries=0), pace=pace)
    with (
        RawServer(lambda asked: answer(429, retry_after="40")) as busy,
        RawServer(lambda asked: answer(200)) as other,
    ):
        sender.send(Request("GET", f"http://{busy.address}/")).drain()
        sender.send(Request("GET", f"http://{other.address}/")).drain()
        assert pace.waits_s == []
        thread = threading.Thread(target=lambda: sender.send(Request("GET", f"http://{busy.address}/x")).drain())
        thread.start()
        thread.join(30)
        sender.close()
    assert 39 < sum(pace.waits_s) <= 40


def test_a_manifest_that_breaks_off_is_fetched_again_and_then_given_up() -> None:
    with RawServer(lambda asked: answer(200, content_length="1000")) as server, repository(server) as one:
        with pytest.raises(RegistryError) as caught:
            one.get_manifest("1")
        assert len(server.asked) == 2  # with one retry
    assert caught.value.code == "registry-broke-off"


def test_a_blob_that_comes_byte_by_byte_comes() -> None:
    """Each connection adds a byte: that is progress, and the digest verifies the result."""
    data = b"0123456789" * 3

    def say(asked: Asked) -> bytes:
        start = int(asked.headers.get("range", "bytes=0-")[6:-1])
        head = answer(206 if start else 200, content_length=str(len(data) - start))
        return head + data[start : start + 1]

    from detlayer.registry.download import RemoteReader

    with RawServer(say) as server, repository(server) as one:
        reader = RemoteReader(one, Descriptor("", digest_of(data), len(data)))
        assert b"".join(iter(lambda: reader.read(100), b"")) == data
        reader.close()


def test_registries_of_one_host_share_what_it_asks_for() -> None:
    """Two repositories of a busy host: the second also waits."""
    pace = FastPace()
    sender = Transport(Network(retries=0), pace=pace)
    with RawServer(lambda asked: answer(429, retry_after="5")) as server, Registries(sender) as registries:
        for name in ("a", "b"):
            with pytest.raises(RegistryError):
                registries.repository(RepositoryName(server.address, name)).head_manifest("1")
    assert 4.9 < sum(pace.waits_s) <= 5

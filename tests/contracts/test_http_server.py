"""The test servers themselves: framing, faults, and shutdown."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.contracts.faults import (
    Act,
    Call,
    CutAnswer,
    CutRequest,
    Endless,
    Fault,
    Kill,
    LoseAnswer,
    Reply,
    Silence,
    WrongLength,
    kill_at,
)
from tests.contracts.http_records import Answer, Request
from tests.contracts.http_server import Incoming, WireServer
from tests.contracts.images import CounterBody
from tests.contracts.storage import sha256


class Echo:
    """Returns the received body; records the handled requests."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.excused: list[Request | None] = []

    def answer(self, request: Request, body: Incoming) -> Answer:
        data = body.read()
        self.done.append(request.path)
        return Answer(200, (("X-Echo", request.header("x-word")),), data)

    def disturbed(self, request: Request | None) -> None:
        self.excused.append(request)


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def server(echo: Echo) -> Iterator[WireServer]:
    with WireServer(echo) as server:
        yield server


@pytest.fixture
def connection(server: WireServer) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(server.address, timeout=20)
    yield connection
    connection.close()


def send(connection: http.client.HTTPConnection, path: str, data: bytes = b"0123456789") -> bytes:
    connection.request("PUT", path, data)
    return connection.getresponse().read()


def test_a_connection_serves_many(server: WireServer, connection: http.client.HTTPConnection) -> None:
    assert [send(connection, f"/{at}", b"x" * at) for at in range(4)] == [b"", b"x", b"xx", b"xxx"]
    connection.request("PUT", "/chunks?a=1&a=2", iter((b"ab", b"c")), encode_chunked=True)
    assert connection.getresponse().read() == b"abc"
    connection.request("HEAD", "/")
    assert connection.getresponse().read() == b""
    assert [one.number for one in server.requests] == [1, 2, 3, 4, 5, 6]
    assert {one.connection for one in server.requests} == {1}
    assert [one.body_bytes for one in server.requests] == [0, 1, 2, 3, 3, 0]
    assert [one.sent_bytes for one in server.requests] == [0, 1, 2, 3, 3, 0]
    assert server.requests[4].parameters == [("a", "1"), ("a", "2")]
    server.clear()
    assert server.requests == []


def test_repeated_headers_and_patience(server: WireServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw, raw.makefile("rb") as stream:
        raw.sendall(
            b"PUT / HTTP/1.1\r\nHost: x\r\nX-Word: a\r\nx-word: b\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        assert stream.readline() == b"HTTP/1.1 100 Continue\r\n"
        raw.sendall(b"ok")
        head = [stream.readline() for _ in range(5)]
        assert b"X-Echo: a, b\r\n" in head
        assert stream.read(2) == b"ok"


def test_what_is_no_http_is_blamed(server: WireServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
        raw.sendall(b"PUT / HTTP/1.0\r\n\r\n")
        assert raw.recv(100) == b""
    assert [one.code for one in server.violations] == ["http"]


@pytest.mark.parametrize(
    ("act", "carried_out"),
    [(LoseAnswer(), True), (Kill(), False), (Kill(after=True), True), (CutRequest(3), False)],
    ids=str,
)
def test_no_answer(
    server: WireServer, echo: Echo, connection: http.client.HTTPConnection, act: Act, carried_out: bool
) -> None:
    server.arm(Fault(act, "PUT", "/bad"))
    assert send(connection, "/good")
    with pytest.raises((http.client.HTTPException, OSError)):
        send(connection, "/bad")
    assert echo.done == ["/good", *(["/bad"] if carried_out else [])]
    assert [one.status for one in server.requests] == [200, 0]
    assert echo.excused


@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_request_arrives_up_to_the_cut(
    server: WireServer, connection: http.client.HTTPConnection, reset: bool
) -> None:
    server.arm(Fault(CutRequest(3, reset)))
    with pytest.raises((http.client.HTTPException, OSError)):
        send(connection, "/")
    assert server.requests[0].body_bytes == 3
    connection.close()
    assert send(connection, "/") == b"0123456789"


def test_wrong_lengths_and_cut_answers(server: WireServer, connection: http.client.HTTPConnection) -> None:
    server.arm(Fault(WrongLength(-3)), Fault(WrongLength(3), path="/long"), Fault(CutAnswer(4), path="/cut"))
    assert send(connection, "/short") == b"0123456"
    connection.close()
    for path in ("/long", "/cut"):
        with pytest.raises(http.client.IncompleteRead):
            send(connection, path)
        connection.close()


def test_a_fault_answers_in_place_of_the_server(
    server: WireServer, echo: Echo, connection: http.client.HTTPConnection
) -> None:
    server.arm(Fault(Reply(Answer(503, (), b"busy")), at=2, times=2))
    assert [send(connection, "/") for _ in range(4)] == [b"0123456789", b"busy", b"busy", b"0123456789"]
    assert len(echo.done) == 2


def test_for_ever(server: WireServer, connection: http.client.HTTPConnection) -> None:
    server.arm(Fault(Reply(Answer(503, (), b"busy")), times=0))
    assert {send(connection, "/") for _ in range(10)} == {b"busy"}
    server.revive()
    assert send(connection, "/") == b"0123456789"


def test_endless(server: WireServer, connection: http.client.HTTPConnection) -> None:
    server.arm(Fault(Endless(limit_bytes=1 << 20)))
    assert len(send(connection, "/")) > 900_000
    server.arm(Fault(Endless()))
    connection.request("GET", "/")
    assert len(connection.getresponse().read(5 << 20)) == 5 << 20


def test_silence_ends_with_the_client(server: WireServer) -> None:
    server.arm(Fault(Silence()))
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
        raw.shutdown(socket.SHUT_WR)
        assert raw.recv(10) == b""


def test_silence_ends_with_the_server(echo: Echo) -> None:
    with WireServer(echo) as server, socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
        arrived = threading.Event()
        server.arm(Fault(Call(lambda _: arrived.set())), Fault(Silence()))
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert arrived.wait(20)
        server.close()
        assert raw.recv(10) == b""


def test_the_dead_answer_nobody(server: WireServer, echo: Echo, connection: http.client.HTTPConnection) -> None:
    other = http.client.HTTPConnection(server.address, timeout=20)
    assert send(other, "/other")
    server.arm(kill_at(2))
    assert send(connection, "/one")
    for one in (connection, other, connection):
        with pytest.raises((http.client.HTTPException, OSError)):
            send(one, "/two")
        one.close()
    assert echo.done == ["/other", "/one"]
    server.revive()
    assert send(connection, "/three")


def test_calls(server: WireServer, echo: Echo, connection: http.client.HTTPConnection) -> None:
    seen: list[tuple[str, int]] = []
    server.arm(
        Fault(Call(lambda request: seen.append((request.path, len(echo.done)))), at=2),
        Fault(Call(lambda request: seen.append((request.path, len(echo.done))), after=True), at=2),
    )
    for path in ("/one", "/two", "/three"):
        send(connection, path)
    assert seen == [("/two", 1), ("/two", 2)]


def test_requests_come_at_the_same_time(server: WireServer) -> None:
    """Both requests are in progress before either is answered: nothing is serialized."""
    inside = threading.Barrier(2)

    def meet(_: Request) -> None:
        inside.wait(20)

    server.arm(Fault(Call(meet), times=0))
    connections = [http.client.HTTPConnection(server.address, timeout=20) for _ in range(2)]
    for one in connections:
        one.request("GET", "/")
    assert [one.getresponse().status for one in connections] == [200, 200]
    for one in connections:
        one.close()


@pytest.mark.parametrize("size", [0, 1, 8, 1 << 20, (1 << 20) + 1, (3 << 20) - 5])
def test_counted_bytes_are_the_same_from_every_offset(size: int) -> None:
    body = CounterBody(size)
    whole = b"".join(body.pieces())
    assert (len(whole), sha256(whole)) == (size, body.digest)
    for offset in sorted({0, 1, size // 2, max(size - 1, 0), size}):
        with body.open(offset) as stream:
            assert b"".join(iter(lambda: stream.read(300_000), b"")) == whole[offset:]

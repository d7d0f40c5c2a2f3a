"""HTTP/1.1 servers on threads that record requests and fail on demand (faults.py).

Sources: RFC 9112 (framing). Bytes are sent by hand, since an HTTP library would not lie about lengths.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from http import HTTPStatus
from types import TracebackType
from typing import Protocol, Self

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
    Script,
    Silence,
    WrongLength,
)
from tests.contracts.http_records import Answer, RefusedError, Request, Violation

_PIECE_BYTES = 1 << 16
_MAX_LINE_BYTES = 1 << 16
_MAX_DRAIN_BYTES = 64 << 20


class BrokenError(Exception):
    """The connection was closed, by the peer or by a fault."""


class Incoming:
    """The body of a request, readable once. `length` is the announced one; None if chunked."""

    def __init__(self, stream: io.BufferedReader, request: Request, socket_: socket.socket) -> None:
        self._stream = stream
        self._request = request
        self._socket = socket_
        self._continue = request.header("expect").lower() == "100-continue"
        self.chunked = request.header("transfer-encoding").lower() == "chunked"
        text = request.header("content-length")
        self.length: int | None = int(text) if text.isdecimal() else None
        self._left = 0 if self.chunked else (self.length or 0)
        self._over = not self.chunked and not self._left
        self.cut_bytes: int | None = None

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it arrives; raises BrokenError if it ends too early."""
        while not self._over:
            limit = _PIECE_BYTES
            if self.cut_bytes is not None:
                limit = min(limit, self.cut_bytes - self._request.body_bytes)
                if limit <= 0:
                    raise BrokenError("cut")
            if piece := self._read(limit):
                self._request.body_bytes += len(piece)
                yield piece

    def read(self, limit: int = 1 << 30) -> bytes:
        """Read all; bytes beyond `limit` are dropped."""
        data = bytearray()
        for piece in self.pieces():
            if len(data) < limit:
                data += piece
        return bytes(data[:limit])

    def drain(self) -> None:
        """Read the rest, as servers do to keep a connection open."""
        for _ in self.pieces():
            continue

    def _read(self, limit: int) -> bytes:
        if self._continue:
            self._continue = False
            self._socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.chunked and not self._left:
            self._left = int(self._line().partition(b";")[0], 16)
            if not self._left:
                while self._line():
                    continue
                self._over = True
                return b""
        piece = self._stream.read1(min(limit, self._left))
        if not piece:
            raise BrokenError("the client closed in its body")
        self._left -= len(piece)
        if not self._left:
            if self.chunked:
                self._line()
            else:
                self._over = True
        return piece

    def _line(self) -> bytes:
        line = self._stream.readline(_MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            raise BrokenError("the client closed in its body")
        return line.rstrip(b"\r\n")


class Application(Protocol):
    """Handles the requests of a server."""

    def answer(self, request: Request, body: Incoming) -> Answer:
        """Handle a request; raises RefusedError, and BrokenError if the body ends too early."""

    def disturbed(self, request: Request | None) -> None:
        """Record that the client may not know the outcome of this request; None: of any request so far."""


class WireServer:
    """A server on its own port; a context manager. `host` is the name that clients use.

    With `one_at_a_time`, a request waits until the previous one is answered, on any connection.
    """

    def __init__(
        self,
        application: Application,
        *,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        one_at_a_time: bool = False,
    ) -> None:
        self.script = Script()
        self.violations: list[Violation] = []
        self.host = host
        self._application = application
        self._tls = tls
        self._requests: list[Request] = []
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._turn: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if one_at_a_time:
            self._turn = threading.Lock()
        self._open: dict[int, socket.socket] = {}
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._dead = threading.Event()
        self._listener = socket.create_server(("127.0.0.1" if host == "localhost" else host, 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.address}"

    @property
    def requests(self) -> list[Request]:
        with self._lock:
            return list(self._requests)

    def clear(self) -> None:
        """Clear requests and violations. Faults stay armed."""
        with self._lock:
            self._requests.clear()
            self._numbers = itertools.count(1)
            self.violations.clear()

    def arm(self, *faults: Fault) -> None:
        self.script.arm(*faults)

    def revive(self) -> None:
        """Disarm all faults, and serve again after a Kill."""
        self.script.disarm()
        self._dead.clear()

    def blame(self, code: str, request: Request | None, text: str) -> None:
        with self._lock:
            self.violations.append(Violation(code, str(request or ""), text))

    def close(self) -> None:
        self._closing = True
        self._hang_up()
        with contextlib.suppress(OSError):
            # Closing alone would not wake the accepting thread.
            socket.create_connection(self._listener.getsockname(), timeout=5).close()
        self._acceptor.join()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- connections

    def _accept(self) -> None:
        for number in itertools.count(1):
            connection, _ = self._listener.accept()
            with self._lock:
                if self._closing or self._dead.is_set():
                    connection.close()
                else:
                    self._open[number] = connection
                    thread = threading.Thread(target=self._serve, args=(number, connection), daemon=True)
                    self._threads = [*(one for one in self._threads if one.is_alive()), thread]
                    thread.start()
            if self._closing:
                return

    def _serve(self, number: int, connection: socket.socket) -> None:
        try:
            if self._tls is not None:
                with self._lock:
                    if self._closing or self._dead.is_set():
                        return
                    secure = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                    self._open[number] = connection = secure
                secure.do_handshake()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection.makefile("rb") as stream:
                while self._serve_one(number, connection, stream):
                    continue
        except ssl.SSLError as error:
            if error.reason in ("HTTP_REQUEST", "WRONG_VERSION_NUMBER"):  # the latter for methods unknown to OpenSSL
                self.blame("plain-http", None, "plain HTTP was spoken to a server that has TLS")
        except (BrokenError, OSError):
            return
        finally:
            with self._lock:
                self._open.pop(number, None)
            connection.close()

    def _hang_up(self) -> None:
        with self._lock:
            for connection in self._open.values():
                with contextlib.suppress(OSError):
                    # Not SSLSocket.shutdown, which would remove the TLS object while the other thread reads.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def _serve_one(self, number: int, connection: socket.socket, stream: io.BufferedReader) -> bool:
        """Answer one request; tells whether to keep the connection."""
        request = self._read_head(number, stream)
        if request is None or self._dead.is_set():
            return False
        with self._turn:
            return self._answer(request, connection, stream)

    def _answer(self, request: Request, connection: socket.socket, stream: io.BufferedReader) -> bool:
        body = Incoming(stream, request, connection)
        acts = self.script.take(request)
        for act in acts:
            if isinstance(act, Call) and not act.after:
                act.hook(request)
        last = acts[-1] if acts and not isinstance(acts[-1], Call) else None
        if isinstance(last, Kill) and not last.after:
            return self._die()
        answer = self._carry_out(request, body, connection, last)
        for act in acts:
            if isinstance(act, Call) and act.after:
                act.hook(request)
        if isinstance(last, Kill):
            return self._die()
        if acts:
            self._application.disturbed(None if isinstance(acts[0], Call) else request)
        if answer is None or isinstance(last, LoseAnswer):
            return False
        if self._dead.is_set():
            self._application.disturbed(request)
            return False
        request.status = answer.status
        keeps = _send(connection, request, answer, last)
        if answer.close:
            _linger(connection, body)
            return False
        if not keeps:
            return False
        body.drain()
        return request.header("connection").lower() != "close"

    def _carry_out(self, request: Request, body: Incoming, connection: socket.socket, act: Act | None) -> Answer | None:
        match act:
            case Reply(answer):
                body.drain()
                return answer
            case Silence():
                body.drain()
                while connection.recv(_PIECE_BYTES):
                    continue
                return None
            case Endless(status, content_type, limit_bytes):
                body.drain()
                piece = b'["endless", ' * 4096
                endless = (piece for _ in range(limit_bytes // len(piece)))
                return Answer(status, (("Content-Type", content_type),), endless)
            case CutRequest(after_bytes):
                body.cut_bytes = after_bytes
        try:
            return self._application.answer(request, body)
        except BrokenError:
            self._application.disturbed(request)
            if isinstance(act, CutRequest) and act.reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise
        except RefusedError as refused:
            if refused.violation:
                self.blame(refused.violation, request, refused.message)
            return refused.answer

    def _die(self) -> bool:
        self._dead.set()
        self._application.disturbed(None)
        self._hang_up()
        return False

    def _read_head(self, number: int, stream: io.BufferedReader) -> Request | None:
        line = stream.readline(_MAX_LINE_BYTES)
        if not line.endswith(b"\r\n"):
            return None
        words = line.decode("latin-1").split()
        headers = []
        while (line := stream.readline(_MAX_LINE_BYTES)) != b"\r\n":
            if not line.endswith(b"\r\n"):
                return None
            name, _, value = line.decode("latin-1").partition(":")
            headers.append((name.lower(), value.strip()))
        if len(words) != 3 or words[2] != "HTTP/1.1":
            self.blame("http", None, f"{words} is no request of HTTP/1.1")
            return None
        with self._lock:
            request = Request(next(self._numbers), words[0], words[1], tuple(headers), number)
            self._requests.append(request)
        return request


def _send(connection: socket.socket, request: Request, answer: Answer, act: Act | None) -> bool:
    """Send a response, with faults; tells whether it ended correctly."""
    length = answer.content_length
    bare = request.method == "HEAD" or answer.status in (204, 304)
    in_chunks = length is None and not bare
    phrase = HTTPStatus(answer.status).phrase
    lines = [f"HTTP/1.1 {answer.status} {phrase}", *(f"{name}: {value}" for name, value in answer.headers)]
    if in_chunks:
        lines.append("Transfer-Encoding: chunked")
    elif length is not None and answer.status not in (204, 304):
        lines.append(f"Content-Length: {length + (act.by_bytes if isinstance(act, WrongLength) else 0)}")
    if answer.close:
        lines.append("Connection: close")
    connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
    if bare:
        return not isinstance(act, CutAnswer | WrongLength)
    left = act.after_bytes if isinstance(act, CutAnswer) else None
    pieces = (answer.body,) if isinstance(answer.body, bytes) else answer.body
    for piece in pieces:
        part = piece if left is None else piece[:left]
        if part:
            connection.sendall(b"%x\r\n%b\r\n" % (len(part), part) if in_chunks else part)
            request.sent_bytes += len(part)
        if left is not None:
            left -= len(part)
            if not left:
                return False
    if in_chunks:
        connection.sendall(b"0\r\n\r\n")
    # A body that ended early: the server behind a proxy closed the connection.
    whole = length is None or request.sent_bytes == length
    return whole and not isinstance(act, CutAnswer | WrongLength)


def _linger(connection: socket.socket, body: Incoming) -> None:
    """Close as nginx does: send FIN, and read pending bytes, so that no RST drops the response."""
    with contextlib.suppress(BrokenError, OSError):
        socket.socket.shutdown(connection, socket.SHUT_WR)
        taken = 0
        for piece in body.pieces():
            taken += len(piece)
            if taken > _MAX_DRAIN_BYTES:
                break

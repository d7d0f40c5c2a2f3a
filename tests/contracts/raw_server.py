"""A server on a plain socket that sends given bytes unchanged; one request per connection."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO, Self

_MAX_HEAD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Asked:
    """A received request: words of its first line, headers by lower-case name, and the announced part of the body."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""
    showed_certificate: bool = False


Script = Callable[[Asked], bytes | Iterable[bytes]]


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """Make a response; header names have `_` for `-`, and those without a value are left out."""
    named = {"content_length": str(len(body)), "connection": "close", **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in named.items() if value]
    lines.insert(0, f"HTTP/1.1 {status} Whatever")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class RawServer:
    """Sends the responses that `script` returns; a context manager. `asked` are the requests in order."""

    def __init__(
        self,
        script: Script,
        *,
        family: socket.AddressFamily = socket.AF_INET,
        tls: ssl.SSLContext | None = None,
        take: Callable[[IO[bytes], int], bytes] = lambda stream, length: stream.read(length),
        receive_bytes: int = 0,
    ) -> None:
        """`take` reads a body by its length; `receive_bytes` is the size of the receive buffer."""
        self.script = script
        self._tls = tls
        self._take = take
        self.asked: list[Asked] = []
        self.over = threading.Event()
        self._socket = socket.create_server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family)
        if receive_bytes:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self._threads: list[threading.Thread] = []
        self._connections: list[socket.socket] = []
        self._lock = threading.Lock()
        self._start(self._accept)

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    @property
    def connections(self) -> int:
        """The number of connections."""
        with self._lock:
            return len(self._connections)

    @property
    def address(self) -> str:
        host = self._socket.getsockname()[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def close(self) -> None:
        self.over.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with self._lock:
            connections = list(self._connections)
        for one in connections:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for one in connections:
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failed: object) -> None:
        self.close()

    def _start(self, run: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with self._lock:
                self._connections.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            spoken = self._tls.wrap_socket(connection, server_side=True) if self._tls else connection
            with spoken:
                self._answer(spoken)

    def _answer(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            words = stream.readline(_MAX_HEAD_BYTES).decode("latin-1").split()
            if len(words) != 3:
                return
            headers = {}
            while line := stream.readline(_MAX_HEAD_BYTES).strip():
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            body = self._take(stream, int(headers.get("content-length", "0")))
            shown = isinstance(connection, ssl.SSLSocket) and connection.getpeercert() is not None
            asked = Asked(words[0], words[1], headers, body, shown)
            self.asked.append(asked)
            said = self.script(asked)
            for piece in [said] if isinstance(said, bytes) else said:
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_RDWR)

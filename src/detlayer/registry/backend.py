"""Network backend under httpx: enforces time limits that a slow trickle of bytes cannot extend.

A socket timeout restarts with each byte. Here the head of a response must arrive within one timeout as a whole, and
each MIN_BYTES of a body too, in both directions.
"""

from __future__ import annotations

import fcntl
import socket
import ssl
import sys
import termios
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any, Literal

import httpcore

from detlayer.registry.retry import MIN_BYTES, Allowance

_TLS_RECORD_BYTES = 16 << 10

_KEEP_ALIVE_S = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6))

# A registry may take minutes to store a blob. Until then, these keep routers from dropping the idle connection, and
# notice a peer that is gone.
_KEEP_ALIVE: tuple[httpcore.SOCKET_OPTION, ...] = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *((socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in _KEEP_ALIVE_S if hasattr(socket, name)),
)


class Backend(httpcore.NetworkBackend):
    """Wraps the connections of another backend in `Stream`."""

    def __init__(self, inner: httpcore.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        options = (*(socket_options or ()), *_KEEP_ALIVE)
        return Stream(self._inner.connect_tcp(host, port, timeout, local_address, options))


class Stream(httpcore.NetworkStream):
    """A connection, used by one thread for one request and response at a time."""

    def __init__(self, stream: httpcore.NetworkStream, tls_layers: int = 0) -> None:
        self._stream = stream
        self._tls_layers = tls_layers
        self._phase: Literal["new", "write", "head", "body"] = "new"
        self._write_s = inf
        self._allowance = Allowance(0)
        self._unsent_bytes = 0

    def begin_body(self) -> None:
        """Start to count the body of a response; `advance` counts its bytes."""
        self._phase = "body"
        self._allowance.renew()

    def advance(self, count_bytes: int) -> None:
        """Count transferred bytes of a body."""
        self._allowance.advance(count_bytes)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if timeout is None:
            return self._stream.read(max_bytes)
        if self._phase in ("new", "write"):
            self._await_head(timeout)
        while True:
            try:
                with self._spending(httpcore.ReadTimeout) as left_s:
                    return self._stream.read(max_bytes, left_s)
            except httpcore.ReadTimeout as error:
                # The kernel may still be sending buffered data. Until it is done, the limit for transfers applies.
                before = self._unsent_bytes
                if self._phase != "head" or not before:
                    raise
                if before - self._unsent() < min(MIN_BYTES, before):
                    raise httpcore.WriteTimeout(str(error)) from error
                self._await_head(timeout)

    def _await_head(self, timeout_s: float) -> None:
        self._phase = "head"
        self._unsent_bytes = self._unsent()
        # Until the peer has acknowledged the whole request, the limit for transfers applies.
        self._allowance = Allowance(min(timeout_s, self._write_s) if self._unsent_bytes else timeout_s)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if timeout is None:
            self._stream.write(buffer)
            return
        if self._phase != "write":
            self._phase = "write"
            self._write_s = timeout
            self._allowance = Allowance(timeout)
        view = memoryview(buffer)
        while view:
            with self._spending(httpcore.WriteTimeout) as left_s:
                count = self._send(view, left_s)
            self.advance(count)
            view = view[count:]

    def _send(self, view: memoryview, timeout_s: float) -> int:
        """Send what the kernel accepts at once: the stream's own `write` restarts the timeout for each part."""
        if self._tls_layers > 1:  # TLS inside a proxy's TLS can only be written as a whole
            piece = bytes(view[:_TLS_RECORD_BYTES])
            self._stream.write(piece, timeout_s)
            return len(piece)
        connection: socket.socket = self._stream.get_extra_info("socket")
        try:
            connection.settimeout(timeout_s)
            return connection.send(view)
        except TimeoutError as error:
            raise httpcore.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    @contextmanager
    def _spending(self, too_late: type[Exception]) -> Iterator[float]:
        """Yield the seconds left, and count those that the block takes."""
        if self._allowance.left_s <= 0:
            raise too_late
        began = time.monotonic()
        try:
            yield self._allowance.left_s
        finally:
            self._allowance.spend(time.monotonic() - began)

    def _unsent(self) -> int:
        """Return the number of written bytes not yet acknowledged by the peer; 0 if unknown."""
        if not sys.platform.startswith("linux"):
            return 0
        count = bytearray(4)
        try:
            fcntl.ioctl(self._stream.get_extra_info("socket").fileno(), termios.TIOCOUTQ, count)
        except (OSError, ValueError):
            return 0
        return int.from_bytes(count, sys.byteorder)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return Stream(self._stream.start_tls(ssl_context, server_hostname, timeout), self._tls_layers + 1)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def body_stream(extensions: dict[str, Any]) -> Stream | None:
    """Return the connection of a response; None if httpx does not expose it."""
    stream = extensions.get("network_stream")
    return stream if isinstance(stream, Stream) else None

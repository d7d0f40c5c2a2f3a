"""HTTP requests and responses, with retries (`retry`) and checked redirects.

Every response is bounded in size and time.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, suppress
from itertools import chain
from typing import TYPE_CHECKING, Literal, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import msgspec

from detlayer.errors import IntegrityError, RegistryError, RejectedError, UnavailableError, printable
from detlayer.oci.ports import Body
from detlayer.registry.address import is_loopback, join, origin, shown_url
from detlayer.registry.connections import ClientKind, Network, make_client, make_timeout, translated
from detlayer.registry.error_responses import MAX_ERROR_BYTES, Refusal, garbage, read_faults
from detlayer.registry.proxies import find_proxy
from detlayer.registry.retry import BUSY, MIN_BYTES, Attempts, Pace, RetryPolicy, read_retry_after, shown_s
from detlayer.registry.waiting import Wait, Waits

if TYPE_CHECKING:
    import httpx

PIECE_BYTES = 256 << 10
_MAX_DRAINED_BYTES = 64 << 10
_MAX_HEADER = 8192
_MAX_CUT_OFF = 64
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_CUT_OFF = b"400 Bad Request"
"""What servers written in Go answer to a request that ends in its head (net/http, `conn.serve`)."""

FORM = "application/x-www-form-urlencoded"
Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH"]


class Stretch(NamedTuple):
    """Bytes of a blob to send, from `start` to before `end`; `progress` is called with each count of bytes sent."""

    body: Body
    start: int
    end: int
    progress: Callable[[int], None]


class Request(NamedTuple):
    """A request. With `repeat` it is retried if the host is busy or the connection breaks, within `attempts`, if given.

    Of a response with status 200, up to `whole` bytes of the body are read as part of the attempt. Requests with `auth`
    are for tokens and are not counted. A request that `is_optional` is never retried, and if it fails no other request
    waits. If the registry has to `store` a digest before it can answer, it gets `patience_s` for that.
    """

    method: Method
    url: str
    headers: Mapping[str, str] = {}
    content: bytes | Stretch | None = None
    repeat: bool = True
    auth: bool = False
    attempts: Attempts | None = None
    whole: int = 0
    is_optional: bool = False
    store: str = ""
    patience_s: float = 0.0

    def __repr__(self) -> str:
        """Show it without headers and body, which may contain secrets."""
        return f"{self.method} {shown_url(self.url)}"


class SourceError(UnavailableError):
    """The body of a request can't be read because its own registry is unavailable. Has been retried."""


class Counts(msgspec.Struct):
    """Numbers of requests, for reports and tests. Requests for tokens and those answered by 401 are excluded."""

    requests: int = 0
    sent_bytes: int = 0
    _lock: threading.Lock = msgspec.field(default_factory=threading.Lock)

    def add(self, *, requests: int = 0, sent_bytes: int = 0) -> None:
        with self._lock:
            self.requests += requests
            self.sent_bytes += sent_bytes


class Answer:
    """A response with an unread body. Close it, or read it to the end."""

    def __init__(self, response: httpx.Response, transport: Transport, url: str) -> None:
        self._response = response
        self._transport = transport
        self.url = url
        self.host = urlsplit(url).netloc
        self.status = response.status_code
        self._source = self._receive()
        self._held = bytearray()

    def header(self, name: str) -> str:
        """Return a header; empty if it is missing or too long."""
        value = str(self._response.headers.get(name, ""))
        return value if len(value) <= _MAX_HEADER else ""

    def headers(self, name: str) -> list[str]:
        return [value for value in self._response.headers.get_list(name) if len(value) <= _MAX_HEADER]

    @property
    def length(self) -> int | None:
        """The Content-Length; None if it is missing or invalid."""
        text = self.header("content-length")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

    @property
    def media_type(self) -> str:
        """The media type, without parameters such as a charset."""
        return self.header("content-type").partition(";")[0].strip()

    @property
    def retry_after_s(self) -> float | None:
        """How long the host asks to wait, in seconds; None if it does not say."""
        return read_retry_after(self.header("retry-after"), self._transport.pace.wall())

    @property
    def is_cut_off(self) -> bool:
        """Whether the host received only a part of the request's head, as far as its answer tells.

        That answer comes from the HTTP server and not from the registry, so it has no error codes.
        """
        if self.status != 400 or self.media_type not in ("", "text/plain"):
            return False
        if self._response.http_version == "HTTP/1.0":  # a Go server's answer to plain HTTP on a port with TLS
            return False
        if self._response.request.method == "HEAD":
            return self.length in (None, 0, len(_CUT_OFF))
        with suppress(UnavailableError):
            return self.fill(_MAX_CUT_OFF) and bytes(self._held).strip() in (b"", _CUT_OFF)
        return True

    def pieces(self) -> Iterator[bytes]:
        """Yield the undecoded body in pieces; raises UnavailableError if the connection breaks."""
        if self._held:
            yield bytes(self._held)
        yield from self._source

    def _receive(self) -> Iterator[bytes]:
        from detlayer.registry.backend import body_stream

        stream = body_stream(self._response.extensions)
        if stream is not None:
            stream.begin_body()
        limit_s = self._transport.network.read_s
        with (
            translated(self.url, limit_s, in_body=True),
            self._transport.waits.waiting(f"more data from {printable(self.host)}", limit_s) as wait,
        ):
            for piece in self._response.iter_raw():
                if stream is not None:
                    stream.advance(len(piece))
                self._transport.pace.check()
                wait.pause()
                yield piece
                wait.restart()

    def fill(self, limit: int) -> bool:
        """Read the body ahead, within the time of one read; tells whether it has at most `limit` bytes.

        `pieces` and `read` return what was read. Raises UnavailableError.
        """
        ends = self._transport.pace.now() + self._transport.network.read_s
        while len(self._held) <= limit and (piece := next(self._source, b"")):
            self._held += piece
            if self._transport.pace.now() > ends:
                self.close()
                raise UnavailableError(
                    "registry-timeout", f"{self.host} timed out", "try again later, or raise --timeout"
                )
        return len(self._held) <= limit

    def read(self, limit: int) -> bytes | None:
        """Read the whole body, within the time of one read; None if it is longer than `limit` bytes."""
        if self.fill(limit):
            return bytes(self._held)
        self.close()
        return None

    def refusal(self) -> Refusal:
        """Read the error body, and close the response."""
        body = b""
        with suppress(RegistryError):  # the status suffices
            body = self.read(MAX_ERROR_BYTES) or b""
        self.close()
        faults = read_faults(body, _secrets(self._response.request), status=self.status, media_type=self.media_type)
        return Refusal(self.url, self.status, faults, self.retry_after_s)

    def drain(self) -> None:
        """Read a short body to its end, so that the connection can be reused; closes it for a long one."""
        with suppress(RegistryError):
            self.read(_MAX_DRAINED_BYTES)
        self.close()

    def close(self) -> None:
        with suppress(Exception):  # the connection is being dropped anyway
            self._response.close()


def _secrets(request: httpx.Request) -> list[str]:
    """Return the credentials of a request in all encodings: some servers repeat them in their errors."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    found = [value]
    if scheme == "Basic":
        pair = base64.b64decode(value).decode("utf-8", "replace")
        found += [pair, pair.partition(":")[2]]
    if request.headers.get("content-type") == FORM:
        found += dict(parse_qsl(request.content.decode())).get("refresh_token", "").splitlines()
    return sorted(filter(None, found), key=len, reverse=True)


class Transport:
    """Sends requests to any host. Thread-safe."""

    def __init__(
        self,
        network: Network,
        *,
        pace: Pace | None = None,
        log: Callable[[str], None] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """Create it. `log` receives a line for each request, and `tell` one for each long wait."""
        self.network = network
        self.pace = pace or Pace()
        self._tell = tell
        self.retries = RetryPolicy(self.pace, network.max_wait_s, tell)
        self.waits = Waits(tell, network.notice_after_s)
        self.counts = Counts()
        self._log = log
        self._clients: dict[ClientKind, httpx.Client] = {}
        self._registries: set[str] = set()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close all connections."""
        self.waits.close()
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            with suppress(Exception):  # abandoned threads may still use connections
                client.close()

    def base_url(self, host: str) -> str:
        """Return the base URL of a registry: plain HTTP only for loopback and `insecure` hosts."""
        with self._lock:
            self._registries.add(host)
        plain = host in self.network.insecure or (is_loopback(host) and not self.network.ca_file)
        return f"{'http' if plain else 'https'}://{host}"

    def announce(self, what: str, seconds: float) -> None:
        """Tell the user of a wait for `what` that begins, if it is long."""
        if self._tell is not None and seconds > self.network.notice_after_s:
            self._tell(f"waiting for {what}: at most {shown_s(seconds)}")

    def send(self, request: Request) -> Answer:
        """Send a request and return its response, whatever the status, without following redirects.

        429 and 5xx are returned only after the last retry. Raises RegistryError.
        """
        host = urlsplit(request.url).netloc
        attempts = request.attempts or Attempts(self.network.retries + 1 if request.repeat else 1)
        while True:
            self.retries.wait(host)
            before = attempts.failures
            try:
                answer = self._send_once(request)
            except SourceError:
                raise
            except UnavailableError:
                if request.is_optional or not attempts.fail():
                    raise
                self.retries.back_off(host, before)
                continue
            if answer.status not in BUSY and not answer.is_cut_off:
                return answer
            asked_s = answer.retry_after_s
            if request.is_optional and (answer.status != 429 or not self.retries.accepts(asked_s)):
                return answer
            may_repeat = not request.is_optional and self.retries.accepts(asked_s) and attempts.fail()
            if may_repeat or asked_s is not None:
                self.retries.back_off(host, before, asked_s)
            if not may_repeat:
                return answer
            answer.drain()

    def _send_once(self, request: Request) -> Answer:
        self.pace.check()
        what = request.store and f"{printable(urlsplit(request.url).netloc)} to store {request.store}"
        limit_s = request.patience_s or self.network.read_s
        with self.waits.waiting(what or f"an answer to {request}", limit_s) as wait:
            if not isinstance(request.content, Stretch):
                self.counts.add(sent_bytes=len(request.content or b""))
                length = 0 if request.content is None and request.method in ("POST", "PUT", "PATCH") else None
                answer = self._exchange(request, request.content, length)
            else:
                with closing(self._stream(request, request.content, wait)) as pieces:
                    # Read from the source first: it may be on the same server, which may handle one request at a time,
                    # and a failing source then leaves no request half sent.
                    first = next(pieces, b"")
                    length = request.content.end - request.content.start
                    answer = self._exchange(request, chain((first,), pieces), length)
        if request.whole and answer.status == 200:
            answer.fill(request.whole)
        return answer

    def _exchange(self, request: Request, content: Iterator[bytes] | bytes | None, length: int | None) -> Answer:
        headers = {"user-agent": self.network.user_agent, "accept-encoding": "identity", **request.headers}
        if length is not None:
            headers["content-length"] = str(length)
        client, proxy = self._client(request.url)
        self.counts.add(requests=0 if request.auth else 1)
        limit_s = request.patience_s or self.network.read_s
        with translated(request.url, self.network.read_s, proxy=proxy, store=request.store, store_s=limit_s):
            built = client.build_request(
                request.method,
                request.url,
                headers=headers,
                content=content,
                timeout=make_timeout(self.network, limit_s),
            )
            response = client.send(built, stream=True)
        if self._log is not None:
            self._log(f"{request} -> {response.status_code}")
        return Answer(response, self, request.url)

    def _stream(self, request: Request, stretch: Stretch, wait: Wait) -> Generator[bytes, None, None]:
        """Yield the bytes to send. The wait for the answer begins after the last one."""
        answer, limit_s = wait.what, wait.limit_s
        accepts = f"{printable(urlsplit(request.url).netloc)} to accept more data"
        wait.pause()
        with stretch.body.open(stretch.start) as source:
            left = stretch.end - stretch.start
            while left:
                try:
                    piece = source.read(min(PIECE_BYTES, left))
                except UnavailableError as error:
                    raise SourceError(error.code, error.message, error.hint) from error
                if not piece:
                    raise IntegrityError(
                        "blob-short", f"a blob ends {left} bytes before its size", "build or pull the image again"
                    )
                left -= len(piece)
                wait.change(accepts, self.network.read_s * PIECE_BYTES / MIN_BYTES)
                yield piece
                wait.pause()
                self.pace.check()
                self.counts.add(sent_bytes=len(piece))
                stretch.progress(len(piece))
        wait.change(answer, limit_s)

    def _client(self, url: str) -> tuple[httpx.Client, str]:
        """Return the client for a URL, and the URL of its proxy, if any."""
        parts = urlsplit(url)
        with self._lock:
            proxy = None if is_loopback(parts.netloc) else find_proxy(url, self.network.proxies)
            kind = ClientKind(
                has_tls=parts.scheme == "https", proxy=proxy or "", is_registry=parts.netloc in self._registries
            )
            if kind not in self._clients:
                self._clients[kind] = make_client(self.network, kind)
            return self._clients[kind], kind.proxy


def follow(answer: Answer, *, allow_other_hosts: bool) -> str | None:
    """Return the target of a redirect; None for other responses. Raises RegistryError if it must not be followed.

    HTTPS is never redirected to HTTP. The caller must drop credentials if the host changes.
    """
    if answer.status not in _REDIRECTS:
        return None
    location = answer.header("location")
    if not location:
        raise garbage(answer.host, f"status {answer.status} without a Location")
    target = join(answer.url, location)
    here, there = urlsplit(answer.url), urlsplit(target)
    if here.scheme == "https" and there.scheme == "http":
        raise RejectedError(
            "redirect-insecure",
            f"{answer.host} redirects to plain HTTP: {shown_url(target)}",
            "configure the registry, or the proxy in front of it, for HTTPS",
        )
    if not allow_other_hosts and origin(answer.url) != origin(target):
        raise RejectedError(
            "redirect-host",
            f"{answer.host} redirects to another host: {shown_url(target)}",
            "use the name of the registry that it redirects to",
        )
    return target

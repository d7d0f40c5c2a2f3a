"""HTTP to hosts: requests and answers, sent again as `retry` decides; where redirects lead. Never what is asked.

Every answer is bounded in size and time.
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

from detlayer.errors import IntegrityError, RegistryError, RejectedError, UnavailableError
from detlayer.oci.ports import Body
from detlayer.registry.address import is_loopback, join, origin, shown_url
from detlayer.registry.answer import MAX_ERROR_BYTES, Refusal, garbage, read_faults
from detlayer.registry.connections import ClientKind, Network, make_client, translated
from detlayer.registry.proxies import find_proxy
from detlayer.registry.retry import Pace, RetryPolicy

if TYPE_CHECKING:
    import httpx

PIECE_BYTES = 256 << 10
_MAX_DRAINED_BYTES = 64 << 10
_MAX_HEADER = 8192
_REDIRECTS = frozenset((301, 302, 303, 307, 308))

FORM = "application/x-www-form-urlencoded"
Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH"]


class Stretch(NamedTuple):
    """Bytes of a blob to send, from `start` to before `end`; `progress` is told how many were sent, each time."""

    body: Body
    start: int
    end: int
    progress: Callable[[int], None]


class Request(NamedTuple):
    """What a host is asked. With `repeat` it is sent again where the host is busy or the connection breaks.

    With `auth` it is for a token, and does not count.
    """

    method: Method
    url: str
    headers: Mapping[str, str] = {}
    content: bytes | Stretch | None = None
    repeat: bool = True
    auth: bool = False

    def __repr__(self) -> str:
        """Show it without what may be secret: headers and forms are, too."""
        return f"{self.method} {shown_url(self.url)}"


class Counts(msgspec.Struct):
    """What was sent, for reports and tests. Requests for tokens, and those answered by 401, do not count."""

    requests: int = 0
    sent_bytes: int = 0
    _lock: threading.Lock = msgspec.field(default_factory=threading.Lock)

    def add(self, *, requests: int = 0, sent_bytes: int = 0) -> None:
        with self._lock:
            self.requests += requests
            self.sent_bytes += sent_bytes


class Answer:
    """An answer whose body is yet to be read. Close it, or use it up."""

    def __init__(self, response: httpx.Response, transport: Transport, url: str) -> None:
        self._response = response
        self._transport = transport
        self.url = url
        self.host = urlsplit(url).netloc
        self.status = response.status_code

    def header(self, name: str) -> str:
        """Look a header up; empty if it is not there, or too long to mean anything."""
        value = str(self._response.headers.get(name, ""))
        return value if len(value) <= _MAX_HEADER else ""

    def headers(self, name: str) -> list[str]:
        return [value for value in self._response.headers.get_list(name) if len(value) <= _MAX_HEADER]

    @property
    def length(self) -> int | None:
        """What the body's length is said to be."""
        text = self.header("content-length")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

    @property
    def media_type(self) -> str:
        """What the body is said to be, without parameters such as a charset."""
        return self.header("content-type").partition(";")[0].strip()

    def pieces(self) -> Iterator[bytes]:
        """Read the body as it comes, undecoded; raises UnavailableError when it breaks off."""
        from detlayer.registry.backend import body_stream

        stream = body_stream(self._response.extensions)
        if stream is not None:
            stream.begin_body()
        with translated(self.url, self._transport.network.read_s, in_body=True):
            for piece in self._response.iter_raw():
                if stream is not None:
                    stream.advance(len(piece))
                self._transport.pace.check()
                yield piece

    def read(self, limit: int) -> bytes | None:
        """Read the whole body, within the time of one read; None if it is longer than `limit` bytes."""
        data = bytearray()
        ends = self._transport.pace.now() + self._transport.network.read_s
        for piece in self.pieces():
            data += piece
            if len(data) > limit:
                self.close()
                return None
            if self._transport.pace.now() > ends:
                self.close()
                raise UnavailableError(
                    "registry-timeout", f"{self.host} takes too long to answer", "try again later, or raise --timeout"
                )
        return bytes(data)

    def refusal(self) -> Refusal:
        """Read what a refusal says, and close it."""
        body = b""
        with suppress(RegistryError):  # the status is enough
            body = self.read(MAX_ERROR_BYTES) or b""
        self.close()
        return Refusal(self.url, self.status, read_faults(body, _secrets(self._response.request)))

    def drain(self) -> None:
        """Read a short body to its end, so that the connection can be used again; a long one is cut off."""
        with suppress(RegistryError):
            self.read(_MAX_DRAINED_BYTES)
        self.close()

    def close(self) -> None:
        with suppress(Exception):  # whatever the library thinks of a connection that is being given up
            self._response.close()


def _secrets(request: httpx.Request) -> list[str]:
    """What a request said of who we are, in all its forms: some servers say it back in their errors."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    found = [value]
    if scheme == "Basic":
        pair = base64.b64decode(value).decode("utf-8", "replace")
        found += [pair, pair.partition(":")[2]]
    if request.headers.get("content-type") == FORM:
        found += dict(parse_qsl(request.content.decode())).get("refresh_token", "").splitlines()
    return sorted(filter(None, found), key=len, reverse=True)


class Transport:
    """Sends requests to any host. Safe to use from several threads."""

    def __init__(self, network: Network, *, pace: Pace | None = None, log: Callable[[str], None] | None = None) -> None:
        self.network = network
        self.pace = pace or Pace()
        self._retries = RetryPolicy(self.pace, network.max_wait_s)
        self.counts = Counts()
        self._log = log
        self._clients: dict[ClientKind, httpx.Client] = {}
        self._registries: set[str] = set()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            with suppress(Exception):  # connections in use by threads that are being left behind
                client.close()

    def base_url(self, host: str) -> str:
        """Say how a registry is spoken to: plain HTTP only on loopback, or where it was asked for."""
        with self._lock:
            self._registries.add(host)
        plain = host in self.network.insecure or (is_loopback(host) and not self.network.ca_file)
        return f"{'http' if plain else 'https'}://{host}"

    def send(self, request: Request) -> Answer:
        """Send a request and return its answer, whatever its status, following no redirect.

        429 and 5xx come back only after the last try. Raises RegistryError.
        """
        host = urlsplit(request.url).netloc
        for left in range(self.network.retries if request.repeat else 0, -1, -1):
            self._retries.wait(host)
            try:
                answer = self._send_once(request)
            except UnavailableError:
                if not left:
                    raise
                self._retries.back_off(host)
                continue
            if not self._retries.may_repeat(host, answer.status, answer.header("retry-after")) or not left:
                return answer
            answer.drain()
        raise AssertionError("the last try returns or raises")

    def _send_once(self, request: Request) -> Answer:
        self.pace.check()
        if not isinstance(request.content, Stretch):
            self.counts.add(sent_bytes=len(request.content or b""))
            length = 0 if request.content is None and request.method in ("POST", "PUT", "PATCH") else None
            return self._exchange(request, request.content, length)
        with closing(self._stream(request.content)) as pieces:
            # The source is asked first. While the request is open, a server that handles one at a time, and that the
            # source may be on, too, would not answer; and a source that fails leaves no request half sent.
            first = next(pieces, b"")
            return self._exchange(request, chain((first,), pieces), request.content.end - request.content.start)

    def _exchange(self, request: Request, content: Iterator[bytes] | bytes | None, length: int | None) -> Answer:
        headers = {"user-agent": self.network.user_agent, "accept-encoding": "identity", **request.headers}
        if length is not None:
            headers["content-length"] = str(length)
        client = self._client(request.url)
        self.counts.add(requests=0 if request.auth else 1)
        with translated(request.url, self.network.read_s):
            built = client.build_request(request.method, request.url, headers=headers, content=content)
            response = client.send(built, stream=True)
        if self._log is not None:
            self._log(f"{request} -> {response.status_code}")
        return Answer(response, self, request.url)

    def _stream(self, stretch: Stretch) -> Generator[bytes, None, None]:
        with stretch.body.open(stretch.start) as source:
            left = stretch.end - stretch.start
            while left:
                piece = source.read(min(PIECE_BYTES, left))
                if not piece:
                    raise IntegrityError(
                        "blob-short", f"a blob ends {left} bytes before its size", "make or fetch the image again"
                    )
                left -= len(piece)
                yield piece
                self.pace.check()
                self.counts.add(sent_bytes=len(piece))
                stretch.progress(len(piece))

    def _client(self, url: str) -> httpx.Client:
        parts = urlsplit(url)
        with self._lock:
            proxy = None if is_loopback(parts.netloc) else find_proxy(url, self.network.proxies)
            kind = ClientKind(
                has_tls=parts.scheme == "https", proxy=proxy or "", is_registry=parts.netloc in self._registries
            )
            if kind not in self._clients:
                self._clients[kind] = make_client(self.network, kind)
            return self._clients[kind]


def follow(answer: Answer, *, allow_other_hosts: bool) -> str | None:
    """Say where a redirect leads; None if the answer is none. Raises RegistryError for one that must not be followed.

    From HTTPS nothing leads to HTTP. Whether the host is another, and credentials must stay behind, is for the caller
    to see.
    """
    if answer.status not in _REDIRECTS:
        return None
    location = answer.header("location")
    if not location:
        raise garbage(answer.host, f"{answer.status} without a Location")
    target = join(answer.url, location)
    here, there = urlsplit(answer.url), urlsplit(target)
    if here.scheme == "https" and there.scheme == "http":
        raise RejectedError(
            "redirect-insecure",
            f"{answer.host} redirects to plain HTTP: {shown_url(target)}",
            "the registry, or a proxy before it, is set up wrongly",
        )
    if not allow_other_hosts and origin(answer.url) != origin(target):
        raise RejectedError(
            "redirect-host",
            f"{answer.host} redirects to another host: {shown_url(target)}",
            "use the name of the registry that it redirects to",
        )
    return target

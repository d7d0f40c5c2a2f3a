"""Faults of connections as data: the requests they hit, and their effects."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.contracts.http_records import Answer, Request

BLOB = r"/blobs/sha256:"
UPLOADS = r"/blobs/uploads/"
SESSION = r"/blobs/uploads/[^/?]+"
MANIFEST = r"/manifests/"


@dataclass(frozen=True, slots=True)
class Reply:
    """Send this response instead of handling the request, after reading its body."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class CutRequest:
    """Close after this many bytes of the request's body, which count as received; with RST, or else FIN."""

    after_bytes: int
    reset: bool = False


@dataclass(frozen=True, slots=True)
class CutAnswer:
    """Handle the request, send the head and this many bytes of the response's body, then close."""

    after_bytes: int


@dataclass(frozen=True, slots=True)
class LoseAnswer:
    """Handle the request, then close without a response."""


@dataclass(frozen=True, slots=True)
class WrongLength:
    """Handle the request, send a Content-Length that is off by this number, then close."""

    by_bytes: int


@dataclass(frozen=True, slots=True)
class Silence:
    """Read the request and never answer; ends when the client or the server closes."""


@dataclass(frozen=True, slots=True)
class Endless:
    """Send an endless body (at most `limit_bytes`, in case the client reads all of it)."""

    status: int = 200
    content_type: str = "application/json"
    limit_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Kill:
    """Stop before (or after) handling the request: close all connections, present and future."""

    after: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """Call a function before the request is handled, or after it but before the response."""

    hook: Callable[[Request], object]
    after: bool = False


Act = Reply | CutRequest | CutAnswer | LoseAnswer | WrongLength | Silence | Endless | Kill | Call


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault for requests by method, path and query (regexes; empty: any).

    From the `at`-th on; `times` 0 means always.
    """

    act: Act
    method: str = ""
    path: str = ""
    at: int = 1
    times: int = 1
    query: str = ""

    def hits(self, request: Request) -> bool:
        method_fits = re.fullmatch(self.method or ".*", request.method)
        return bool(method_fits and re.search(self.path, request.path) and re.search(self.query, request.query))


def kill_at(number: int, *, after: bool = False) -> Fault:
    """Stop at the request with this number, counted from arming."""
    return Fault(Kill(after), at=number)


@dataclass(slots=True)
class Script:
    """The faults of one server, and their numbers of hits."""

    _armed: list[tuple[Fault, list[int]]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def arm(self, *faults: Fault) -> None:
        with self._lock:
            self._armed += [(fault, [0]) for fault in faults]

    def disarm(self) -> None:
        with self._lock:
            self._armed.clear()

    def take(self, request: Request) -> list[Act]:
        """Return the faults for a request: calls first, then at most one other, the first armed."""
        calls: list[Act] = []
        other: list[Act] = []
        with self._lock:
            for fault, count in self._armed:
                if not fault.hits(request):
                    continue
                count[0] += 1
                if count[0] < fault.at or (fault.times and count[0] >= fault.at + fault.times):
                    continue
                (calls if isinstance(fault.act, Call) else other).append(fault.act)
        return calls + other[:1]

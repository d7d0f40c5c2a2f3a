"""What can go wrong on a connection, as data: which requests it hits, and what happens to them."""

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
    """Answer this instead of carrying the request out. The body of the request is read first."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class CutRequest:
    """Close after so many bytes of the request's body, which arrive and count; with RST, or else with FIN."""

    after_bytes: int
    reset: bool = False


@dataclass(frozen=True, slots=True)
class CutAnswer:
    """Carry out, send the head and so many bytes of the answer's body, then close."""

    after_bytes: int


@dataclass(frozen=True, slots=True)
class LoseAnswer:
    """Carry out, then close without a byte."""


@dataclass(frozen=True, slots=True)
class WrongLength:
    """Carry out, and send a Content-Length that is wrong by so much; then close."""

    by_bytes: int


@dataclass(frozen=True, slots=True)
class Silence:
    """Read the request and never answer; ends when the client or the server closes."""


@dataclass(frozen=True, slots=True)
class Endless:
    """Answer with a body that has no end (but `limit_bytes`, should the client take them all)."""

    status: int = 200
    content_type: str = "application/json"
    limit_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Kill:
    """Die before (or after) carrying the request out: it and all others, present and later, are hung up on."""

    after: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """Call something before (or after) the request is carried out; after means: before it is answered."""

    hook: Callable[[Request], None]
    after: bool = False


Act = Reply | CutRequest | CutAnswer | LoseAnswer | WrongLength | Silence | Endless | Kill | Call


@dataclass(frozen=True, slots=True)
class Fault:
    """An act upon requests by method, path and query (expressions; empty: any).

    From the `at`-th on; `times` 0 is for ever.
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
    """Die at the request of that number, counted from when this is armed."""
    return Fault(Kill(after), at=number)


@dataclass(slots=True)
class Script:
    """The faults of one server, and how often each was hit."""

    _armed: list[tuple[Fault, list[int]]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def arm(self, *faults: Fault) -> None:
        with self._lock:
            self._armed += [(fault, [0]) for fault in faults]

    def disarm(self) -> None:
        with self._lock:
            self._armed.clear()

    def take(self, request: Request) -> list[Act]:
        """Say what happens to a request. Calls come first, and one other at most: the first armed."""
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

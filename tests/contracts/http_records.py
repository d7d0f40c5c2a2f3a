"""Records of the test servers: requests, responses, violations."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl


@dataclass(slots=True)
class Request:
    """One request, recorded when its head has arrived; `status` is set before the response is sent (0: none sent).

    Headers have lower-case names and keep credentials, so that tests can look for leaks. `body_bytes` and `sent_bytes`
    are the bytes of the two bodies, without framing. `number` counts from 1 at each server.
    """

    number: int
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    connection: int = 0
    body_bytes: int = 0
    sent_bytes: int = 0
    status: int = 0

    def __str__(self) -> str:
        return f"{self.number}. {self.method} {self.target} ({self.body_bytes} bytes) -> {self.status}"

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    @property
    def parameters(self) -> list[tuple[str, str]]:
        return parse_qsl(self.query, keep_blank_values=True)

    def parameter(self, name: str) -> str:
        return next((value for key, value in self.parameters if key == name), "")

    def header(self, name: str) -> str:
        """All values of a header, joined as in RFC 9110; empty if it is missing."""
        return ", ".join(value for key, value in self.headers if key == name.lower())

    def has(self, name: str) -> bool:
        return any(key == name.lower() for key, _ in self.headers)


@dataclass(frozen=True, slots=True)
class Violation:
    """A violation of a specification, or a leaked secret."""

    code: str
    request: str
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. A body in pieces needs its `length`, or is sent in chunks; `close` ends the connection."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | Iterable[bytes] = b""
    length: int | None = None
    close: bool = False

    @property
    def content_length(self) -> int | None:
        return len(self.body) if isinstance(self.body, bytes) and self.length is None else self.length


class RefusedError(Exception):
    """Ends a request with an error response; `violation` is its code if the client caused it."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        detail: Any = None,
        violation: str = "",
        headers: tuple[tuple[str, str], ...] = (),
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.violation = violation
        self.answer = error_answer(status, (code, message, detail), headers=headers, close=close)


def error_answer(
    status: int,
    *errors: tuple[str, str, Any],
    headers: tuple[tuple[str, str], ...] = (),
    close: bool = False,
) -> Answer:
    """Return an error body (distribution-spec, "Error Codes")."""
    document = [{"code": code, "message": message, "detail": detail} for code, message, detail in errors]
    return json_answer(status, {"errors": document}, headers=headers, close=close)


def json_answer(
    status: int,
    document: Any,
    *,
    content_type: str = "application/json",
    headers: tuple[tuple[str, str], ...] = (),
    close: bool = False,
) -> Answer:
    return Answer(status, (("Content-Type", content_type), *headers), json.dumps(document).encode(), close=close)

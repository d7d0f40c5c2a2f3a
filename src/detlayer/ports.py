"""Protocols between the rooms: what a pass writes to and reports to. Never an implementation."""

from __future__ import annotations

from typing import Protocol

Bytes = bytes | bytearray | memoryview


class Sink(Protocol):
    """Where a blob's bytes go, in order."""

    def write(self, data: Bytes, /) -> None:
        """Take all of `data`; raises OutputError. `data` may be reused after the call."""


class Reporter(Protocol):
    """Hears of progress and of things worth a word. Called from one thread."""

    def progress(self, entries: int, tar_bytes: int) -> None:
        """Say how far the pass has come, in total; called about once a chunk."""

    def warning(self, code: str, message: str) -> None:
        """Say something that the user should know though it is no error."""


class Silence:
    """A reporter that says nothing."""

    def progress(self, entries: int, tar_bytes: int) -> None:
        return

    def warning(self, code: str, message: str) -> None:
        return

"""Retry policy, for requests that fail and for transfers that break off or are slow."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from email.utils import parsedate_to_datetime
from math import inf

MIN_BYTES = 64 << 10
"""Bytes that must move within each `Network.read_s`: 1.1 KB/s by default, so four workers can share 10 KB/s."""
_BUSY = frozenset((429, 500, 502, 503, 504))
_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 30.0


class Cancelled(BaseException):
    """The run is cancelled. Not an Exception, so that no handler tries to recover from it."""


class Pace:
    """Clock and waits; waits end at once when the run is cancelled."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        """Return the seconds since 1970, for dates in headers."""
        return time.time()

    def jitter(self) -> float:
        return random.uniform(0.5, 1.0)

    def wait(self, seconds: float) -> None:
        """Wait; raises Cancelled."""
        self._cancelled.wait(seconds)
        self.check()

    def check(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled

    def cancel(self) -> None:
        self._cancelled.set()


class RetryPolicy:
    """Decides on retries for all requests of a run. All requests to a host wait together."""

    def __init__(self, pace: Pace, max_wait_s: float) -> None:
        self._pace = pace
        self._max_wait_s = max_wait_s
        self._hosts: defaultdict[str, _Host] = defaultdict(_Host)
        self._lock = threading.Lock()

    def wait(self, host: str) -> None:
        """Wait until a host accepts requests again; raises Cancelled."""
        while (wait_s := self._state(host).not_before - self._pace.now()) > 0:
            self._pace.wait(wait_s)

    def may_repeat(self, host: str, status: int, retry_after: str) -> bool:
        """Tell after a response whether to retry; if so, requests to the host are delayed."""
        if status not in _BUSY:
            self._state(host).failures = 0
            return False
        asked_s = self._read_wait(retry_after)
        self.back_off(host, asked_s)
        return asked_s is None or asked_s <= self._max_wait_s

    def back_off(self, host: str, asked_s: float | None = None) -> None:
        """Delay requests to a host by the time that it asks for, otherwise longer after each failure."""
        state = self._state(host)
        with self._lock:
            grown = min(_FIRST_WAIT_S * 2 ** min(state.failures, 20), _LONGEST_WAIT_S) * self._pace.jitter()
            state.failures += 1
            wait_s = min(grown if asked_s is None else asked_s, self._max_wait_s)
            state.not_before = max(state.not_before, self._pace.now() + wait_s)

    def _state(self, host: str) -> _Host:
        with self._lock:
            return self._hosts[host]

    def _read_wait(self, text: str) -> float | None:
        """Read Retry-After in both forms (RFC 9110 10.2.3), in seconds."""
        text = text.strip()
        if text.isascii() and text.isdigit():
            return float(text[:9])
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - self._pace.wall()) if text else None
        except (ValueError, TypeError, OverflowError):
            return None


class _Host:
    def __init__(self) -> None:
        self.not_before = 0.0
        self.failures = 0


class Allowance:
    """The time limit for the next MIN_BYTES of a transfer.

    Only the time spent waiting for the peer counts.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.renew()

    def renew(self) -> None:
        self.left_s = self._limit_s
        self._moved_bytes = 0

    def spend(self, seconds: float) -> None:
        self.left_s -= seconds

    def advance(self, count_bytes: int) -> None:
        """Count transferred bytes; each MIN_BYTES restart the limit."""
        self._moved_bytes += count_bytes
        if self._moved_bytes >= MIN_BYTES:
            self.renew()


class Attempts:
    """Limits for retrying a transfer: the number of attempts, and `limit_s` for each MIN_BYTES."""

    def __init__(self, count: int, limit_s: float = inf) -> None:
        self._count = count
        self._allowance = Allowance(limit_s)
        self.failures = 0

    @property
    def are_used_up(self) -> bool:
        return self.failures >= self._count

    @property
    def is_too_slow(self) -> bool:
        return self._allowance.left_s <= 0

    def advance(self, count_bytes: int, seconds: float) -> None:
        """Count transferred bytes and the seconds spent waiting for them."""
        self._allowance.spend(seconds)
        self._allowance.advance(count_bytes)

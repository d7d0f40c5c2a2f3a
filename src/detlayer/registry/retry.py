"""Retry policy, for requests that fail and for transfers that break off or are slow."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from math import ceil, inf

from detlayer.errors import UnavailableError, printable

MIN_BYTES = 64 << 10
"""Bytes that must move within each `Network.read_s`: 1.1 KB/s by default, so four workers can share 10 KB/s."""
BUSY = frozenset((429, 500, 502, 503, 504))
"""Statuses after which a request is sent again."""
NOTICE_AFTER_S = 5.0
"""The user is told of every wait that is longer."""
BUSY_HINT = "try again later, or raise --retries and --timeout"
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
    """Decides when requests may be sent. All requests to a host wait together."""

    def __init__(self, pace: Pace, max_wait_s: float, tell: Callable[[str], None] | None = None) -> None:
        """Create it. `tell` receives a line for the user about each wait of more than NOTICE_AFTER_S."""
        self._pace = pace
        self._max_wait_s = max_wait_s
        self._tell = tell
        self._hosts: defaultdict[str, _Host] = defaultdict(_Host)
        self._lock = threading.Lock()

    def wait(self, host: str) -> None:
        """Wait until a host accepts requests again.

        Raises Cancelled, and UnavailableError at once if the host has asked for more than `max_wait_s`.
        """
        state = self._state(host)
        while (wait_s := state.not_before - self._pace.now()) > 0:
            if wait_s > self._max_wait_s:
                raise UnavailableError(
                    "registry-busy", f"{printable(host)} is busy, and asks to wait {shown_s(wait_s)}", BUSY_HINT
                )
            self._announce(host, state, wait_s)
            self._pace.wait(wait_s)

    def accepts(self, asked_s: float | None) -> bool:
        """Tell whether a wait that a host asks for is short enough."""
        return asked_s is None or asked_s <= self._max_wait_s

    def back_off(self, host: str, failures: int, asked_s: float | None = None) -> None:
        """Delay requests to a host by the time that it asks for, otherwise longer after each failure of a request."""
        state = self._state(host)
        grown_s = min(_FIRST_WAIT_S * 2 ** min(failures, 20), _LONGEST_WAIT_S) * self._pace.jitter()
        wait_s = min(grown_s, self._max_wait_s) if asked_s is None else asked_s
        with self._lock:
            until = self._pace.now() + wait_s
            if until > state.not_before:
                state.not_before, state.has_asked = until, asked_s is not None

    def _state(self, host: str) -> _Host:
        with self._lock:
            return self._hosts[host]

    def _announce(self, host: str, state: _Host, wait_s: float) -> None:
        """Tell the user of a long wait, once for all threads."""
        if self._tell is None or wait_s <= NOTICE_AFTER_S:
            return
        with self._lock:
            is_told, state.told = state.told == state.not_before, state.not_before
        if not is_told:
            reason = "is busy" if state.has_asked else "failed"
            self._tell(f"{printable(host)} {reason}: waiting {shown_s(wait_s)} before the next request")


class _Host:
    def __init__(self) -> None:
        self.not_before = 0.0
        self.has_asked = False
        self.told = 0.0
        """The value of `not_before` that the user knows."""


def read_retry_after(text: str, wall_s: float) -> float | None:
    """Read Retry-After in both forms (RFC 9110 10.2.3), in seconds; `wall_s` is the time since 1970."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - wall_s) if text else None
    except (ValueError, TypeError, OverflowError):
        return None


def shown_s(seconds: float) -> str:
    """Show a duration in whole seconds, rounded up."""
    return f"{ceil(seconds):,} s"


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
    """Limits for retrying a request or transfer: the number of attempts, and `limit_s` for each MIN_BYTES."""

    def __init__(self, count: int, limit_s: float = inf) -> None:
        self._count = count
        self._allowance = Allowance(limit_s)
        self.failures = 0

    def fail(self) -> bool:
        """Count a failed attempt; tells whether another one is left."""
        self.failures += 1
        return self.failures < self._count

    @property
    def is_too_slow(self) -> bool:
        return self._allowance.left_s <= 0

    def advance(self, count_bytes: int, seconds: float) -> None:
        """Count transferred bytes and the seconds spent waiting for them; failures before them no longer count."""
        self._allowance.spend(seconds)
        self._allowance.advance(count_bytes)
        if count_bytes and not self.is_too_slow:
            self.failures = 0

"""The minimum rate of a transfer: how long its next bytes may take."""

from __future__ import annotations

MIN_BYTES = 64 << 10
"""What has to move within each `Network.read_s`: 1.1 KB/s by default, so that four workers on a link of 10 KB/s do."""


class Allowance:
    """The time that the next MIN_BYTES of a transfer may take.

    Only time that is spent waiting for the peer counts, not what happens between two waits.
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
        """Count what has moved; MIN_BYTES of it renew the time."""
        self._moved_bytes += count_bytes
        if self._moved_bytes >= MIN_BYTES:
            self.renew()

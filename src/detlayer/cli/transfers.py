"""Output of transfers: a bar for each large blob and one for all, plain lines, or JSON events."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from detlayer.cli.console import Console, size

if TYPE_CHECKING:
    from rich.progress import TaskID

_BAR_FROM_BYTES = 4 << 20
_BARS_AFTER_S = 0.5
_PLAIN_EVERY_S = 5.0
SHOWN_DIGEST = 19  # `sha256:` and 12 digits


class Transfers:
    """Shows the progress of a push or pull; called from several threads."""

    def __init__(self, console: Console, *, as_events: bool = False) -> None:
        self._console = console
        self._as_events = as_events
        self._lock = threading.RLock()
        self._started = time.monotonic()
        self._next = self._started + _BARS_AFTER_S
        self._sizes: dict[str, int] = {}
        self._moved: dict[str, int] = {}
        self._done: dict[str, str] = {}
        self._packs: dict[str, int] = {}
        self._tasks: dict[str, TaskID] = {}
        self._total: TaskID | None = None

    def counts(self) -> dict[str, int]:
        """Count the finished blobs by how they arrived."""
        with self._lock:
            found: dict[str, int] = {}
            for how in self._done.values():
                found[how] = found.get(how, 0) + 1
            return found

    # -- TransferReporter

    def transfer(self, name: str, total_bytes: int) -> None:
        with self._lock:
            self._sizes[name] = total_bytes
            self._moved.setdefault(name, 0)
            self._event("transfer", name)
            self._show()

    def advance(self, name: str, count_bytes: int) -> None:
        with self._lock:
            self._moved[name] = self._moved.get(name, 0) + count_bytes
            self._show()

    def done(self, name: str, how: str) -> None:
        with self._lock:
            self._done[name] = how
            self._event(how, name)
            if name in self._tasks:
                self._console.bars().remove_task(self._tasks.pop(name))
            self._show()
            self._console.detail(f"{name}: {how}")

    def progress(self, step: str, tar_bytes: int) -> None:
        """Show how many bytes have been packed; the total is unknown."""
        with self._lock:
            self._packs[step] = tar_bytes
            self._show()

    def forget_pack(self, step: str) -> None:
        """Remove a finished pack from the screen."""
        with self._lock:
            if self._packs.pop(step, None) is not None and step in self._tasks:
                self._console.bars().remove_task(self._tasks.pop(step))

    def warning(self, code: str, message: str) -> None:
        with self._lock:
            self._console.warning(code, message)

    def note(self, line: str) -> None:
        """Tell the user of a long wait."""
        with self._lock:
            self._console.note(line)

    def log(self, line: str) -> None:
        """Show a request, for --verbose."""
        with self._lock:
            self._console.detail(line)

    # -- display

    def _event(self, kind: str, name: str) -> None:
        if self._as_events:
            from detlayer.oci.types import canonical_json

            document = {"type": kind, "digest": name, "size": self._sizes.get(name, 0)}
            self._console.result(canonical_json(document).decode())

    def _show(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        if self._console.shows_bars:
            self._next = now + 0.1
            self._show_bars()
        elif self._console.shows_plain:
            self._next = now + _PLAIN_EVERY_S
            packs = [f"{step}: {size(tar_bytes)}" for step, tar_bytes in self._packs.items()]
            if self._sizes:
                moved = sum(self._moved.values())
                packs.append(f"{len(self._done)} of {len(self._sizes)} blobs, {size(moved)}")
            self._console.note(f"{', '.join(packs)}, {now - self._started:.0f} s")

    def _show_bars(self) -> None:
        bars = self._console.bars()
        for step, tar_bytes in self._packs.items():
            if step not in self._tasks:
                self._tasks[step] = bars.add_task(step, total=None)
            bars.update(self._tasks[step], completed=tar_bytes)
        if not self._sizes:
            return
        if self._total is None:
            self._total = bars.add_task("all", total=sum(self._sizes.values()))
        for name, total_bytes in self._sizes.items():
            if name not in self._done and total_bytes >= _BAR_FROM_BYTES:
                if name not in self._tasks:
                    self._tasks[name] = bars.add_task(name[:SHOWN_DIGEST], total=total_bytes)
                bars.update(self._tasks[name], completed=self._moved[name])
        # Mounted blobs arrive without moving bytes.
        arrived = sum(self._sizes[name] if name in self._done else self._moved[name] for name in self._sizes)
        bars.update(self._total, completed=arrived, total=sum(self._sizes.values()))

"""Tell the user about long waits for a peer: for a connection, an answer, or the next bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from detlayer.registry.retry import shown_s

_LOOKS_PER_NOTICE = 10


class Wait:
    """One wait of one thread. `what` completes `waiting for …`; `limit_s` is its time limit."""

    def __init__(self, what: str, limit_s: float) -> None:
        self.told: set[str] = set()
        self.change(what, limit_s)

    def change(self, what: str, limit_s: float) -> None:
        """Wait for something else from now on."""
        self.what = what
        self.limit_s = limit_s
        self.restart()

    def restart(self) -> None:
        """Start again, because the peer did something, or has to from now on."""
        self.began: float | None = time.monotonic()

    def pause(self) -> None:
        """Wait for nothing until `restart`."""
        self.began = None


class Waits:
    """Watches all waits of a run from one thread, which starts with the first wait."""

    def __init__(self, tell: Callable[[str], None] | None, after_s: float) -> None:
        """Create it. `tell` receives a line for the user about each wait that lasts longer than `after_s`."""
        self._tell = tell
        self._after_s = after_s
        self._running: set[Wait] = set()
        self._is_watched = False
        self._over = threading.Event()
        self._lock = threading.RLock()  # the garbage collector may end a wait while this thread holds it

    @contextmanager
    def waiting(self, what: str, limit_s: float) -> Iterator[Wait]:
        """Watch a wait until the end of the block."""
        wait = self.begin(what, limit_s)
        try:
            yield wait
        finally:
            self.end(wait)

    def begin(self, what: str, limit_s: float) -> Wait:
        """Start to watch a wait; `end` has to follow."""
        wait = Wait(what, limit_s)
        if self._tell is not None:
            with self._lock:
                self._running.add(wait)
                if not self._is_watched:
                    self._is_watched = True
                    self._start(self._tell)
        return wait

    def end(self, wait: Wait) -> None:
        with self._lock:
            self._running.discard(wait)

    def close(self) -> None:
        self._over.set()

    def _start(self, tell: Callable[[str], None]) -> None:
        try:
            threading.Thread(target=self._watch, args=(tell,), daemon=True).start()
        except RuntimeError:  # the system's limit of threads: nobody is told
            self._tell = None

    def _watch(self, tell: Callable[[str], None]) -> None:
        while not self._over.wait(self._after_s / _LOOKS_PER_NOTICE):
            now = time.monotonic()
            with self._lock:
                running = [(one, one.what, one.limit_s, one.began) for one in self._running]
            for wait, what, limit_s, began in running:
                if began is not None and now - began > self._after_s and what not in wait.told:
                    wait.told.add(what)
                    left_s = max(0.0, limit_s - (now - began))
                    tell(f"waiting for {what}: at most {shown_s(left_s)} more")

"""All that is printed: results on stdout, everything else on stderr. The only module that writes to either."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Literal

from detlayer.errors import DetlayerError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

ProgressKind = Literal["auto", "bar", "plain", "none"]

_BAR_AFTER_S = 0.5  # shorter work needs no bar, and most work is shorter
_PLAIN_EVERY_S = 5.0
_STYLES = {"error": "\x1b[1;31m", "warning": "\x1b[1;33m"}


class Console:
    """Prints for one run, and is the reporter that recipes talk to."""

    def __init__(
        self, *, json: bool = False, quiet: bool = False, verbose: bool = False, progress: ProgressKind = "auto"
    ) -> None:
        self._json = json
        self._quiet = quiet
        self._verbose = verbose
        self._colour = False
        self._kind = progress
        self._started = time.monotonic()
        self._next = self._started + _BAR_AFTER_S
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def use_colour(self, allowed: bool) -> None:
        """Colour is for terminals, unless NO_COLOR says no (no-color.org)."""
        self._colour = allowed and sys.stderr.isatty()

    # -- results and words

    def result(self, text: str) -> None:
        print(text, flush=True)

    def line(self, text: str) -> None:
        """Print a line of a long result, buffered; `flush` or the exit brings it out."""
        sys.stdout.write(text + "\n")

    def flush(self) -> None:
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Say how it went; --quiet leaves it out."""
        if not self._quiet:
            self._say(text)

    def detail(self, text: str) -> None:
        """Say what only --verbose asks for."""
        if self._verbose:
            self._say(text)

    def warning(self, code: str, message: str) -> None:
        self._say(f"{self._label('warning', code)} {message}")

    def error(self, error: DetlayerError) -> None:
        self.close()
        self._say(f"{self._label('error', error.code)} {error.message}")
        if error.hint:
            self._say(f"  hint: {error.hint}")
        if self._json:
            from detlayer.oci import canonical_json

            document = {"type": "error", "code": error.code, "message": error.message, "hint": error.hint}
            self.result(canonical_json(document).decode())

    def _label(self, kind: str, code: str) -> str:
        label = f"{kind}[{code}]:"
        return f"{_STYLES[kind]}{label}\x1b[0m" if self._colour else label

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    # -- progress

    def progress(self, entries: int, tar_bytes: int) -> None:
        now = time.monotonic()
        if self._quiet or self._kind == "none" or now < self._next:
            return
        if self._kind == "bar" or (self._kind == "auto" and sys.stderr.isatty()):
            self._next = now + 0.1
            self._update_bar(entries, tar_bytes)
        elif self._kind == "plain":
            self._next = now + _PLAIN_EVERY_S
            self._say(f"{entries:,} entries, {size(tar_bytes)}, {now - self._started:.0f} s")

    def _update_bar(self, entries: int, tar_bytes: int) -> None:
        if self._bar is None:
            from rich.console import Console as RichConsole
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=RichConsole(stderr=True, no_color=not self._colour),
                transient=True,
            )
            self._task = self._bar.add_task("")
            self._bar.start()
        if self._task is not None:
            self._bar.update(self._task, description=f"{entries:,} entries, {size(tar_bytes)}")

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def size(count_bytes: int) -> str:
    """Show a number of bytes as people read it."""
    if count_bytes < 1024:
        return f"{count_bytes} bytes"
    value = float(count_bytes)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"

"""All that is printed: results on stdout, everything else on stderr. The only module that writes to either."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, Literal, TextIO

from detlayer.errors import ConfigError, DetlayerError, OutputError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from detlayer.packing.explanation import Explanation

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

    def use_colour(self, no_color: str | None) -> None:
        """Colour is for terminals, unless NO_COLOR is there and not empty (no-color.org)."""
        self._colour = not no_color and _is_terminal(sys.stderr)

    # -- results and words

    def result(self, text: str) -> None:
        """Print a result, in UTF-8 whatever the locale; raises OutputError where stdout does not take it."""
        self.line(text)
        self.flush()

    def line(self, text: str) -> None:
        """Print a line of a long result, buffered, as `result` would; that, `flush` or the exit brings it out."""
        if sys.stdout is not None:  # else closed by whoever started us
            with self._printing():
                sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace") + b"\n")

    def flush(self) -> None:
        if sys.stdout is not None:
            with self._printing():
                sys.stdout.buffer.flush()

    @contextmanager
    def _printing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.abandon_stdout()
            raise OutputError(
                "output-closed", f"the result can't be printed: {error.strerror}", "see where stdout goes"
            ) from error

    def abandon_stdout(self) -> None:
        """Let what is still in stdout's buffer go nowhere."""
        _abandon(sys.stdout)

    def note(self, text: str) -> None:
        """Say how it went; --quiet leaves it out."""
        if not self._quiet:
            self._say(text)

    def detail(self, text: str) -> None:
        """Say what only --verbose asks for."""
        if self._verbose:
            self._say(text)

    def explain(self, explanation: Explanation) -> None:
        """Say what was reused, as --explain asks for."""
        for line in explanation.to_lines():
            self._say(line)

    def warning(self, code: str, message: str) -> None:
        self._say(f"{self._label('warning', code)} {message}")

    def failure(self, error: DetlayerError) -> None:
        """Say what failed, where that is not the end of the run."""
        self.close()
        self._say(f"{self._label('error', error.code)} {error.message}")
        if error.hint:
            self._say(f"  hint: {error.hint}")

    def error(self, error: DetlayerError) -> None:
        """Say what ended the run; with --json on stdout, too."""
        self.failure(error)
        self._last_line(error.code, error.message, error.hint)

    def stopped(self, message: str) -> None:
        """Say that somebody ended the run; with --json on stdout, too."""
        self.close()
        self.warning("interrupted", message)
        self._last_line("interrupted", message, "run it again: it goes on from there")

    def _last_line(self, code: str, message: str, hint: str) -> None:
        if self._json:
            from detlayer.oci.types import canonical_json

            document = {"type": "error", "code": code, "message": message, "hint": hint}
            with suppress(OutputError):  # the exit code still says it
                self.result(canonical_json(document).decode())

    def _label(self, kind: str, code: str) -> str:
        label = f"{kind}[{code}]:"
        return f"{_STYLES[kind]}{label}\x1b[0m" if self._colour else label

    def _say(self, text: str) -> None:
        if sys.stderr is None:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            try:
                print(text, file=sys.stderr, flush=True)
            except OSError:  # what can't be said can't be helped
                _abandon(sys.stderr)

    # -- progress

    def progress(self, entries: int, tar_bytes: int) -> None:
        now = time.monotonic()
        if self._quiet or self._kind == "none" or now < self._next:
            return
        if self._kind == "bar" or (self._kind == "auto" and _is_terminal(sys.stderr)):
            self._next = now + 0.1
            self._update_bar(entries, tar_bytes)
        elif self._kind == "plain":
            self._next = now + _PLAIN_EVERY_S
            self._say(f"{counted(entries, 'entry')}, {size(tar_bytes)}, {now - self._started:.0f} s")

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
            self._bar.update(self._task, description=f"{counted(entries, 'entry')}, {size(tar_bytes)}")

    # -- transfers

    @property
    def shows_bars(self) -> bool:
        """Whether progress is shown as bars: asked for, or on a terminal."""
        return not self._quiet and (self._kind == "bar" or (self._kind == "auto" and _is_terminal(sys.stderr)))

    @property
    def shows_plain(self) -> bool:
        return not self._quiet and self._kind == "plain"

    def bars(self) -> Progress:
        """Put bars for transfers on the screen, or hand out those that are there; `close` takes them off."""
        if self._bar is None:
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                console=RichConsole(stderr=True, no_color=not self._colour),
                transient=True,
            )
            self._bar.start()
        return self._bar

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def stdout_stream() -> BinaryIO:
    """Hand out stdout for a blob; raises ConfigError if there is none, or only a terminal."""
    if sys.stdout is None:
        raise ConfigError("stdout-closed", "stdout is closed", "use -o FILE")
    if _is_terminal(sys.stdout):
        raise ConfigError("stdout-terminal", "a layer is nothing for a terminal", "use -o FILE, or pipe it")
    return sys.stdout.buffer


def stdin_stream() -> BinaryIO:
    """Hand out stdin for a layer; raises ConfigError if there is none."""
    if sys.stdin is None:
        raise ConfigError("stdin-closed", "stdin is closed", "name a file, or pipe a layer in")
    return sys.stdin.buffer


def _abandon(stream: TextIO) -> None:
    """Let what is still in a stream's buffer go nowhere: Python would try once more at exit, and end with 120."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def counted(number: int, noun: str) -> str:
    """Show how many there are of something: `1 entry`, `2,000 entries`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun[:-1]}ies" if noun.endswith("y") else f"{number:,} {noun}s"


def size(count_bytes: int) -> str:
    """Show a number of bytes as people read it."""
    if count_bytes < 1024:
        return counted(count_bytes, "byte")
    value = float(count_bytes)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"

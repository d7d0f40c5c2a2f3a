"""Printed output: results on stdout, everything else on stderr. No other module writes to either."""

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

_BAR_AFTER_S = 0.5  # most commands end sooner and need no bar
_PLAIN_EVERY_S = 5.0
_STYLES = {"error": "\x1b[1;31m", "warning": "\x1b[1;33m"}


class Console:
    """Prints the output of one run, and is its reporter."""

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

    @property
    def is_verbose(self) -> bool:
        """Whether --verbose was given."""
        return self._verbose

    def use_colour(self, no_color: str | None) -> None:
        """Use colour on terminals, unless NO_COLOR is set and not empty (no-color.org)."""
        self._colour = not no_color and _is_terminal(sys.stderr)

    # -- results and messages

    def result(self, text: str) -> None:
        """Print a result, in UTF-8 regardless of the locale; raises OutputError if stdout fails."""
        self.line(text)
        self.flush()

    def line(self, text: str) -> None:
        """Print a line of a long result without flushing; raises OutputError if stdout fails."""
        if sys.stdout is not None:  # None if the parent process closed it
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
                "output-closed", f"can't write the result to stdout: {error.strerror}", "check where stdout goes"
            ) from error

    def abandon_stdout(self) -> None:
        """Discard the contents of stdout's buffer."""
        _abandon(sys.stdout)

    def note(self, text: str) -> None:
        """Print a message, unless --quiet."""
        if not self._quiet:
            self._say(text)

    def detail(self, text: str) -> None:
        """Print a message if --verbose."""
        if self._verbose:
            self._say(text)

    def explain(self, explanation: Explanation) -> None:
        """Print what was reused, for --explain."""
        for line in explanation.to_lines():
            self._say(line)

    def warning(self, code: str, message: str) -> None:
        self._say(f"{self._label('warning', code)} {message}")

    def failure(self, error: DetlayerError) -> None:
        """Print an error that does not end the run."""
        self.close()
        self._say(f"{self._label('error', error.code)} {error.message}")
        if error.hint:
            self._say(f"  hint: {error.hint}")

    def error(self, error: DetlayerError) -> None:
        """Print the error that ended the run; with --json also on stdout."""
        self.failure(error)
        self._last_line(error.code, error.message, error.hint)

    def stopped(self, message: str) -> None:
        """Print that the run was interrupted; with --json also on stdout."""
        self.close()
        self.warning("interrupted", message)
        self._last_line("interrupted", message, "run the command again to resume")

    def _last_line(self, code: str, message: str, hint: str) -> None:
        if self._json:
            from detlayer.oci.types import canonical_json

            document = {"type": "error", "code": code, "message": message, "hint": hint}
            with suppress(OutputError):  # the exit code still reports the error
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
            except OSError:  # there is nowhere left to report it
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
        """Whether progress is shown as bars: with --progress bar, or on a terminal."""
        return not self._quiet and (self._kind == "bar" or (self._kind == "auto" and _is_terminal(sys.stderr)))

    @property
    def shows_plain(self) -> bool:
        return not self._quiet and self._kind == "plain"

    def bars(self) -> Progress:
        """Return the bars for transfers, created on first use; `close` removes them."""
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
        """Remove the bar from the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def stdout_stream() -> BinaryIO:
    """Return stdout for binary output; raises ConfigError if it is closed or a terminal."""
    if sys.stdout is None:
        raise ConfigError("stdout-closed", "stdout is closed", "use -o FILE")
    if _is_terminal(sys.stdout):
        raise ConfigError("stdout-terminal", "can't write a layer to a terminal", "use -o FILE, or a pipe")
    return sys.stdout.buffer


def stdin_stream() -> BinaryIO:
    """Return stdin for a layer; raises ConfigError if it is closed."""
    if sys.stdin is None:
        raise ConfigError("stdin-closed", "stdin is closed", "pass a file, or pipe a layer to stdin")
    return sys.stdin.buffer


def _abandon(stream: TextIO) -> None:
    """Discard a stream's buffer. Otherwise Python writes it again at exit, and exits with 120."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def counted(number: int, noun: str) -> str:
    """Format a count and its noun: `1 entry`, `2,000 entries`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun[:-1]}ies" if noun.endswith("y") else f"{number:,} {noun}s"


def size(count_bytes: int) -> str:
    """Format a number of bytes for people."""
    if count_bytes < 1024:
        return counted(count_bytes, "byte")
    value = float(count_bytes)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"

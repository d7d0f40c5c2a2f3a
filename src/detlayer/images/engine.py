"""Container engines on this machine: an image goes in through `docker load` or `podman load`. Never what an image is.

The archive is piped, not kept. An engine that fails, or is left alone in the middle, loads nothing.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Literal

from detlayer.errors import ConfigError, OutputError, printable
from detlayer.layer.ports import Bytes, Sink

Engine = Literal["docker", "podman"]

_SHOWN_CHARACTERS = 2000


def load(engine: Engine, write: Callable[[Sink], None]) -> None:
    """Load what `write` writes, a docker-archive; raises ConfigError, OutputError, and what `write` raises."""
    with tempfile.TemporaryFile() as said:
        process = _start([engine, "load"], stdin=subprocess.PIPE, output=said)
        assert process.stdin is not None
        sink = _Pipe(process.stdin)
        try:
            write(sink)
            sink.close()
        except _ClosedError:
            pass  # the engine has had enough; it says why
        except BaseException:
            process.kill()
            process.wait()
            process.stdin.close()
            raise
        if process.wait() or sink.is_broken:
            said.seek(0)
            text = said.read().decode("utf-8", "replace").strip()[-_SHOWN_CHARACTERS:]
            raise OutputError(
                "engine-failed",
                f"`{engine} load` ended with {process.returncode}: {printable(text) or 'it did not say why'}",
                f"is {engine} running, and may you use it?",
            )


def identity(engine: Engine, name: str) -> str:
    """Say which image an engine has under a name, as `sha256:HEX` of its config; empty if none. Raises ConfigError."""
    with tempfile.TemporaryFile() as said:
        process = _start(
            [engine, "image", "inspect", "--format", "{{.Id}}", name], stdin=subprocess.DEVNULL, output=said
        )
        if process.wait():
            return ""
        said.seek(0)
        text = said.read(200).decode("ascii", "replace").strip()
    return text if text.startswith("sha256:") else f"sha256:{text}"


def _start(command: list[str], *, stdin: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(command, stdin=stdin, stdout=output, stderr=subprocess.STDOUT, bufsize=0)
    except OSError as error:
        raise ConfigError(
            "engine-missing",
            f"{command[0]} can't be started: {error.strerror}",
            "install it, or write --output docker-archive:FILE",
        ) from error


class _ClosedError(Exception):
    """The engine reads no more."""


class _Pipe:
    """The stdin of an engine, as a sink."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.is_broken = False

    def write(self, data: Bytes, /) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self._stream.write(view) :]
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        try:
            self._stream.close()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.is_broken = True
        with suppress(OSError):
            self._stream.close()
        raise _ClosedError from error

"""Load images into local container engines with `docker load` or `podman load`.

The archive is piped, not stored. An engine that fails or is interrupted loads nothing.
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
    """Load the docker-archive written by `write`; raises ConfigError, OutputError, and the errors of `write`."""
    with tempfile.TemporaryFile() as said:
        process = _start([engine, "load"], stdin=subprocess.PIPE, output=said)
        assert process.stdin is not None
        sink = _Pipe(process.stdin)
        try:
            write(sink)
            sink.close()
        except _ClosedError:
            pass  # the engine stopped reading; its output says why
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
                f"`{engine} load` failed with exit code {process.returncode}: {printable(text) or 'no error message'}",
                f"check that {engine} is running and that you may use it: {engine} info",
            )


def identity(engine: Engine, name: str) -> str:
    """Return the config digest of an engine's image by name, as `sha256:HEX`; empty if none. Raises ConfigError."""
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
            f"can't start {command[0]}: {error.strerror}",
            "install it, or use --output docker-archive:FILE",
        ) from error


class _ClosedError(Exception):
    """The engine has stopped reading."""


class _Pipe:
    """The stdin of an engine as a sink."""

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

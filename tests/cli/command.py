"""Run the command line as a process, and search all its output for secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.contracts.faults import Call
from tests.contracts.http_records import Request

HANGS_S = 60  # longer than any test takes: a process that runs longer hangs


@dataclass(frozen=True)
class Said:
    """The output and exit code of a run."""

    exit: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        return self.stdout.splitlines()

    @property
    def words(self) -> list[str]:
        return self.stderr.splitlines()

    @property
    def documents(self) -> list[dict[str, Any]]:
        """The lines of --json."""
        return [json.loads(line) for line in self.lines]

    @property
    def result(self) -> dict[str, Any]:
        """The last document."""
        return self.documents[-1]

    @property
    def error(self) -> tuple[int, str, str, str]:
        """Exit code, error code, message and hint of the only error; asserts that stdout is empty and no traceback."""
        assert self.stdout == ""
        assert "Traceback" not in self.stderr
        error, hint = self.words[-2:]
        label, _, message = error.partition("]: ")
        assert label.startswith("error["), self.stderr
        assert hint.startswith("  hint: "), self.stderr
        return self.exit, label.removeprefix("error["), message, hint.removeprefix("  hint: ")

    @property
    def failure(self) -> tuple[int, str]:
        """Exit code and error code of the only error."""
        return self.error[:2]


@dataclass
class CommandLine:
    """Runs detlayer in a directory, as a user with an empty home directory."""

    here: Path
    environment: dict[str, str] = field(default_factory=dict)
    said: list[Said] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.home.mkdir()
        self.environment |= {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "DETLAYER_CACHE_DIR": str(self.cache),
        }

    @property
    def home(self) -> Path:
        return self.here / "home"

    @property
    def cache(self) -> Path:
        return self.here / "cache"

    def __call__(self, *arguments: str | Path, stdin: str = "", **environment: str) -> Said:
        process = self.start(*arguments, **environment)
        return self.end(process, stdin=stdin)

    def start(self, *arguments: str | Path, **environment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "detlayer", *arguments],
            cwd=self.here,
            env={**self.environment, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def end(self, process: subprocess.Popen[bytes], *, stdin: str = "") -> Said:
        """Wait for the end of a run."""
        with process:
            try:
                stdout, stderr = process.communicate(stdin.encode(), timeout=HANGS_S)
            finally:
                process.kill()
        self.said.append(Said(process.returncode, stdout.decode(), stderr.decode()))
        return self.said[-1]

    def interrupted(self, arguments: Sequence[str | Path], number: int, arm: Callable[[Call], None]) -> Said:
        """Run, and send the signal at the request that `arm` attaches the call to."""
        running: list[subprocess.Popen[bytes]] = []

        def send(request: Request) -> None:
            running[0].send_signal(number)

        arm(Call(send))
        running.append(self.start(*arguments))
        return self.end(running[0])

    def leaks(self, secrets: Iterable[str]) -> set[str]:
        """Return the secrets found in any output or cache file, verbatim or URL-encoded."""
        texts = [text.encode() for said in self.said for text in (said.stdout, said.stderr)]
        texts += [path.read_bytes() for path in self.cache.rglob("*") if path.is_file()]
        whole = b"\n".join(texts)
        return {one for one in secrets if one.encode() in whole or quote(one, safe="").encode() in whole}

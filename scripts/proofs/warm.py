"""Run detlayer in forks of a process that has imported all of it, so that strace counts its work and not its start.

The first call of a run that strace sees is detlayer's own. strace counts the calls of each thread by itself: `when=3`
is the third call of every thread, and the log says which calls were hit.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import json
import os
import pkgutil
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent.parent
HANGS_S = 60
_LEFT_S = 5.0  # how long what a run has started may outlive it

_PR_SET_PTRACER = 0x59616D61
_LINE = re.compile(r"(\w+)\((.*)$")
# `3</path>`, `AT_FDCWD</path>`, and names in quotes, which follow the descriptor that they are relative to
_ARGUMENT = re.compile(r'(?:\d+|AT_FDCWD)<([^<>]*)>|"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Call:
    """A system call in the log: the `number`-th of its name in its thread."""

    thread: int
    name: str
    number: int
    paths: tuple[str, ...]
    text: str

    @property
    def is_injected(self) -> bool:
        return "(INJECTED" in self.text

    @property
    def result(self) -> int:
        found = re.search(r"\) += (-?\d+)", self.text)
        return int(found[1]) if found else -1

    @property
    def is_network(self) -> bool:
        return "<TCP:" in self.text


@dataclass(frozen=True)
class Said:
    """What a run printed, its exit (negative: the signal that ended it), and its system calls if it was traced."""

    exit: int
    stdout: str
    stderr: str
    is_hung: bool = False
    left_running: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()

    @property
    def code(self) -> str:
        """The code of its error."""
        found = re.search(r"^error\[([\w-]+)\]: ", self.stderr, re.MULTILINE)
        return found[1] if found else ""


class Warm:
    """Starts runs, one at a time. Close it, or use it as a context."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self.stdout, self.stderr = scratch / "stdout", scratch / "stderr"
        scratch.mkdir(parents=True)
        self._server = subprocess.Popen(
            [sys.executable, "-m", "scripts.proofs.warm"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0", "HOME": str(scratch)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        arguments: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        *,
        trace: Sequence[str] | None = None,
        file_bytes: int | None = None,
    ) -> Said:
        """Run detlayer, under strace with these options if there are any; `file_bytes` is the largest file allowed."""
        log = self._scratch / "log"
        shutil.rmtree(log, ignore_errors=True)
        log.mkdir()
        job = {
            "arguments": list(arguments),
            "cwd": str(cwd),
            "environment": dict(environment),
            "stdout": str(self.stdout),
            "stderr": str(self.stderr),
            "is_stopped": trace is not None,
            "file_bytes": file_bytes,
        }
        stdin, stdout = self._server.stdin, self._server.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(job) + "\n")
        stdin.flush()
        pid = int(stdout.readline())
        until = time.monotonic() + HANGS_S
        tracer = _attach(pid, trace, log) if trace is not None else None
        is_hung = not _ended(pid, until)
        if is_hung:
            os.kill(pid, signal.SIGKILL)
        status = int(stdout.readline())
        left = _end_others(tracer) if tracer is not None else ()
        return Said(
            os.waitstatus_to_exitcode(status),
            self.stdout.read_text(errors="replace"),
            self.stderr.read_text(errors="replace"),
            is_hung,
            left,
            tuple(_read_log(log, cwd)),
        )

    def close(self) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failed: object) -> None:
        self.close()


def _attach(pid: int, options: Sequence[str], log: Path) -> subprocess.Popen[str]:
    """Trace a process that stops itself, and let it continue."""
    while _state(pid) != "T":
        time.sleep(0.001)
    command = ["strace", "-f", "-ff", "-yy", "-s", "0", "-o", str(log / "of"), *options, "-p", str(pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    for line in tracer.stderr:
        if "attached" in line:
            break
    else:
        os.kill(pid, signal.SIGKILL)
        raise RuntimeError(f"strace can't trace: {' '.join(command)}")
    os.kill(pid, signal.SIGCONT)
    return tracer


def _end_others(tracer: subprocess.Popen[str]) -> tuple[str, ...]:
    """Wait for what a run has started; what does not end is killed and listed."""
    left = []
    try:
        tracer.wait(_LEFT_S)
    except subprocess.TimeoutExpired:
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"\nTracerPid:\t{tracer.pid}\n" in (path / "status").read_text():
                    left.append((path / "cmdline").read_text().replace("\0", " "))
                    os.kill(int(path.name), signal.SIGKILL)
        tracer.wait()
    assert tracer.stderr is not None
    tracer.stderr.close()
    return tuple(left)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def _ended(pid: int, until: float) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    import select

    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(max(0.0, until - time.monotonic()) * 1000))
    finally:
        os.close(fd)


def _read_log(directory: Path, cwd: Path) -> Iterator[Call]:
    threads = sorted(directory.iterdir(), key=lambda path: int(path.suffix[1:]))
    for thread, path in enumerate(threads):
        counts: dict[str, int] = {}
        for line in path.read_text(errors="replace").splitlines():
            found = _LINE.match(line)
            if found is None:
                continue
            name = found[1]
            counts[name] = counts.get(name, 0) + 1
            yield Call(thread, name, counts[name], tuple(_paths(found[2], str(cwd))), line)


def _paths(arguments: str, cwd: str) -> Iterator[str]:
    base = cwd
    for fd, name in _ARGUMENT.findall(arguments.rpartition(") = ")[0] or arguments):
        if fd:
            base = fd
            if not arguments.startswith("AT_FDCWD"):
                yield fd
        elif name:
            yield os.path.normpath(os.path.join(base, name))


# -- the process that forks


def _import_all() -> None:
    """Import detlayer and all that its functions import when they are called."""
    import detlayer

    for module in pkgutil.walk_packages(detlayer.__path__, "detlayer."):
        if module.name.endswith("__main__"):
            continue
        source = Path(str(import_module(module.name).__file__)).read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                names = [one.name for one in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            else:
                continue
            for name in [*names, "encodings.idna"]:  # which sockets import
                with contextlib.suppress(ImportError):  # a module of another platform or version
                    import_module(name)


def _become(job: dict[str, Any]) -> None:
    """Turn this fork into the run; it stops itself so that strace can attach."""
    os.setpgid(0, 0)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["environment"])
    for number, (path, flags) in enumerate(
        (
            (os.devnull, os.O_RDONLY),
            (job["stdout"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            (job["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        )
    ):
        fd = os.open(path, flags, 0o644)
        os.dup2(fd, number)
        os.close(fd)
    if job["file_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_bytes"], job["file_bytes"]))
    sys.argv = ["detlayer", *job["arguments"]]
    if job["is_stopped"]:
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1 & 0xFFFFFFFFFFFFFFFF), 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)


def _serve() -> bool:
    """Fork a run for each line; tells whether this is a run."""
    _import_all()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _become(json.loads(line))
            return True
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)
    return False


if __name__ == "__main__" and _serve():
    from detlayer.cli import main

    main()

"""What can be varied on this machine: optional programs, and processors. The caller passes the environment."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

FAKETIME_OFFSET = "+400d"


class CannotViewError(Exception):
    """A disordered view of a directory is not available; the argument is the reason."""


def find_program(name: str, environment: Mapping[str, str]) -> str | None:
    """Find a program on the PATH of `environment`."""
    return shutil.which(name, path=environment.get("PATH", os.defpath))


def time_prefix(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return a command prefix that shifts the clock to another day; empty without `faketime`."""
    program = find_program("faketime", environment)
    # Only the clock: shifted file times would change outputs that record a source's time, such as `gzip -c FILE`.
    return () if program is None else ("env", "NO_FAKE_STAT=1", program, "-f", FAKETIME_OFFSET)


@contextmanager
def disordered(directory: str, at: str, how: str, environment: Mapping[str, str]) -> Iterator[str]:
    """Mount `directory` at the new directory `at` with disorderfs, which lists names in another order.

    Raises CannotViewError where that is not permitted.
    """
    program, unmount = (find_program(name, environment) for name in ("disorderfs", "fusermount3"))
    unmount = unmount or find_program("fusermount", environment)
    if program is None or unmount is None:
        raise CannotViewError("disorderfs is not installed" if program is None else "fusermount is not installed")
    os.mkdir(at)
    done = subprocess.run(
        [program, "--quiet", how, directory, at], capture_output=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode or not os.path.ismount(at):
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        raise CannotViewError(f"disorderfs: {said[0]}")
    try:
        yield at
    finally:
        if subprocess.run([unmount, "-u", at], capture_output=True, check=False).returncode:
            subprocess.run([unmount, "-u", "-z", at], capture_output=True, check=False)


@contextmanager
def on_one_processor() -> Iterator[bool]:
    """Restrict processes that are started in the context to one processor; False if that is not possible."""
    if not hasattr(os, "sched_setaffinity"):
        yield False
        return
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        yield False
        return
    os.sched_setaffinity(0, {min(allowed)})  # of this thread; child processes inherit it
    try:
        yield True
    finally:
        os.sched_setaffinity(0, allowed)

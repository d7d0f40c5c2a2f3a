"""Programs and rights that a test needs: it is skipped without them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

NOBODY = 65534


def program(name: str) -> str:
    """Find a program, or skip with its name."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(name)
    return found


def need_root(what: str) -> None:
    if os.geteuid() != 0:
        pytest.skip(what)


@contextlib.contextmanager
def mounted(arguments: Sequence[str | Path], at: Path) -> Iterator[None]:
    """Mount for a while; skips with 'mount' where that is not permitted."""
    need_root("mount")
    done = subprocess.run([program("mount"), *arguments, at], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mount ({done.stderr.decode().strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", at], check=True)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Drop root's privileges for a while, so that modes count."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def need_user_xattrs(path: Path) -> None:
    try:
        os.setxattr(path, "user.detlayer-probe", b"1")
        os.removexattr(path, "user.detlayer-probe")
    except OSError:
        pytest.skip("user xattrs")

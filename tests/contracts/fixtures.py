"""Registries for tests: each starts empty, and violations by the client fail the test.

A plugin of tests/conftest.py, so that a real registry is started once for the whole suite.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.images import Layout
from tests.contracts.servers import Kind, RealRegistry, Server
from tests.contracts.strict import StrictRegistry

STRICT: dict[str, dict[str, Any]] = {
    "strict": {},
    "strict-basic": {"auth": "basic"},
    "strict-bearer": {"auth": "bearer"},
    "strict-tls": {"auth": "bearer", "tls": True},
}
REAL: dict[str, Kind] = {"real": "open", "real-htpasswd": "htpasswd", "real-token": "token", "real-tls": "tls"}


class StartReal:
    """Starts a real registry, or returns the running one after a reset."""

    def __init__(self, stack: contextlib.ExitStack, make_directory: Callable[[str], Path]) -> None:
        self._stack = stack
        self._make_directory = make_directory
        self.running: dict[Kind, RealRegistry] = {}

    def __call__(self, kind: Kind) -> RealRegistry:
        if kind not in self.running:
            directory = self._make_directory(f"registry-{kind}")
            self.running[kind] = self._stack.enter_context(RealRegistry(kind, directory))
        self.running[kind].reset()
        return self.running[kind]


class StartStrict:
    """Starts strict registries."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self.started: list[StrictRegistry] = []

    def __call__(self, *traps: Any, **options: Any) -> StrictRegistry:
        self.started.append(self._stack.enter_context(StrictRegistry(*traps, **options)))
        return self.started[-1]


@pytest.fixture(scope="session")
def start_real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartReal]:
    """Start a real registry, or return the running one after a reset."""
    with contextlib.ExitStack() as stack:
        yield StartReal(stack, tmp_path_factory.mktemp)


@pytest.fixture
def start_strict() -> Iterator[StartStrict]:
    """Start strict registries; violations by the client fail the test."""
    with contextlib.ExitStack() as stack:
        start = StartStrict(stack)
        yield start
        assert [one for server in start.started for one in server.violations] == []


@pytest.fixture(params=[*STRICT, *REAL])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each registry in turn: tests run unchanged against strict and real ones."""
    yield from _server(str(request.param), request)


@pytest.fixture(params=["strict", "real"])
def open_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A strict and a real registry without authentication."""
    yield from _server(str(request.param), request)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An empty OCI layout to fill."""
    return Layout(tmp_path / "layout")


def _server(name: str, request: pytest.FixtureRequest) -> Iterator[Server]:
    if name in STRICT:
        start_strict: StartStrict = request.getfixturevalue("start_strict")
        yield start_strict(**STRICT[name])
        return
    start_real: StartReal = request.getfixturevalue("start_real")
    real = start_real(REAL[name])
    yield real
    real.revive()
    assert real.violations == []

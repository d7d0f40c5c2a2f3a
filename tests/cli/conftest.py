"""The command line for transcripts. Its output and cache are searched for secrets afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import CommandLine
from tests.contracts.fixtures import StartReal, StartStrict
from tests.contracts.servers import Server


@pytest.fixture
def detlayer(tmp_path: Path, start_strict: StartStrict, start_real: StartReal) -> Iterator[CommandLine]:
    """Run detlayer as a process; no secret of any registry of the test may be in its output or cache."""
    line = CommandLine(tmp_path)
    yield line
    servers: list[Server] = [*start_strict.started, *start_real.running.values()]
    assert line.leaks(secret for server in servers for secret in server.secrets) == set()

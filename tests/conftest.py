"""Fixtures and the Hypothesis profile of the whole suite."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.trees import remove_deep

pytest_plugins = ["tests.contracts.fixtures"]

settings.register_profile(
    "detlayer",
    deadline=None,
    max_examples=60,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("detlayer")


# In the background of a script Ctrl-C is ignored, under nohup SIGHUP; and so it would be in the processes of the tests.
for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _calm_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No variable and no cache of the one who runs the tests decides a result."""
    ours = [name for name in os.environ if name.startswith("DETLAYER_") and name != "DETLAYER_NO_SKIPS"]
    for name in ("SOURCE_DATE_EPOCH", "NO_COLOR", "FORCE_COLOR", "TZ", *ours):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DETLAYER_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
    mask = os.umask(0o022)
    yield
    os.umask(mask)


@pytest.fixture(params=["unnamed", "named"])
def temporary_files(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with temporary files that have no name, and as on file systems without such files."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE")
    return str(request.param)


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """An empty directory to fill and pack."""
    path = tmp_path / "src"
    path.mkdir()
    return path


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A name for a tree too deep for pytest to remove."""
    path = tmp_path / "deep"
    yield path
    remove_deep(path)


@pytest.fixture
def open_tmp(tmp_path: Path) -> Path:
    """A temporary directory that another user can walk into."""
    at = tmp_path
    while at != at.parent and at.stat().st_uid == os.geteuid() and str(at) != "/":
        if at.stat().st_mode & 0o005 != 0o005:
            at.chmod(at.stat().st_mode | 0o055)
        at = at.parent
    return tmp_path

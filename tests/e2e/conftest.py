"""What the end-to-end tests share: a locale for the readers, a real tree, and a program that says how much memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.trees import make_real_tree


@pytest.fixture(autouse=True)
def _utf8_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    """bsdtar turns names into the locale's characters, and has none for UTF-8 in plain C."""
    monkeypatch.setenv("LC_ALL", "C.UTF-8")


@pytest.fixture(scope="session")
def real_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installed Python packages beside all that is odd; for reading only."""
    path = tmp_path_factory.mktemp("real") / "tree"
    make_real_tree(path)
    return path


@pytest.fixture
def short_home() -> Iterator[Path]:
    """A place for podman's storage, whose path must be shorter than 50 characters."""
    with tempfile.TemporaryDirectory(prefix="dl-", dir="/tmp") as home:
        yield Path(home)

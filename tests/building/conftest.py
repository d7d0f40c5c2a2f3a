"""A bench with a strict registry, which records requests and protocol violations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.building.project_bench import FILES, Bench
from tests.contracts.images import Layout
from tests.contracts.strict import StrictRegistry
from tests.trees import make_tree


@pytest.fixture
def bench(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A project with a base in the registry, not built yet."""
    monkeypatch.setenv("DETLAYER_CACHE_DIR", str(tmp_path / "cache"))
    with StrictRegistry() as registry:
        made = Bench(make_tree(tmp_path / "project", FILES), registry, capfd)
        made.push_base()
        made.write()
        yield made
        assert registry.violations == []


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An empty OCI layout to fill."""
    return Layout(tmp_path / "layout")

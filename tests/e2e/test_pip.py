"""Real input: one wheel installed twice by pip at different times. What pack makes equal, and what it can't."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import detlayer
from tests.e2e.test_wheel import build, copy_sources


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our own wheel: pure Python, some dozens of modules."""
    sources = tmp_path_factory.mktemp("wheel") / "detlayer"
    copy_sources(sources, mtime=1_700_000_000)
    return build(sources, umask=0o022, zone="UTC")


def install(wheel: Path, *options: str) -> None:
    # --ignore-installed, or pip would remove the detlayer that is being tested.
    flags = ["--no-deps", "--no-index", "--ignore-installed", "--quiet"]
    pip = [sys.executable, "-m", "pip", "install", *flags, *options]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True, env=environment)


def later() -> None:
    """Let a whole second pass, as file times in bytecode count seconds."""
    time.sleep(1.1)


@pytest.fixture(scope="module")
def twice(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Installed to one place, moved away, and installed there again later."""
    here = tmp_path_factory.mktemp("twice")
    install(wheel, "--prefix", str(here / "app"))
    (here / "app").rename(here / "first")
    later()
    install(wheel, "--prefix", str(here / "app"))
    return here / "first", here / "app"


def test_pack_gives_one_digest(twice: tuple[Path, Path]) -> None:
    """SPEC 4.1 and 4.8: the time of the installation is in mtimes and bytecode, and in neither after packing."""
    first, second = (detlayer.pack([f"{path}:/usr"]) for path in twice)
    assert first == second
    kept = detlayer.Selection(retime_pyc=False)
    assert (
        detlayer.pack([str(twice[0])], options=detlayer.PackOptions(selection=kept)).diff_id
        != detlayer.pack([str(twice[1])], options=detlayer.PackOptions(selection=kept)).diff_id
    )


def test_diff_explains_what_would_differ(twice: tuple[Path, Path]) -> None:
    report = detlayer.diff(*twice)
    assert not report.same
    assert {"mtime", "pyc-timestamp"} <= set(report.counts())
    assert detlayer.diff(*twice, normalized=True).same


def test_target_leaks_a_random_path(wheel: Path, tmp_path: Path) -> None:
    """`pip install --target` compiles in a directory with a random name, which stays in the code objects.

    No normalization of a layer can mend that; it has to be named.
    """
    for name in ("first", "second"):
        install(wheel, "--target", str(tmp_path / name))
    first, second = (detlayer.pack([str(tmp_path / name)]) for name in ("first", "second"))
    assert first.diff_id != second.diff_id
    report = detlayer.diff(tmp_path / "first", tmp_path / "second", normalized=True, explain_limit=1000)
    assert set(report.counts()) == {"pyc-path"}
    for name in ("first", "second"):
        for cache in (tmp_path / name).rglob("__pycache__"):
            shutil.rmtree(cache)
    assert detlayer.pack([str(tmp_path / "first")]) == detlayer.pack([str(tmp_path / "second")])

"""The wheel itself is reproducible: the same sources give the same bytes on every machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.vectors import ROOT

SOURCES = ("LICENSE", "README.md", "pyproject.toml", ".gitignore")


def copy_sources(to: Path, *, mtime: int) -> None:
    to.mkdir(parents=True)
    for name in SOURCES:
        shutil.copyfile(ROOT / name, to / name)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src", to / "src", ignore=ignore, copy_function=shutil.copyfile)
    for path in (to, *to.rglob("*")):
        os.utime(path, (mtime, mtime))


def build(sources: Path, *, umask: int, zone: str) -> Path:
    """Build the wheel from a copy of the sources made under `umask`."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel"],
        cwd=sources,
        env={**os.environ, "TZ": zone},
        umask=umask,
        check=True,
        capture_output=True,
    )
    (wheel,) = (sources / "dist").iterdir()
    return wheel


def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    wheels = []
    for place, mtime, umask, zone in (
        ("a", 1_000_000_000, 0o022, "UTC"),
        ("somewhere/else", 1_700_000_001, 0o077, "Asia/Kathmandu"),
    ):
        before = os.umask(umask)  # the calm_environment fixture puts it back in any case
        copy_sources(tmp_path / place / "detlayer", mtime=mtime)
        os.umask(before)
        wheels.append(build(tmp_path / place / "detlayer", umask=umask, zone=zone))
    assert wheels[0].name == wheels[1].name
    assert wheels[0].read_bytes() == wheels[1].read_bytes()


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    sources = tmp_path_factory.mktemp("wheel") / "detlayer"
    copy_sources(sources, mtime=1_000_000_000)
    with ZipFile(build(sources, umask=0o022, zone="UTC")) as wheel:
        return wheel.namelist()


def test_the_wheel_holds_marker_and_license(names: list[str]) -> None:
    assert "detlayer/py.typed" in names
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]


def test_the_wheel_holds_every_module_and_nothing_else(names: list[str]) -> None:
    package = ROOT / "src"
    modules = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    texts = {str(path.relative_to(package)) for path in package.rglob("explanations/*.toml")}
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == modules | texts | {"detlayer/py.typed"}

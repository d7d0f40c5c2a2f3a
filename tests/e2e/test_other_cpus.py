"""The same bytes on other processors: the packer runs in an emulator that has fewer instructions."""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path

import click
import pytest

from tests.e2e.commands import DETLAYER, pack
from tests.privileges import program
from tests.vectors import counter_bytes

# Nehalem has no AVX, BMI2 or SHA instructions, Haswell has the first two.
CPUS = ("Nehalem", "Haswell")
CODECS = ("none", "gzip:1", "gzip:6", "gzip:9", "zstd:3")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source text of about a megabyte, and a file that is split into two chunks."""
    path = tmp_path_factory.mktemp("cpus") / "tree"
    home = Path(click.__file__).parent
    shutil.copytree(home, path / "click", ignore=shutil.ignore_patterns("__pycache__"))
    text = b"".join(file.read_bytes() for file in sorted(home.glob("*.py")))
    (path / "large").write_bytes((text * 20)[: 4 << 20] + counter_bytes("cpus", 200_000))
    return path


@pytest.fixture(scope="module")
def native(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    out = tmp_path_factory.mktemp("native") / "blob"
    return {codec: pack(tree, "-c", codec, "-o", out).document for codec in CODECS}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64")
@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("codec", CODECS)
def test_digests_do_not_depend_on_the_processor(
    codec: str, cpu: str, tree: Path, native: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    emulated = (program("qemu-x86_64"), "-cpu", cpu, *DETLAYER)
    assert emulated[3] == sys.executable
    said = pack(tree, "-c", codec, "-o", tmp_path / "blob", command=emulated)
    assert said.document == native[codec]

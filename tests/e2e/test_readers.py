"""Blobs of every codec are read by the tools that people have, and extract to the tree that was packed."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, cast

import pytest
import zstandard

from tests.e2e.commands import pack, run
from tests.e2e.trees import expect_tree, read_tree
from tests.privileges import program

SUFFIXES = {"none": "tar", "gzip": "tar.gz", "gzip-stored": "tar.gz", "zstd": "tar.zst"}


@pytest.fixture(scope="module", params=SUFFIXES)
def blob(request: pytest.FixtureRequest, real_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("blob") / f"layer.{SUFFIXES[request.param]}"
    pack(real_tree, "-c", request.param, "-o", path)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


def test_the_compressors_own_programs_find_it_sound(blob: Path) -> None:
    if blob.suffix == ".gz":
        run(program("gzip"), "-t", blob)
        run(program("pigz"), "-t", blob)
    if blob.suffix == ".zst":
        run(program("zstd"), "-t", blob)


def test_gnu_tar_extracts_the_tree(blob: Path, real_tree: Path, out: Path) -> None:
    if blob.suffix == ".zst":
        program("zstd")
    run(program("tar"), "-xpf", blob, "-C", out)
    assert read_tree(out) == expect_tree(real_tree)


def test_bsdtar_extracts_the_tree(blob: Path, real_tree: Path, out: Path) -> None:
    run(program("bsdtar"), "-xpf", blob, "-C", out)
    assert read_tree(out) == expect_tree(real_tree)


def test_tarfile_extracts_the_tree(blob: Path, real_tree: Path, out: Path) -> None:
    # Not mode "r|gz": tarfile reads that up to the end of the first gzip member only, without a word.
    with opened(blob) as (stream, mode), tarfile.open(fileobj=stream, mode=mode) as archive:
        archive.extraction_filter = lambda member, path: member
        archive.extractall(out)
    assert read_tree(out) == expect_tree(real_tree)


@contextmanager
def opened(blob: Path) -> Iterator[tuple[IO[bytes], Literal["r:*", "r|"]]]:
    """Open a blob and say in which mode tarfile can read it; it knows zstd only since Python 3.14."""
    with blob.open("rb") as raw:
        if blob.suffix != ".zst":
            yield raw, "r:*"
            return
        with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
            yield cast(IO[bytes], stream), "r|"


def test_readers_list_the_same_names(blob: Path, real_tree: Path) -> None:
    if blob.suffix == ".zst":
        program("zstd")
    gnu = run(program("tar"), "--quoting-style=literal", "-tf", blob)
    names = "".join(
        f"{name}/\n" if node.kind == "dir" else f"{name}\n" for name, node in expect_tree(real_tree).items()
    )
    assert sorted(gnu.splitlines()) == sorted(names.encode().splitlines())


def test_preserved_hard_links_and_modes_come_back(real_tree: Path, tmp_path: Path, out: Path) -> None:
    layer = tmp_path / "layer.tar"
    pack(real_tree, "--hardlinks", "preserve", "--mode", "source", "-o", layer)
    for tool in ("tar", "bsdtar"):
        into = out / tool
        into.mkdir()
        run(program(tool), "-xpf", layer, "-C", into)
        assert (into / "odd/hard").samefile(into / "odd/block")
        modes = {name: (node.kind, node.mode, node.content) for name, node in read_tree(into).items()}
        assert modes == {name: (node.kind, node.mode, node.content) for name, node in read_tree(real_tree).items()}

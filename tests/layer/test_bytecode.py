"""Time stamps in bytecode (SPEC 4.8), with files that Python itself compiled and has to accept again."""

from __future__ import annotations

import importlib.util
import io
import os
import py_compile
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from detlayer.layer import bytecode
from detlayer.layer.entry import DEFAULT_MTIME, Mtime, Profile
from detlayer.tree import Selection
from tests.layers import Packed, pack_tree
from tests.trees import make_tree

TIMESTAMP = py_compile.PycInvalidationMode.TIMESTAMP
TAG = sys.implementation.cache_tag


def compiled(src: Path, *, mtime: int = 1700000000, mode: py_compile.PycInvalidationMode = TIMESTAMP) -> Path:
    """A package with one module and its bytecode; returns the bytecode's path."""
    module = make_tree(src, {"pkg": {"m.py": "VALUE = 42\n"}}) / "pkg" / "m.py"
    os.utime(module, (mtime, mtime))
    written = py_compile.compile(str(module), doraise=True, invalidation_mode=mode)
    assert written is not None
    return Path(written)


def fields(packed: Packed, name: str = f"pkg/__pycache__/m.{TAG}.pyc") -> tuple[int, int, int]:
    data = packed.content(name)
    flags, mtime, size = (int.from_bytes(data[at : at + 4], "little") for at in (4, 8, 12))
    return flags, mtime, size


@pytest.mark.parametrize("seconds", [DEFAULT_MTIME, 1, 1234567890, 2**32 + 5])
def test_retimed(src: Path, seconds: int) -> None:
    """SPEC 4.8: the source's normalized mtime, modulo 2**32; nothing else changes."""
    found = compiled(src)
    packed = pack_tree(src, profile=Profile(mtime=Mtime("fixed", seconds)))
    assert fields(packed) == (0, seconds % 2**32, len("VALUE = 42\n"))
    before, after = found.read_bytes(), packed.content(f"pkg/__pycache__/m.{TAG}.pyc")
    assert before[:8] + before[12:] == after[:8] + after[12:]


def test_python_takes_it_as_fresh(src: Path, tmp_path: Path) -> None:
    """SPEC 4.8: extracted with its mtimes, the bytecode is used and not written again."""
    compiled(src)
    out = tmp_path / "out"
    with tarfile.open(fileobj=io.BytesIO(pack_tree(src).blob)) as archive:
        archive.extractall(out, filter="fully_trusted")
    bytecode = next(out.rglob("*.pyc"))
    before = bytecode.read_bytes()
    done = subprocess.run(
        [sys.executable, "-v", "-c", "import pkg.m; print(pkg.m.VALUE)"],
        cwd=out,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(out)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "42\n"
    assert f"code object from '{bytecode}'" in done.stderr
    assert "# wrote" not in "\n".join(
        line for line in done.stderr.splitlines() if str(out / "pkg" / "__pycache__") in line
    )
    assert bytecode.read_bytes() == before


def test_install_time_does_not_show(tmp_path: Path) -> None:
    """SPEC 4.8: the same package installed at two times is the same layer."""
    digests = set()
    for mtime in (1600000000, 1700000001):
        src = tmp_path / str(mtime)
        compiled(src, mtime=mtime)
        # py_compile writes the path into the code object: compile under one name.
        bytecode = next(src.rglob("*.pyc"))
        py_compile.compile(str(src / "pkg" / "m.py"), cfile=str(bytecode), dfile="m.py", invalidation_mode=TIMESTAMP)
        digests.add(pack_tree(src).layer.digest)
    assert len(digests) == 1


def test_without_retime_bytecode_stays(src: Path) -> None:
    """SPEC 4.8."""
    found = compiled(src)
    packed = pack_tree(src, selection=Selection(retime_pyc=False))
    assert packed.content(f"pkg/__pycache__/m.{TAG}.pyc") == found.read_bytes()


@pytest.mark.parametrize("mode", ["CHECKED_HASH", "UNCHECKED_HASH"])
def test_hash_based_stays(src: Path, mode: str) -> None:
    """SPEC 4.8."""
    found = compiled(src, mode=py_compile.PycInvalidationMode[mode])
    assert pack_tree(src).content(f"pkg/__pycache__/m.{TAG}.pyc") == found.read_bytes()


@pytest.mark.parametrize("what", ["mtime", "size", "gone", "excluded", "directory", "symlink"])
def test_stale_bytecode_stays(src: Path, what: str) -> None:
    """SPEC 4.8: only with the source that it was compiled from, in the same tree and packed."""
    found = compiled(src)
    module = src / "pkg" / "m.py"
    exclude: list[str] = []
    match what:
        case "mtime":
            os.utime(module, (1, 1))
        case "size":
            module.write_text("VALUE = 4242\n")
            os.utime(module, (1700000000, 1700000000))
        case "gone":
            module.unlink()
        case "excluded":
            exclude = ["*.py"]
        case "directory":
            module.unlink()
            module.mkdir()
            os.utime(module, (1700000000, 1700000000))
        case "symlink":
            module.rename(src / "pkg" / "other.py")
            module.symlink_to("other.py")
    packed = pack_tree(src, exclude=exclude)
    assert packed.content(f"pkg/__pycache__/m.{TAG}.pyc") == found.read_bytes()


def test_optimised_and_beside(src: Path) -> None:
    """SPEC 4.8: PEP 488 names, and bytecode next to its source."""
    compiled(src)
    module = src / "pkg" / "m.py"
    for optimise in (1, 2):
        name = importlib.util.cache_from_source(str(module), optimization=optimise)
        py_compile.compile(str(module), cfile=name, doraise=True, invalidation_mode=TIMESTAMP, optimize=optimise)
    py_compile.compile(str(module), cfile=f"{module}c", doraise=True, invalidation_mode=TIMESTAMP)
    packed = pack_tree(src)
    for name in (f"__pycache__/m.{TAG}.opt-1.pyc", f"__pycache__/m.{TAG}.opt-2.pyc", "m.pyc"):
        assert fields(packed, f"pkg/{name}")[1] == DEFAULT_MTIME


def test_source_with_its_own_mtime(src: Path) -> None:
    """SPEC 4.8: `--mtime source` changes nothing; clamp clamps both alike."""
    compiled(src, mtime=1700000000)
    assert fields(pack_tree(src, profile=Profile(mtime=Mtime("source"))))[1] == 1700000000
    packed = pack_tree(src, profile=Profile(mtime=Mtime("clamp", 1650000000)))
    assert fields(packed)[1] == packed.members["pkg/m.py"].mtime == 1650000000


def test_fractions_are_cut(src: Path) -> None:
    """SPEC 4.8: a source at .999999999 s, which a float rounds up."""
    module = make_tree(src, {"m.py": "x = 1\n"}) / "m.py"
    os.utime(module, ns=(1700000000_999999999, 1700000000_999999999))
    bytecode = b"\xa7\r\r\n" + bytes(4) + (1700000000).to_bytes(4, "little") + (6).to_bytes(4, "little") + b"code"
    make_tree(src, {"__pycache__": {"m.cpython-311.pyc": bytecode}})
    packed = pack_tree(src, profile=Profile(mtime=Mtime("fixed", 5)))
    assert fields(packed, "__pycache__/m.cpython-311.pyc")[1] == 5


@pytest.mark.parametrize(
    "data", [b"", b"\xa7", b"\xa7\r\r\n" + bytes(11), b"no bytecode at all, but longer than sixteen"]
)
def test_what_is_no_bytecode_stays(src: Path, data: bytes) -> None:
    """SPEC 4.8."""
    make_tree(src, {"m.py": "", "m.pyc": data})
    assert pack_tree(src).content("m.pyc") == data


def test_large_bytecode(src: Path) -> None:
    """SPEC 4.8: the first of several pieces, and only that."""
    module = make_tree(src, {"m.py": "x = 1\n"}) / "m.py"
    os.utime(module, (1700000000, 1700000000))
    head = b"\xa7\r\r\n" + bytes(4) + (1700000000).to_bytes(4, "little") + (6).to_bytes(4, "little")
    body = head * (5 << 16)
    make_tree(src, {"m.pyc": body})
    wanted = body[:8] + DEFAULT_MTIME.to_bytes(4, "little") + body[12:]
    assert pack_tree(src).content("m.pyc") == wanted


@pytest.mark.parametrize(
    ("name", "in_pycache", "source"),
    [
        (b"m.cpython-311.pyc", True, b"m.py"),
        (b"m.cpython-311.opt-1.pyc", True, b"m.py"),
        (b"m.n.cpython-311.pyc", True, b"m.n.py"),
        (b"m.pyc", True, None),
        (b"m.pyc", False, b"m.py"),
        (b"m.cpython-311.pyc", False, b"m.cpython-311.py"),
        (b".pyc", False, None),
        (b"m.py", False, None),
    ],
)
def test_source_name(name: bytes, in_pycache: bool, source: bytes | None) -> None:
    """SPEC 4.8: PEP 3147."""
    assert bytecode.source_name(name, in_pycache) == source


def test_reading_the_source_that_a_header_records() -> None:
    """SPEC 4.8: flags word 0 only, and the two characters that end a magic number."""
    head = b"\xa7\r\r\n" + bytes(4) + (7).to_bytes(4, "little") + (9).to_bytes(4, "little")
    assert bytecode.recorded(head) == (7, 9)
    assert bytecode.recorded(head[:15]) is None
    assert bytecode.recorded(b"\xa7\r\n\n" + head[4:]) is None
    assert bytecode.recorded(head[:4] + b"\1\0\0\0" + head[8:]) is None
    assert bytecode.recorded(head[:4] + b"\0\0\0\1" + head[8:]) is None


def test_values_are_modulo_two_to_32() -> None:
    """SPEC 4.8: as importlib compares them."""
    assert bytecode.matches(bytecode.Recorded(5, 6), 2**32 + 5, 2**32 + 6)
    assert not bytecode.matches(bytecode.Recorded(5, 6), 4, 6)
    assert bytecode.mtime_field(2**32 + 1) == b"\1\0\0\0"
    assert bytecode.mtime_field(-1) == b"\xff\xff\xff\xff"

"""Depfile rules, read by make and ninja themselves."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from detlayer.errors import TreeError
from detlayer.output.depfile import rule
from tests.layers import pack_tree
from tests.privileges import program
from tests.trees import make_tree

PLAIN = [
    "a",
    "dir/b",
    "with space",
    "two  spaces",
    "dollar$x",
    "hash#x",
    "colon:x",
    "é",
    "日本",
    "-n",
    "a,b",
    "(x)",
]
# ninja 1.11 has no escape for these: it reads other, missing names, and always rebuilds.
NOT_FOR_NINJA = set("'*?;|&\"`<>")
ODD = [
    "'q'",
    "semi;colon",
    "eq=x",
    "star*",
    "quest?",
    "set[ab]",
    "~tilde",
    "pipe|x",
    "and&x",
    "per%cent",
    "back\\slash",
    "back\\ space",
    "back\\#x",
    "back\\:x",
    'quote"x',
    "tick`x",
    "bang!",
    "lt<gt>",
    "a{b}",
    "+plus",
    "at@x",
    "$(x)",
    "$$",
    "#",
    "a:=b",
    " lead",
    "trail ",
]


def write(path: Path, seconds: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    os.utime(path, (seconds, seconds))


def run_make(cwd: Path) -> int:
    """0: up to date; 1: something is newer; 2: an error."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd)}
    command = [program("make"), "-q", "-f", "Makefile", "out.tar"]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, check=False).returncode


def refused(name: str) -> bytes | None:
    """The rule for a name, or None if it is rejected, which is as good as a working rule."""
    try:
        return rule(b"out.tar", [b"before", name.encode(), b"after"])
    except TreeError:
        return None


@pytest.mark.parametrize("name", PLAIN)
def test_plain_names_are_not_refused(name: str) -> None:
    assert refused(name) is not None


@pytest.mark.parametrize("name", [*PLAIN, *ODD])
def test_make_reads_it(tmp_path: Path, name: str) -> None:
    """The output is older than the named file only: make has to parse all three names."""
    text = refused(name)
    if text is None:
        return
    (tmp_path / "out.d").write_bytes(text)
    (tmp_path / "Makefile").write_text("out.tar:\n\t@false\ninclude out.d\n")
    for other in ("before", name, "after"):
        write(tmp_path / other, 1000)
    write(tmp_path / "out.tar", 2000)
    assert run_make(tmp_path) == 0
    for other in ("before", name, "after"):
        write(tmp_path / other, 3000)
        assert run_make(tmp_path) == 1, other
        write(tmp_path / other, 1000)
    assert run_make(tmp_path) == 0


@pytest.mark.parametrize("name", [*PLAIN, *ODD])
def test_make_goes_on_after_a_file_is_gone(tmp_path: Path, name: str) -> None:
    text = refused(name)
    if text is None or "%" in name or "=" in name:  # would be a pattern rule, or an assignment
        return
    (tmp_path / "out.d").write_bytes(text)
    (tmp_path / "Makefile").write_text("out.tar:\n\t@false\ninclude out.d\n")
    for other in ("before", "after"):
        write(tmp_path / other, 1000)
    write(tmp_path / "out.tar", 2000)
    assert run_make(tmp_path) == 1


@pytest.mark.parametrize("name", [*PLAIN, *ODD])
def test_ninja_reads_it(tmp_path: Path, name: str) -> None:
    ninja = program("ninja")
    text = refused(name)
    if text is None:
        return
    (tmp_path / "rule.d").write_bytes(text)
    (tmp_path / "build.ninja").write_text(
        "rule pack\n  command = cp rule.d out.d && touch out.tar\n  depfile = out.d\nbuild out.tar: pack\n"
    )
    for other in ("before", name, "after"):
        write(tmp_path / other, 1000)

    def run() -> str:
        return subprocess.run([ninja], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    run()
    if not NOT_FOR_NINJA & set(name):
        assert "no work to do" in run()
    later = int((tmp_path / "out.tar").stat().st_mtime) + 10
    for other in ("before", name, "after"):
        write(tmp_path / other, later)
        assert (
            "no work to do"
            not in subprocess.run([ninja, "-n"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        )
        write(tmp_path / other, 1000)


@pytest.mark.parametrize("name", [b"a\nb", b"tab\t", b"\x01", b"back\\"])
def test_unwritable_names(name: bytes) -> None:
    with pytest.raises(TreeError) as caught:
        rule(b"out", [name])
    assert caught.value.code == "depfile-name"
    assert "\n" not in caught.value.message


def test_text() -> None:
    assert rule(b"o t", [b"a", b"b$"]) == b"o\\ t: \\\n  a \\\n  b$$\na:\nb$$:\n"
    assert rule(b"o", []) == b"o:\n"


def test_packed_tree(src: Path, tmp_path: Path) -> None:
    """Everything whose change may change the layer: files, directories, and pattern files."""
    make_tree(src, {"a": "1", "sub": {"b": "2"}, "left-out": "", ".detlayerignore": "left-out\n"})
    ignore = tmp_path / "ignore"
    ignore.write_text("*.o\n")
    depfile = tmp_path / "out.d"
    descriptor = tmp_path / "out.json"
    pack_tree(src, depfile=depfile, descriptor=descriptor, ignore_files=[ignore])
    named = depfile.read_text().split("\n\n")[0].replace("\\\n", "").split("\n")[0].split()
    assert named[0] == f"{descriptor}:"
    assert {name.removesuffix("/") for name in named[1:]} == {
        str(path) for path in (src, src / "a", src / "sub", src / "sub" / "b", ignore, src / ".detlayerignore")
    }


def test_single_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    pack_tree(f"{tmp_path}/f", depfile=tmp_path / "d", descriptor=tmp_path / "j")
    assert (tmp_path / "d").read_text().splitlines()[0].startswith(f"{tmp_path}/j:")
    assert f"  {tmp_path}/f\n" in (tmp_path / "d").read_text()

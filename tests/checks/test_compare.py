"""compare and contents: differences under their traps, and differences inside known formats (SPEC 3, 4, 9.5)."""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
import py_compile
import shutil
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detlayer.checks.compare import EntryValues, Summary, compare, first_difference, first_out_of_order
from detlayer.checks.content_diff import MAX_CAUSES, explain
from detlayer.checks.findings import TRAPS, Change
from detlayer.layer.order import order_key


def summary(path: str, digest: bytes = b"", **other: Any) -> Summary:
    """A file's summary; `other` are values or fields."""
    values = EntryValues("file", 0o644, 0, 0, 0)._replace(
        **{key: other.pop(key) for key in ("kind", "mode", "uid", "gid", "mtime") if key in other}
    )
    return Summary(path.encode(), values, len(digest), digest, **other)


# -- entries


@pytest.mark.parametrize(
    ("old", "new", "trap", "field"),
    [
        ({"mtime": 1}, {"mtime": 2}, "mtime", "mtime"),
        ({"uid": 1}, {"gid": 2}, "owner", "owner"),
        ({"mode": 0o644}, {"mode": 0o664}, "umask", "mode"),
        ({"mode": 0o644}, {"mode": 0o755}, "mode", "mode"),
        ({"mode": 0o755}, {"mode": 0o4755}, "mode", "mode"),
        ({"xattrs": ((b"user.a", b"1"),)}, {}, "xattrs", "xattr user.a"),
        ({}, {"kind": "hardlink"}, "hardlink-form", "kind"),
        ({}, {"kind": "FIFO"}, "special-file", "kind"),
        ({}, {"kind": "dir"}, "content", "kind"),
        ({"kind": "symlink", "target": b"a"}, {"kind": "symlink", "target": b"b"}, "content", "target"),
        ({"kind": "hardlink", "target": b"a"}, {"kind": "hardlink", "target": b"b"}, "hardlink-form", "target"),
        ({"digest": b"1"}, {"digest": b"2"}, "content", "content"),
        ({"extras": ((b"device", b"1:3"),)}, {"extras": ((b"device", b"1:5"),)}, "special-file", "device"),
        ({"extras": ((b"SCHILY.acl.access", b"u"),)}, {}, "xattrs", "record SCHILY.acl.access"),
    ],
)
def test_a_change_falls_under_its_trap(old: dict[str, Any], new: dict[str, Any], trap: str, field: str) -> None:
    """SPEC 4.1 to 4.7: each value separately."""
    (found,) = compare([summary("x", **old)], [summary("x", **new)])
    assert found.kind == "changed"
    assert [(change.trap, change.field) for change in found.changes] == [(trap, field)]


def test_what_is_on_one_side_only() -> None:
    """SPEC 3.4: the merge follows the order of components, whiteouts first."""
    a = [summary("d/.wh.x"), summary("d/a"), summary("d-")]
    b = [summary("d/a"), summary("d/b"), summary("d-")]
    assert [(one.kind, one.path) for one in compare(a, b)] == [("removed", "d/.wh.x"), ("added", "d/b")]


def test_leftovers_have_traps_of_their_own() -> None:
    (found,) = compare([], [summary("x.dist-info/direct_url.json")])
    assert found.traps == ("installer-files",)
    (found,) = compare([summary(".DS_Store")], [])
    assert found.traps == ("editor-and-os-files",)


names = st.binary(min_size=1, max_size=4).filter(lambda name: b"/" not in name and b"\0" not in name)
paths = st.lists(st.one_of(names, names.map(lambda name: b".wh." + name)), min_size=1, max_size=4).map(b"/".join)


@given(paths, paths)
def test_the_key_orders_as_the_spec_does(a: bytes, b: bytes) -> None:
    """SPEC 3.4."""
    split = [[(not name.startswith(b".wh."), name) for name in path.split(b"/")] for path in (a, b)]
    assert (order_key(a) < order_key(b)) == (split[0] < split[1])
    assert (order_key(a) == order_key(b)) == (a == b)


@given(st.sets(paths, max_size=8), st.sets(paths, max_size=8))
def test_compare_finds_exactly_what_differs(a: set[bytes], b: set[bytes]) -> None:
    sides = [[summary(path.decode("latin-1")) for path in one] for one in (a, b)]
    for side in sides:
        side.sort(key=lambda one: order_key(one.path))
    found = {(one.kind, one.raw_path) for one in compare(*sides)}
    expected = [{path.decode("latin-1").encode() for path in one} for one in (a, b)]
    assert found == {("removed", path) for path in expected[0] - expected[1]} | {
        ("added", path) for path in expected[1] - expected[0]
    }


def test_order_is_compared_by_position() -> None:
    a = [summary(name, position=at) for at, name in enumerate("abc")]
    b = [summary(name, position=at) for name, at in (("a", 0), ("b", 2), ("c", 1))]
    assert first_out_of_order(zip(a, a, strict=True)) is None
    assert first_out_of_order(zip(a, b, strict=True)) == (b"c", b"b")


@given(st.binary(max_size=40), st.binary(max_size=40), st.integers(0, 200_000))
def test_first_difference(a: bytes, b: bytes, fill: int) -> None:
    one, other = bytes(fill) + a, bytes(fill) + b
    expected = next((at for at, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), None)
    if expected is None and len(a) != len(b):
        expected = min(len(a), len(b))
    assert first_difference(one, other) == (None if expected is None else fill + expected)


# -- contents


def traps(path: str, a: bytes, b: bytes) -> list[tuple[str, str]]:
    found = explain(path.encode(), a, b)
    assert found
    assert all(change.trap in TRAPS for change in found)
    return [(change.trap, change.field) for change in found]


def only(path: str, a: bytes, b: bytes) -> Change:
    (found,) = explain(path.encode(), a, b)
    return found


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[..., bytes]:
    """Compile source text with a given time and path."""

    def compile_(text: str, *, mtime: int = 1_700_000_000, name: str | None = None, mode: str = "TIMESTAMP") -> bytes:
        source = tmp_path / "m.py"
        source.write_text(text)
        os.utime(source, (mtime, mtime))
        made = py_compile.compile(
            str(source),
            cfile=str(tmp_path / "m.pyc"),
            dfile=name or "/srv/m.py",
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode[mode],
        )
        assert made is not None
        return Path(made).read_bytes()

    return compile_


TEXT = "class A:\n    def f(self):\n        return lambda: self\n"


def test_pyc_time(compiled: Callable[..., bytes]) -> None:
    """SPEC 4.8."""
    change = only("m.pyc", compiled(TEXT), compiled(TEXT, mtime=1_700_000_001))
    assert change == ("pyc-timestamp", "mtime of the source", "1700000000", "1700000001")


@pytest.mark.parametrize("new", ["/home/bob/m.py", "/tmp/" + "x" * 300 + "/m.py", "m.py"])
def test_pyc_path(compiled: Callable[..., bytes], new: str) -> None:
    """A name over 255 bytes is marshalled with another type and a longer length."""
    change = only("m.pyc", compiled(TEXT), compiled(TEXT, name=new))
    assert change == ("pyc-path", "file name in code", "/srv/m.py", new)


def test_pyc_code_and_mode(compiled: Callable[..., bytes]) -> None:
    assert traps("m.pyc", compiled(TEXT), compiled(TEXT + "x = 1\n"))[0] == ("content", "size of the source")
    found = explain(b"m.pyc", compiled("x = 1\n"), compiled("x = 2\n", name="/b/m.py"))
    assert [change.trap for change in found] == ["pyc-path", "content"]
    hashed = compiled(TEXT, mode="CHECKED_HASH")
    assert only("m.pyc", compiled(TEXT), hashed).field == "invalidation mode"
    assert traps("m.pyc", hashed, compiled("y = 1\n", mode="CHECKED_HASH"))[0][1] == "hash of the source"
    other = b"\0\0" + hashed[2:]
    assert only("m.pyc", hashed, other).field == "Python's magic number"
    assert hashed[:4] == importlib.util.MAGIC_NUMBER


def zipped(members: dict[str, bytes], when: tuple[int, ...] = (2024, 1, 1, 0, 0, 0), **options: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, when)  # type: ignore[arg-type]
            info.external_attr = options.get("mode", 0o644) << 16
            info.compress_type = options.get("method", zipfile.ZIP_DEFLATED)
            archive.writestr(info, data)
    return stream.getvalue()


def test_zip() -> None:
    members = {"a": b"a" * 100, "b": b"b" * 100}
    base = zipped(members)
    assert traps("x.whl", base, zipped(members, (2024, 1, 2, 0, 0, 0))) == [
        ("zip-times", "time of a"),
        ("zip-times", "times of 1 more members"),
    ]
    assert traps("x.jar", base, zipped(dict(reversed(members.items())))) == [("readdir-order", "member 1 of the zip")]
    assert only("x.zip", base, zipped({**members, "c": b""})) == ("content", "members of the zip", "", "c")
    assert traps("x.zip", base, zipped(members, mode=0o755))[0] == ("archive-in-content", "mode of a")
    assert traps("x.zip", base, zipped(members, method=zipfile.ZIP_STORED))[0][1] == "compression of a"
    assert only("x.zip", base, zipped({**members, "b": b"line\n"})).field == "b in zip: line 1"


def test_nested() -> None:
    """Differences in archives in archives are found, with their location."""
    inner = [gzip.compress(text, mtime=0) for text in (b"at /home/a/src/x.c\n", b"at /home/b/src/x.c\n")]
    change = only("x.zip", zipped({"n.gz": inner[0]}), zipped({"n.gz": inner[1]}))
    assert change.trap == "build-path-in-content"
    assert change.field == "n.gz in zip: content in gzip: line 1"
    assert (change.old, change.new) == ("/home/a/src/x.c", "/home/b/src/x.c")


def test_nesting_ends() -> None:
    one, other = b"a\n", b"b\n"
    for _ in range(30):
        one, other = zipped({"x.zip": one}), zipped({"x.zip": other})
    assert explain(b"x.zip", one, other)


def gzipped(text: bytes, *, mtime: int = 0, name: bytes = b"", system: int = 255, level: int = 9) -> bytes:
    """A gzip member with the given header (RFC 1952), independent of this Python."""
    stream = gzip.compress(text, level, mtime=0)[10:]
    head = b"\x1f\x8b\x08" + (b"\x08" if name else b"\0") + struct.pack("<I", mtime) + bytes((2, system))
    return head + (name + b"\0" if name else b"") + stream


def test_gzip() -> None:
    text = b"hello world\n" * 50
    base = gzipped(text)
    assert only("x.gz", base, gzipped(text, mtime=7)) == ("gzip-in-content", "gzip header, mtime", "0", "7")
    assert only("x.gz", base, gzipped(text, name=b"n")) == ("gzip-in-content", "gzip header, name", "", "n")
    assert only("x.gz", base, gzipped(text, system=3)) == ("gzip-in-content", "gzip header, OS byte", "ff", "03")
    assert traps("x.gz", base, gzipped(text, level=0)) == [("gzip-in-content", "compressed stream of equal content")]
    assert traps("x.gz", base, gzipped(text + b"\n")) == [("content", "content in gzip: newlines at the end")]


@pytest.mark.parametrize(
    ("path", "old", "new", "trap", "field"),
    [
        ("t", "a\nb\n", "a\r\nb\r\n", "content", "line endings"),
        ("t", "a\nb", "a\nb\n", "content", "newlines at the end"),
        ("t", "a\nb\n", "b\na\n", "readdir-order", "order of lines"),
        ("x.dist-info/RECORD", "a\nb\n", "b\na\n", "installer-files", "order of lines"),
        ("t", "a\nb\n", "a\nc\n", "content", "line 2"),
        ("t", "a\n", "a\nc\n", "content", "line 2"),
        ("t", "at 2024-01-01T00:00:00Z.", "at 2025-03-01T10:00:00Z.", "time-in-content", "line 1"),
        ("t", "t=1700000000\n", "t=1700000100\n", "time-in-content", "line 1"),
        ("t", "Jan  5\nJan 5 2024 10:00:00", "Jan  5\nFeb 7 2024 11:00:00", "time-in-content", "line 2"),
        ("t", "p=/home/a/x\n", "p=/home/b/x\n", "build-path-in-content", "line 1"),
        ("x.dist-info/direct_url.json", '{"a": 1}', '{"a": 2}', "installer-files", "line 1"),
    ],
)
def test_text(path: str, old: str, new: str, trap: str, field: str) -> None:
    assert traps(path, old.encode(), new.encode()) == [(trap, field)]


def test_text_with_two_causes() -> None:
    old, new = b"/home/a/x\nversion 1\n", b"/home/b/x\nversion 2\n"
    assert traps("t", old, new) == [("build-path-in-content", "line 1"), ("content", "line 2")]
    old, new = b"2024-01-01 in /home/a\n", b"2024-01-02 in /home/b\n"
    assert traps("t", old, new) == [("time-in-content", "line 1"), ("build-path-in-content", "line 1")]


def test_long_text() -> None:
    old = b"line\n" * 1_000_000
    assert only("t", old + b"x\n", old + b"y\n") == ("content", "line 1000001", "'x'", "'y'")


def test_bytes() -> None:
    a, b = b"\0\xff\1" + b"/home/a/lib\0", b"\0\xff\1" + b"/home/b/lib\0"
    assert only("x", a, b).trap == "build-path-in-content"
    a, b = (b"\xff\0\0\0" + struct.pack("<I", time) for time in (1_700_000_000, 1_700_000_999))
    assert only("x", a, b).trap == "time-in-content"
    assert only("x", b"\xff\0", b"\xff\1") == ("content", "bytes at offset 1", "00", "01")
    assert only("x", b"\xff\0", b"\xff") == ("content", "bytes at offset 1", "00", "end")


@pytest.fixture
def built(tmp_path: Path) -> Callable[..., bytes]:
    """Build a real shared object, or skip with the name of the missing program."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc")

    def build(text: str, *options: str, where: str = "src") -> bytes:
        here = tmp_path / where
        here.mkdir(exist_ok=True)
        (here / "x.c").write_text(text)
        command = [gcc, "-shared", "-fPIC", "-o", "x.so", *options, str(here / "x.c")]
        subprocess.run(command, cwd=tmp_path, check=True)
        return (tmp_path / "x.so").read_bytes()

    return build


def test_elf_build_id(built: Callable[..., bytes]) -> None:
    ids = ["-Wl,--build-id=0x" + digit * 40 for digit in "12"]
    a, b = (built("int f(void) { return 1; }", option) for option in ids)
    assert only("x.so", a, b) == ("content", "build-id alone", "1" * 40, "2" * 40)


def test_elf_sections(built: Callable[..., bytes]) -> None:
    build_id = "-Wl,--build-id=sha1"
    text = 'const char *f(void) { return "built %s"; }'
    a, b = built(text % "/home/a/src", build_id), built(text % "/home/b/src", build_id)
    found = traps("x.so", a, b)
    assert found[0][0] == "build-path-in-content"
    assert found[0][1].startswith("section .rodata: ")
    assert found[-1] == ("content", "build-id")
    debug = [built("int f(void) { return 1; }", "-g", build_id, where=where) for where in ("one", "two")]
    assert traps("x.so", *debug)[0][0] == "build-path-in-content"
    stripped = built("int f(void) { return 1; }", "-s", build_id, where="one")
    assert ("content", "sections") in traps("x.so", debug[0], stripped)


def test_elf_that_lies(built: Callable[..., bytes]) -> None:
    data = built("int f(void) { return 1; }")
    table = struct.unpack_from("<Q", data, 0x28)[0]
    for at, wide in ((0x28, 8), (0x3A, 2), (0x3C, 2), (0x3E, 2), (table + 64 + 24, 8), (table + 64 + 32, 8)):
        broken = data[:at] + b"\xff" * wide + data[at + wide :]
        assert explain(b"x.so", data, broken)
        assert explain(b"x.so", broken, data)


def tarred(mtime: int, data: bytes = b"x\n", names: tuple[str, ...] = ("a", "b")) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def test_tar_inside() -> None:
    assert traps("x.tar", tarred(1), tarred(2)) == [
        ("archive-in-content", "mtime of a in tar"),
        ("archive-in-content", "mtime of 1 more members"),
    ]
    assert traps("x.tar", tarred(1), tarred(1, b"y\n"))[0] == ("content", "a in tar: line 1")
    assert traps("x.tar", tarred(1), tarred(1, names=("b", "a")))[0] == ("readdir-order", "member 1 of the tar")
    assert traps("x.tar", tarred(1), tarred(1)[:-512] + b"\1" * 512)


def ar(mtime: int, data: bytes = b"x\n", count: int = 1) -> bytes:
    head = b"%-16s%-12d%-6d%-6d%-8o%-10d`\n" % (b"m.o/", mtime, 0, 0, 0o100644, len(data))
    return b"!<arch>\n" + (head + data + b"\n" * (len(data) % 2)) * count


def test_ar_inside() -> None:
    assert traps("x.a", ar(1), ar(2)) == [("archive-in-content", "mtime of m.o in ar")]
    assert traps("x.a", ar(1), ar(1, b"y\n")) == [("content", "m.o in ar: line 1")]
    assert len(explain(b"x.a", ar(1, b"x\n", 50), ar(1, b"y\n", 50))) == MAX_CAUSES + 1
    assert traps("x.a", ar(1), ar(1)[:-4] + b"??" + b"x\n")


@given(st.data())
def test_nothing_breaks_it(data: st.DataObject) -> None:
    """SPEC 9: malformed contents may be explained badly, but a difference always has a cause."""
    samples = [
        ("x.zip", zipped({"a": b"1", "b": b"2"})),
        ("x.gz", gzip.compress(b"hello", mtime=0)),
        ("x.tar", tarred(1)),
        ("x.a", ar(1, count=2)),
        ("m.pyc", importlib.util.MAGIC_NUMBER + bytes(12) + b"\xda\x05/a.py"),
        ("t", b"a\nb\n"),
    ]
    path, good = data.draw(st.sampled_from(samples))
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 6))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(bad[: data.draw(st.integers(0, len(bad)))])
    for other in (bytes(bad), cut):
        found = explain(path.encode(), good, other)
        assert bool(found) == (good != other)

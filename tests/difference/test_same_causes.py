"""`diff` and `verify` report the same cause for the same two layers."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

import detlayer
from tests.trees import make_tree


def zipped(*members: tuple[str, str], year: int = 2020) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in members:
            archive.writestr(zipfile.ZipInfo(name, (year, 1, 1, 0, 0, 0)), text)
    return buffer.getvalue()


def tarred(name: str, data: str | bytes, mtime: int) -> bytes:
    content = data.encode() if isinstance(data, str) else data
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size, info.mtime = len(content), mtime
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def pyc(mtime: int, code: bytes = b"code") -> bytes:
    return b"\xa7\r\r\n" + struct.pack("<III", 0, mtime, 4) + code


def elf(data: bytes) -> bytes:
    """Make a 64-bit ELF file with one section of data and the section names."""
    names = b"\0.data\0.names\0"
    sections = [
        struct.pack("<IIQQQQIIQQ", *([0] * 10)),
        struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, 64, len(data), 0, 0, 1, 0),
        struct.pack("<IIQQQQIIQQ", 7, 3, 0, 0, 64 + len(data), len(names), 0, 0, 1, 0),
    ]
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    at = 64 + len(data) + len(names)
    head = ident + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, at, 0, 64, 0, 0, 64, 3, 2)
    return head + data + names + b"".join(sections)


CONTENTS = {
    "a date": ("log.txt", b"built 2026-01-02\n", b"built 2026-01-03\n", "time-in-content"),
    "a date with a weekday": (
        "log.txt",
        b"Fri Jan  2 03:04:05 UTC 2026\n",
        b"Sat Jan  3 17:04:05 +1400 2026\n",
        "time-in-content",
    ),
    "a path": ("config", b"prefix=/build/one/out\n", b"prefix=/build/two/out\n", "build-path-in-content"),
    "lines": ("list", b"b\na\nc\n", b"a\nb\nc\n", "readdir-order"),
    "words": ("list.json", b'["b", "a"]', b'["a", "b"]', "readdir-order"),
    "text": ("text", b"one\n", b"two\n", "content"),
    "bytes": ("data", b"\0\1\2", b"\0\1\3", "content"),
    "a gzip header": ("x.gz", gzip.compress(b"x", mtime=1), gzip.compress(b"x", mtime=2), "gzip-in-content"),
    "a gzip stream": (
        "x.gz",
        gzip.compress(b"x" * 99, 1, mtime=1),
        gzip.compress(b"x" * 99, 9, mtime=1),
        "gzip-in-content",
    ),
    "a date in gzip": (
        "log.gz",
        gzip.compress(b"at 12:00:01\n", mtime=1),
        gzip.compress(b"at 12:00:02\n", mtime=1),
        "time-in-content",
    ),
    "zip times": ("x.whl", zipped(("a", "1")), zipped(("a", "1"), year=2021), "zip-times"),
    "zip order": ("x.jar", zipped(("a", "1"), ("b", "1")), zipped(("b", "1"), ("a", "1")), "readdir-order"),
    "text in a zip": ("x.zip", zipped(("a", "one")), zipped(("a", "two")), "content"),
    "tar times": ("x.tar", tarred("a", "1", 1), tarred("a", "1", 2), "archive-in-content"),
    "text in a tar in a tar": (
        "x.tar",
        tarred("inner.tar", tarred("a", "one", 1), 1),
        tarred("inner.tar", tarred("a", "two", 1), 1),
        "content",
    ),
    "a date in a tar in a tar": (
        "x.tar",
        tarred("inner.tar", tarred("a", "at 12:00:01\n", 1), 1),
        tarred("inner.tar", tarred("a", "at 12:00:02\n", 1), 1),
        "time-in-content",
    ),
    "an ELF's path": ("lib.so", elf(b"/build/one/x.c\0"), elf(b"/build/two/x.c\0"), "build-path-in-content"),
    "an ELF's bytes": ("lib.so", elf(b"\1\2"), elf(b"\1\3"), "content"),
    "bytecode": ("m.pyc", pyc(1_700_000_000), pyc(1_700_000_001), "pyc-timestamp"),
    "bytecode's code": ("m.pyc", pyc(0, b"code"), pyc(0, b"cod3"), "content"),
    "an installer's file": ("p.dist-info/INSTALLER", b"pip\n", b"uv\n", "installer-files"),
}


@pytest.mark.parametrize("what", CONTENTS)
def test_contents(what: str, tmp_path: Path) -> None:
    path, old, new, trap = CONTENTS[what]
    layers = []
    for name, content in (("old", old), ("new", new)):
        tree = tmp_path / name / path
        tree.parent.mkdir(parents=True)
        tree.write_bytes(content)
        layers.append(str(tmp_path / f"{name}.tar"))
        detlayer.pack([str(tmp_path / name)], output=layers[-1])
    assert causes(*layers) == ({trap}, {trap})


@pytest.mark.parametrize(
    ("options", "trap"),
    [
        ({"mode": 0o775}, "umask"),
        ({"mode": 0o4755}, "mode"),
        ({"uid": 5}, "owner"),
        ({"mtime": 5}, "mtime"),
        ({"type": tarfile.SYMTYPE, "linkname": "x"}, "content"),
        ({"name": "other"}, "content"),
        ({"pax_headers": {"SCHILY.xattr.user.x": "1"}}, "xattrs"),
    ],
)
def test_entries(options: dict[str, object], trap: str, tmp_path: Path) -> None:
    layers = []
    for name, changed in (("old", {}), ("new", options)):
        layers.append(str(tmp_path / f"{name}.tar"))
        with tarfile.open(layers[-1], "w", format=tarfile.PAX_FORMAT) as archive:
            info = tarfile.TarInfo("file")
            info.mode = 0o755
            for attribute, value in changed.items():
                setattr(info, attribute, value)
            archive.addfile(info, io.BytesIO(b""))
    by_diff, by_verify = causes(*layers)
    assert trap in by_diff
    assert trap in by_verify


def test_order_of_entries(tmp_path: Path) -> None:
    layers = []
    for order in ("ab", "ba"):
        layers.append(str(tmp_path / f"{order}.tar"))
        with tarfile.open(layers[-1], "w") as archive:
            for name in order:
                archive.addfile(tarfile.TarInfo(name))
    by_diff, by_verify = causes(*layers)
    assert "entry-order" in by_diff
    assert "entry-order" in by_verify


def causes(old: str, new: str) -> tuple[set[str], set[str]]:
    """Return what `diff` and `verify --against` find between two layers, without findings in one alone."""
    report = detlayer.diff(old, new)
    by_diff = {trap for one in report.differences for trap in one.traps} | {change.trap for change in report.form}
    alone = {finding.trap for finding in detlayer.verify([new]).findings}
    found = {finding.trap for finding in detlayer.verify([new], against=old).findings}
    return by_diff, found - (alone - by_diff) - {"unexpected-digest"}


def test_a_tree_is_compared_as_its_layer_is(tmp_path: Path) -> None:
    make_tree(tmp_path, {"old": {"log": "at 12:00:01\n"}, "new": {"log": "at 12:00:02\n"}})
    report = detlayer.diff(tmp_path / "old", tmp_path / "new")
    assert {trap for one in report.differences for trap in one.traps} <= {"time-in-content", "mtime"}
    assert "time-in-content" in {trap for one in report.differences for trap in one.traps}

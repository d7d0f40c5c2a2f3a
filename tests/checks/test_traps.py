"""Each trap by a layer that has only that trap, and canonical layers that have none (SPEC 3 to 6)."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field as made_by
from functools import partial

import pytest
from zstandard import ZstdCompressor

from detlayer.checks.audit import LayerReport, audit
from detlayer.checks.findings import TRAPS, Finding
from detlayer.layer.codec import Codec
from detlayer.layer.entry import Profile
from detlayer.layer.order import order_key
from tests.layer.handmade_tars import (
    LONG,
    SPARSE_FORMS,
    Bytes,
    extension,
    header,
    member,
    padded,
    record,
    sealed,
    sparse,
    tar,
)
from tests.layers import layer_of
from tests.vectors import load_vector, vector_names

# Found by comparing two runs, never in a single layer.
OF_TWO_RUNS = {
    "build-path-in-content",
    "content",
    "readdir-order",
    "environment",
    "time-in-content",
    "unexpected-digest",
}
OF_LAYOUTS = {"blob-digest", "config-diff-id", "malformed-layer"}
LONG_PATH = LONG.decode()


@dataclass(frozen=True)
class Case:
    """A layer with one trap: path, field, found and wanted are those of its only finding."""

    trap: str
    make: Callable[[], bytes]
    path: str
    field: str
    found: str
    wanted: str
    profile: Profile = made_by(default_factory=Profile)
    name: str = ""


def audited(blob: bytes, profile: Profile | None = None) -> LayerReport:
    return audit(Bytes(blob), profile=profile)


def pyc(flags: int, mtime: int, size_bytes: int, code: bytes = b"code") -> bytes:
    return b"\xcb\r\r\n" + b"".join(n.to_bytes(4, "little") for n in (flags, mtime, size_bytes)) + code


def zipped(year: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(zipfile.ZipInfo("x/y", (year, 1, 2, 3, 4, 6)), b"data")
    return stream.getvalue()


def tarred(mtime: int) -> bytes:
    return tar(member(b"inner", mtime=mtime))


def ar(mtime: bytes) -> bytes:
    return b"!<arch>\n" + b"x.o/".ljust(16) + mtime.ljust(12) + b"0     0     644     0         `\n"


def files(**contents: bytes) -> bytes:
    """A layer of files at the top."""
    named = sorted(contents.items())
    return tar(*(member(name.replace("_DOT_", ".").encode(), data) for name, data in named))


def one(path: bytes, data: bytes) -> bytes:
    """A layer of one file, with its parents."""
    parts = path.split(b"/")[:-1]
    above = [header(b"/".join(parts[: n + 1]), kind="dir") for n in range(len(parts))]
    return tar(*above, member(path, data))


def gzipped(data: bytes, mtime: int = 0, flags: int = 0, extra: bytes = b"", system: int = 255) -> bytes:
    """A member by the default codec, with another header."""
    body = bytes(Codec("gzip-libdeflate-6").compressor()(memoryview(data)))[10:]
    return b"\x1f\x8b\x08" + bytes((flags,)) + mtime.to_bytes(4, "little") + bytes((0, system)) + extra + body


def of_zlib(data: bytes) -> bytes:
    compressor = zlib.compressobj(6, zlib.DEFLATED, 31)
    made = compressor.compress(data) + compressor.flush()
    return made[:9] + b"\xff" + made[10:]


def noise(size: int) -> bytes:
    """Compressible data on which compressors differ."""
    return b"".join(b"%d:%x\n" % (i * i, i * 7919) for i in range(size // 10))[:size]


ONE = tar(member(b"a", noise(4000)))
CASES = [
    Case("entry-order", lambda: tar(member(b"b"), member(b"a")), "a", "order", "after b", "before it"),
    Case(
        "entry-order",
        lambda: tar(member(b"a-b"), header(b"a", kind="dir"), member(b"a/b")),
        "a",
        "order",
        "after a-b",
        "before it",
        name="whole paths",
    ),
    Case("mtime", lambda: tar(member(mtime=1763900000)), "a", "mtime", "1763900000", "946684800"),
    Case("owner", lambda: tar(member(uid=1000, gid=100)), "a", "owner", "1000:100", "0:0"),
    Case("owner", lambda: tar(member(uid=3000000)), "a", "owner", "3000000:0", "0:0", name="in a record"),
    Case("owner-names", lambda: tar(member(at=265, raw=b"root")), "a", "uname", "root", "zeros"),
    Case(
        "owner-names",
        lambda: tar(extension(b"x", record(b"gname", b"caf\xc3\xa9")), member()),
        "a",
        "gname",
        "café",
        "no record",
        name="record",
    ),
    Case("mode", lambda: tar(member(mode=0o4755)), "a", "mode", "4755", "0755"),
    Case("mode", lambda: tar(header(b"tmp", kind="dir")), "tmp", "mode", "0755", "1777", name="tmp"),
    Case("umask", lambda: tar(member(mode=0o664)), "a", "mode", "0664", "0644"),
    Case("umask", lambda: tar(header(b"d", kind="dir", mode=0o700)), "d", "mode", "0700", "0755", name="directory"),
    Case("type-bits-in-mode", lambda: tar(member(at=100, raw=b"0100644")), "a", "mode", "100644", "0644"),
    Case(
        "pax-pid-name",
        lambda: tar(extension(b"x", record(b"path", LONG), b"./PaxHeaders.4711/n"), header(LONG)[1024:]),
        LONG_PATH,
        "PAX header name",
        "./PaxHeaders.4711/n",
        "././@PaxHeader",
    ),
    Case(
        "pax-times",
        lambda: tar(extension(b"x", record(b"path", LONG) + record(b"atime", b"1763900000.5")), header(LONG)[1024:]),
        LONG_PATH,
        "atime",
        "1763900000.5",
        "no record",
    ),
    Case(
        "pax-times",
        lambda: tar(extension(b"x", record(b"path", LONG), at=136, raw=b"14507426000"), header(LONG)[1024:]),
        LONG_PATH,
        "PAX header mtime",
        "1696476160",
        "0",
        name="of the PAX header",
    ),
    Case(
        "needless-pax",
        lambda: tar(extension(b"x", record(b"comment", b"hello")), member()),
        "a",
        "comment",
        "hello",
        "no record",
    ),
    Case(
        "needless-pax",
        lambda: tar(extension(b"g", record(b"comment", b"of git")), member()),
        "a",
        "global header",
        "comment",
        "none",
        name="global",
    ),
    Case(
        "needless-pax",
        lambda: tar(extension(b"g", record(b"comment", b"of git"))),
        "",
        "global header",
        "comment",
        "none",
        name="global, and no entry",
    ),
    Case(
        "needless-pax",
        lambda: tar(
            extension(b"x", record(b"SCHILY.xattr.user.b", b"2") + record(b"SCHILY.xattr.user.a", b"1")), member()
        ),
        "a",
        "order of records",
        "SCHILY.xattr.user.b, SCHILY.xattr.user.a",
        "SCHILY.xattr.user.a, SCHILY.xattr.user.b",
        Profile(xattrs=("user.*",)),
        name="order",
    ),
    Case(
        "gnu-format",
        lambda: tar(extension(b"L", LONG + b"\0", b"././@LongLink"), header(LONG)[1024:]),
        LONG_PATH,
        "type",
        "GNU long name (L)",
        "PAX record",
    ),
    Case(
        "gnu-format",
        lambda: tar(member(at=257, raw=b"ustar  \0")),
        "a",
        "magic",
        "ustar  ",
        "ustar\\x0000",
        name="magic",
    ),
    Case(
        "gnu-format",
        lambda: tar(member(at=108, raw=b"\x80" + bytes(7))),
        "a",
        "uid",
        "8000000000000000",
        "0000000",
        name="base-256",
    ),
    Case(
        "prefix-field",
        lambda: tar(header(b"d" * 60, kind="dir"), _divided(b"d" * 60, b"f" * 60)),
        "d" * 60 + "/" + "f" * 60,
        "prefix",
        "d" * 60,
        "",
    ),
    Case("number-format", lambda: tar(member(at=108, raw=b"     0 \0")), "a", "uid", "     0 ", "0000000"),
    Case("type-flag", lambda: tar(member(at=156, raw=b"\0")), "a", "type", "zeros", "0"),
    Case(
        "size-field",
        lambda: tar(header(b"l", kind="symlink", target=b"to", at=124, raw=b"00000000002")),
        "l",
        "size",
        "00000000002",
        "00000000000",
    ),
    Case("path-form", lambda: tar(_named(b"./a")), "a", "path", "./a", "a"),
    Case("path-form", lambda: tar(_named(b"/a")), "a", "path", "/a", "a", name="absolute"),
    Case("path-form", lambda: tar(_named(b"d\0", kind="dir")), "d", "path", "d", "d/", name="no slash"),
    Case("path-form", lambda: tar(_named(b"./", kind="dir")), "", "path", "./", "no entry for the root", name="root"),
    Case("devices-field", lambda: tar(member(at=329, raw=bytes(8))), "a", "devmajor", "zeros", "0000000"),
    Case("header-bytes", lambda: tar(member(at=505, raw=b"tar")), "a", "offset 505", "74617200000000", "0" * 14),
    Case(
        "header-bytes", lambda: tar(member(at=157, raw=b"x")), "a", "link target", "x", "zeros", name="target of a file"
    ),
    Case("special-file", lambda: tar(member(at=156, raw=b"6")), "a", "type", "FIFO", "nothing"),
    Case(
        "special-file", lambda: tar(member(at=156, raw=b"3")), "a", "type", "character device", "nothing", name="device"
    ),
    Case("duplicate-path", lambda: tar(member(b"a", b"1"), member(b"a", b"2")), "a", "path", "again", "once"),
    Case(
        "parents",
        lambda: tar(header(b"x", kind="dir"), member(b"x/y/a"), member(b"x/y/b")),
        "x/y/a",
        "parent",
        "no entry",
        "x/y/",
    ),
    Case("parents", lambda: tar(member(b"x"), member(b"x/y")), "x/y", "parent", "a file or link", "x/", name="a file"),
    Case("xattrs", lambda: tar(member(xattrs=((b"user.a", b"12"),))), "a", "user.a", "2 bytes", "nothing"),
    Case(
        "xattrs",
        lambda: tar(extension(b"x", record(b"LIBARCHIVE.xattr.user.a", b"MTI")), member()),
        "a",
        "LIBARCHIVE.xattr.user.a",
        "3 bytes",
        "no record",
        name="libarchive",
    ),
    Case(
        "hardlink-form",
        lambda: tar(header(b"a", kind="hardlink", target=b"b"), member(b"b")),
        "a",
        "target",
        "b is not before it",
        "a file",
    ),
    Case(
        "hardlink-form",
        lambda: tar(header(b"d", kind="dir"), header(b"e", kind="hardlink", target=b"d")),
        "e",
        "target",
        "d is not a file",
        "a file",
        name="to a directory",
    ),
    Case(
        "hardlink-form",
        lambda: tar(member(b"a", mode=0o755), header(b"b", kind="hardlink", target=b"a", mode=0o644)),
        "b",
        "mode",
        "0644",
        "its target's 0755",
        name="values",
    ),
    Case("trailer", lambda: ONE + bytes(4096), "", "zeros at the end", "5120", "1024"),
    Case("trailer", lambda: ONE[:-512], "", "zeros at the end", "512", "1024", name="short"),
    Case("trailer", lambda: b"", "", "zeros at the end", "0", "1024", name="no bytes at all"),
    *(
        Case(
            "sparse",
            partial(lambda form: tar(sparse(form, b"a", 999, [(5, 4)], b"data")), form),
            "a",
            "type",
            "sparse",
            "all bytes",
            name=form,
        )
        for form in SPARSE_FORMS
    ),
    Case(
        "hardlink-form",
        lambda: tar(header(b".wh.a", kind="hardlink", target=b"nowhere")),
        ".wh.a",
        "kind",
        "a hard link",
        "an empty file: it is a whiteout",
        name="whiteout",
    ),
    Case(
        "hardlink-form",
        lambda: tar(member(b".wh.a"), header(b"b", kind="hardlink", target=b".wh.a")),
        "b",
        "target",
        ".wh.a is a whiteout",
        "a file",
        name="to a whiteout",
    ),
    Case(
        "size-field",
        lambda: tar(member(b".wh.a", b"data")),
        ".wh.a",
        "size",
        "4",
        "0: it is a whiteout",
        name="whiteout",
    ),
    Case(
        "type-flag",
        lambda: tar(header(b".wh.a", kind="symlink", target=b"x")),
        ".wh.a",
        "kind",
        "a symlink",
        "an empty file: it is a whiteout",
        name="whiteout",
    ),
    Case("gzip-header", lambda: gzipped(ONE, mtime=1763900000), "", "mtime of member 1", "1763900000", "0"),
    Case(
        "gzip-header",
        lambda: gzipped(ONE, flags=8, extra=b"layer.tar\0"),
        "",
        "name of member 1",
        "layer.tar",
        "none",
        name="name",
    ),
    Case("gzip-header", lambda: gzipped(ONE, system=3), "", "OS byte of member 1", "3", "255", name="OS byte"),
    Case(
        "gzip-header",
        lambda: gzipped(ONE, flags=4, extra=b"\2\0ab"),
        "",
        "flags of member 1",
        "0x04",
        "0x00",
        name="extra",
    ),
    Case(
        "compressor-class",
        lambda: of_zlib(ONE),
        "",
        "first chunk",
        "gzip of another compressor, version or level",
        "the output of a codec of SPEC 6.2",
    ),
    Case(
        "compressor-class",
        lambda: ZstdCompressor(level=3, write_checksum=True).compress(ONE),
        "",
        "first chunk",
        "zstd of another compressor, version or level",
        "the output of a codec of SPEC 6.2",
        name="zstd with checksums",
    ),
    Case(
        "chunking",
        lambda: gzipped(ONE[:512]) + gzipped(ONE[512:]),
        "",
        "bytes of chunk 1",
        "512",
        str(len(ONE)),
    ),
    Case(
        "chunking",
        lambda: ZstdCompressor().compress(ONE) + ZstdCompressor().compress(b""),
        "",
        "bytes of chunk 2",
        "0",
        "none",
        name="an empty frame",
    ),
    Case(
        "pyc-timestamp",
        lambda: files(m_DOT_pyc=pyc(0, 1763900000, 3)),
        "m.pyc",
        "mtime",
        "1763900000",
        "its source beside it",
    ),
    Case(
        "pyc-timestamp",
        lambda: files(m_DOT_py=b"abc", m_DOT_pyc=pyc(0, 1763900000, 3)),
        "m.pyc",
        "mtime and size of the source",
        "1763900000, 3 bytes",
        "946684800, 3 bytes",
        name="stale",
    ),
    Case(
        "pyc-path",
        lambda: files(m_DOT_pyc=pyc(1, 0, 0, b"xz\x12/home/me/src/m.py\xda")),
        "m.pyc",
        "file name in code",
        "/home/me/src/m.py",
        "a path in the container",
    ),
    Case(
        "zip-times",
        lambda: files(x_DOT_jar=zipped(2025)),
        "x.jar",
        "time of x/y",
        "2025-01-02 03:04:06",
        "a fixed time",
    ),
    Case(
        "zip-times",
        lambda: files(x_DOT_whl=b"PK launcher" + zipped(2025)),
        "x.whl",
        "time of x/y",
        "2025-01-02 03:04:06",
        "a fixed time",
        name="behind a launcher",
    ),
    Case("gzip-in-content", lambda: files(x_DOT_gz=gzip.compress(b"x", mtime=99)), "x.gz", "mtime", "99", "0"),
    Case(
        "gzip-in-content",
        lambda: files(x_DOT_gz=gzipped(b"x", flags=8, extra=b"secret\0")),
        "x.gz",
        "name",
        "secret",
        "none",
        name="name",
    ),
    Case(
        "archive-in-content",
        lambda: files(x_DOT_tar=tarred(1763900000)),
        "x.tar",
        "mtime in tar",
        "1763900000",
        "a fixed time",
    ),
    Case(
        "archive-in-content",
        lambda: files(x_DOT_a=ar(b"1763900000")),
        "x.a",
        "mtime in ar",
        "1763900000",
        "a fixed time",
        name="ar",
    ),
    Case(
        "archive-in-content",
        lambda: files(x_DOT_cpio=b"070701" + b"0" * 40 + b"%08X" % 1763900000 + b"0" * 56),
        "x.cpio",
        "mtime in cpio",
        "1763900000",
        "a fixed time",
        name="cpio",
    ),
    Case(
        "installer-files",
        lambda: one(b"x-1.dist-info/direct_url.json", b"{}"),
        "x-1.dist-info/direct_url.json",
        "name",
        "direct_url.json",
        "not in a layer",
    ),
    Case(
        "installer-files",
        lambda: one(b"x-1.dist-info/RECORD", b"b,,\na,,\n"),
        "x-1.dist-info/RECORD",
        "order of lines",
        "as installed",
        "sorted",
        name="RECORD",
    ),
    Case("editor-and-os-files", lambda: one(b"d/.DS_Store", b""), "d/.DS_Store", "name", ".DS_Store", "not in a layer"),
    Case(
        "editor-and-os-files",
        lambda: tar(header(b".git", kind="dir")),
        ".git",
        "name",
        ".git",
        "not in a layer",
        name="git",
    ),
    Case(
        "case-collision",
        lambda: tar(member(b"README"), member(b"readme")),
        "readme",
        "name",
        "beside README",
        "distinct names",
    ),
    Case(
        "case-collision",
        lambda: tar(header(b"D", kind="dir"), member(b"D/x"), header(b"d", kind="dir")),
        "d",
        "name",
        "beside D",
        "distinct names",
        name="directories",
    ),
    Case(
        "case-collision",
        lambda: tar(member(b"STRASSE"), member("stra\u00dfe".encode())),
        "stra\u00dfe",
        "name",
        "beside STRASSE",
        "distinct names",
        name="sharp s",
    ),
    Case(
        "unicode-collision",
        lambda: tar(member("cafe\u0301".encode()), member("caf\u00e9".encode())),
        "caf\u00e9",
        "name",
        "beside cafe\u0301",
        "distinct names",
    ),
]


def _named(name: bytes, **how: object) -> bytes:
    """A member whose PAX header name does not match its path."""
    return header(b"a" if not how else b"dd", at=0, raw=name.ljust(4, b"\0"), **how)  # type: ignore[arg-type]


def _divided(prefix: bytes, name: bytes) -> bytes:
    block = header(b"x", raw=name)
    return sealed(block[:345] + prefix + block[345 + len(prefix) :])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.trap} {case.name}".strip())
def test_each_trap_is_found_alone(case: Case) -> None:
    """SPEC 3 to 6: only that finding."""
    report = audited(case.make(), case.profile)
    assert report.findings.kept == [Finding(case.trap, case.path, case.field, case.found, case.wanted)]
    assert report.findings.counts == {case.trap: 1}
    assert report.findings.kept[0].to_document()["hint"] == TRAPS[case.trap]


def test_every_trap_has_a_case() -> None:
    """Except those of two runs and of layouts, which tests of `diff` and `verify` cover."""
    assert {case.trap for case in CASES} == set(TRAPS) - OF_TWO_RUNS - OF_LAYOUTS


# What vectors contain on purpose: the profile that expects it, and names that collide.
_PROFILES = {
    "owners": Profile(owner=None),
    "xattrs": Profile(xattrs=("user.*", "security.capability")),
}
_COLLISIONS = {"non-ascii": {"unicode-collision": 1}, "order": {"case-collision": 1}}
_CODECS = ("none", "gzip-stored", "gzip-libdeflate-1", "gzip-libdeflate-6", "gzip-libdeflate-9", "zstd-3", "zstd-19")


@pytest.mark.parametrize("codec", _CODECS)
@pytest.mark.parametrize("name", vector_names())
def test_canonical_layers_have_no_trap(name: str, codec: str) -> None:
    """SPEC 3 to 8: every vector, under every codec; the audit agrees with the writer."""
    entries = sorted(load_vector(name).entries, key=lambda item: order_key(item.path))
    made, blob = layer_of(entries, codec)
    report = audited(blob, _PROFILES.get(name))
    assert report.findings.counts == _COLLISIONS.get(name, {}), report.findings.kept
    facts = report.facts
    assert (facts.digest, facts.diff_id, facts.blob_bytes) == (made.digest, made.diff_id, made.size_bytes)
    assert (report.key, report.entries, report.files) == (made.key, made.entries, made.files)
    assert tuple(report.chunks) == made.chunks
    # A compressor may write the same first chunk at several levels; then one of them is reported.
    assert report.codec is not None
    tar_bytes = layer_of(entries)[1][: made.chunks[0]]
    assert blob.startswith(bytes(report.codec.compressor()(memoryview(tar_bytes))))


def test_fresh_pyc_is_no_trap() -> None:
    """SPEC 4.8: next to its source, and in __pycache__, also if the source comes later."""
    fresh = pyc(0, 946684800, 3)
    parts = [header(b"__pycache__", kind="dir"), member(b"__pycache__/m.cpython-312.opt-1.pyc", fresh)]
    assert audited(tar(*parts, member(b"m.py", b"abc"), member(b"m.pyc", fresh))).findings.counts == {}


@pytest.mark.parametrize("size", [0, 2, 10, 30, 46, 60, 90, 100])
def test_zips_that_are_cut_have_no_times(size: int) -> None:
    """An archive whose end is missing or inconsistent is skipped."""
    cut = zipped(2025)[:size]
    for data in (cut, b"PK" + cut + b"PK\5\6" + b"\xff" * 18, b"PKPK\5\6"):
        assert audited(files(x_DOT_zip=data)).findings.counts == {}


def test_places_agree_in_and_out_of_order() -> None:
    """SPEC 3.3, 4.4: findings about several paths do not depend on their order."""
    paths = [
        b"B",
        b"b",
        b"d",
        b"D",
        b"d/E",
        b"d/e",
        "d/\u00e9".encode(),
        "d/e\u0301".encode(),
        b"m/n/o",
        b".WH.x",
        b".wh.X",
    ]
    dirs = {b"d", b"D"}
    blocks = {path: header(path, kind="dir" if path in dirs else "file") for path in paths}
    ordered = sorted(paths, key=order_key)
    counts = []
    for order in (ordered, [b"d", b"D", *(path for path in reversed(ordered) if path not in dirs)]):
        found = dict(audited(tar(*(blocks[path] for path in order))).findings.counts)
        found.pop("entry-order", None)
        counts.append(found)
    assert counts[0] == counts[1] == {"case-collision": 4, "unicode-collision": 1, "parents": 1}


def test_findings_are_counted_beyond_those_kept() -> None:
    report = audit(Bytes(tar(*(member(b"%03d" % n, uid=7) for n in range(50)))), keep=3)
    assert report.findings.counts == {"owner": 50}
    assert [finding.path for finding in report.findings.kept] == ["000", "001", "002"]


def test_contents_are_left_alone_when_asked() -> None:
    blob = files(m_DOT_pyc=pyc(0, 1763900000, 3))
    assert audit(Bytes(blob), contents=False).findings.counts == {}
    assert audit(Bytes(blob)).findings.counts == {"pyc-timestamp": 1}


def test_python_reads_the_crafted_layers() -> None:
    """Other readers accept the tars of the builders."""
    with tarfile.open(fileobj=io.BytesIO(tar(padded(member(b"a", b"12")), _named(b"./b")))) as archive:
        assert archive.getnames() == ["a", "./b"]

"""Hard links and whiteouts in layers of other tools: bound to the earlier file, never to each other (SPEC 4.7, 4.10).

`normalize` and `diff` agree on what an engine makes of a tar, and `verify` reports what is stored in another form.
"""

from __future__ import annotations

import io
import os
import py_compile
import subprocess
import tarfile
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import detlayer
from detlayer import Selection
from detlayer.difference import DiffReport, diff
from detlayer.errors import LayerError
from tests.layer.handmade_tars import checked, extension, header, member, record, tar
from tests.privileges import program

Hardlinks = Literal["separate", "preserve"]
HARDLINKS: tuple[Hardlinks, ...] = ("separate", "preserve")


def link(path: bytes, target: bytes) -> bytes:
    return header(path, kind="hardlink", target=target)


def normalize(layer: bytes, hardlinks: Hardlinks = "separate") -> bytes:
    out = io.BytesIO()
    selection = Selection(hardlinks=hardlinks)
    detlayer.normalize(
        io.BytesIO(layer), output=out, options=detlayer.PackOptions(compression="none", selection=selection)
    )
    return out.getvalue()


def read(layer: bytes) -> dict[str, tuple[str, bytes]]:
    """Each path's type and content according to Python, for a link those of its target."""
    kinds = {tarfile.LNKTYPE: "link", tarfile.REGTYPE: "file", tarfile.SYMTYPE: "symlink", tarfile.DIRTYPE: "dir"}
    found = {}
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        for one in archive:
            file = archive.extractfile(one) if one.isreg() or one.islnk() else None
            found[one.name] = (kinds[one.type], file.read() if file is not None else b"")
    return found


def compared(tmp_path: Path, a: bytes, b: bytes, **options: Any) -> DiffReport:
    for name, layer in (("a", a), ("b", b)):
        (tmp_path / f"{name}.tar").write_bytes(layer)
    return diff(tmp_path / "a.tar", tmp_path / "b.tar", **options)


# -- whiteouts


MARKER = ("file", b"")
D = header(b"d", kind="dir")
CONSTELLATIONS: dict[str, tuple[tuple[bytes, ...], dict[str, tuple[str, bytes]]]] = {
    "behind its target": (
        (member(b"a", b"data"), link(b".wh.b", b"a")),
        {".wh.b": MARKER, "a": ("file", b"data")},
    ),
    "the first of a group": (
        (member(b".wh.b", b"data"), link(b"a", b".wh.b"), link(b"c", b".wh.b")),
        {".wh.b": MARKER, "a": ("file", b"data"), "c": ("link", b"data")},
    ),
    "between two files": (
        (member(b"a", b"data"), link(b".wh.b", b"a"), link(b"c", b".wh.b"), link(b"d", b"a")),
        {".wh.b": MARKER, "a": ("file", b"data"), "c": ("link", b"data"), "d": ("link", b"data")},
    ),
    "to a lower layer's file": ((D, link(b"d/.wh.b", b"lower/file")), {"d": ("dir", b""), "d/.wh.b": MARKER}),
    "to a directory": ((D, link(b".wh.b", b"d")), {".wh.b": MARKER, "d": ("dir", b"")}),
    "to itself": ((link(b".wh.b", b".wh.b"),), {".wh.b": MARKER}),
    "to another whiteout": (
        (member(b".wh..wh.aufs"), D, link(b".wh.b", b".wh..wh.aufs"), link(b"d/.wh..wh..opq", b".wh..wh.aufs")),
        {".wh..wh.aufs": MARKER, ".wh.b": MARKER, "d": ("dir", b""), "d/.wh..wh..opq": MARKER},
    ),
    "opaque": (
        (D, member(b"d/a", b"data"), link(b"d/.wh..wh..opq", b"d/a")),
        {"d": ("dir", b""), "d/.wh..wh..opq": MARKER, "d/a": ("file", b"data")},
    ),
    "of what is written again": (
        (member(b"a", b"data"), link(b".wh.b", b"a"), member(b"a", b"again"), link(b"c", b".wh.b")),
        {".wh.b": MARKER, "a": ("file", b"again"), "c": ("file", b"data")},
    ),
    "with content": ((member(b".wh.b", b"data"),), {".wh.b": MARKER}),
    "a symlink": ((header(b".wh.b", kind="symlink", target=b"a"),), {".wh.b": MARKER}),
    "a device": ((header(b".wh.b", at=156, raw=b"3"),), {".wh.b": MARKER}),
    "a directory": ((header(b".wh.b", kind="dir"), member(b".wh.b/a", b"data")), {}),
}
CONSTELLATIONS["a directory"][1].update({".wh.b": ("dir", b""), ".wh.b/a": ("file", b"data")})


@pytest.mark.parametrize("hardlinks", HARDLINKS)
@pytest.mark.parametrize("name", CONSTELLATIONS)
def test_whiteouts_never_join_a_link_group(name: str, hardlinks: Hardlinks, tmp_path: Path) -> None:
    """SPEC 4.10: an empty file, however it is stored; and every file keeps its content."""
    parts, wanted = CONSTELLATIONS[name]
    if hardlinks == "separate":
        wanted = {path: ("file" if kind == "link" else kind, data) for path, (kind, data) in wanted.items()}
    once = normalize(tar(*parts), hardlinks)
    assert read(once) == wanted
    assert normalize(once, hardlinks) == once
    (tmp_path / "once.tar").write_bytes(once)
    assert detlayer.verify([tmp_path / "once.tar"]).ok
    assert compared(tmp_path, tar(*parts), once, normalized=True).same


def test_a_link_to_a_whiteout_of_nothing_is_an_error() -> None:
    """The whiteout needs no file, the link does."""
    with pytest.raises(LayerError) as caught:
        normalize(tar(link(b".wh.b", b"lower"), link(b"c", b".wh.b")))
    assert checked(caught.value) == "hardlink-target"


@pytest.mark.parametrize("writer", ["tar --format=gnu", "tar --format=posix", "bsdtar"])
def test_whiteouts_that_share_an_inode(writer: str, tmp_path: Path) -> None:
    """As written by AUFS: whichever name comes first has the content, and the file must not lose it."""
    top = tmp_path / "tree"
    top.mkdir()
    (top / "b").write_bytes(b"data")
    for name in (".wh.a", ".wh.c"):
        os.link(top / "b", top / name)
    for names in ([".wh.a", "b", ".wh.c"], ["b", ".wh.a", ".wh.c"]):
        words = writer.split(" ")
        subprocess.run([program(words[0]), *words[1:], "-cf", tmp_path / "l.tar", "-C", top, *names], check=True)
        out = normalize((tmp_path / "l.tar").read_bytes(), "preserve")
        assert read(out) == {".wh.a": MARKER, ".wh.c": MARKER, "b": ("file", b"data")}


# -- links and what comes later in the stream


AGAIN = tar(member(b"z", b"first"), link(b"a", b"z"), member(b"z", b"later"))
PLAIN = tar(member(b"z", b"later"), link(b"a", b"z"))


@pytest.mark.parametrize("normalized", [False, True])
def test_a_target_that_is_written_again(tmp_path: Path, normalized: bool) -> None:
    """The link has the first content, as an engine extracts it; only the last entries of the paths are equal."""
    report = compared(tmp_path, AGAIN, PLAIN, normalized=normalized)
    assert (report.verdict, [one.path for one in report.differences]) == ("entries", ["a"])
    split = tar(member(b"a", b"first"), member(b"z", b"later"))
    assert compared(tmp_path, AGAIN, split, normalized=True).same
    assert read(normalize(AGAIN)) == {"a": ("file", b"first"), "z": ("file", b"later")}


def test_a_contrast_names_the_link(tmp_path: Path) -> None:
    for name, layer in (("a", AGAIN), ("b", tar(member(b"z", b"other"), link(b"a", b"z"), member(b"z", b"later")))):
        (tmp_path / f"{name}.tar").write_bytes(layer)
    findings = detlayer.verify([tmp_path / "a.tar"], against=str(tmp_path / "b.tar")).findings
    assert [one.path for one in findings if one.trap == "content"] == ["a"]


def test_an_archive_that_tar_appended_to(tmp_path: Path) -> None:
    """`normalize` and `diff` see what GNU tar extracts from `tar -r`."""
    top = tmp_path / "tree"
    top.mkdir()
    (top / "z").write_bytes(b"first")
    os.link(top / "z", top / "a")
    made = tmp_path / "made.tar"
    subprocess.run([program("tar"), "-cf", made, "-C", top, "z", "a"], check=True)
    (top / "z").unlink()
    (top / "z").write_bytes(b"later")
    subprocess.run(["tar", "-rf", made, "-C", top, "z"], check=True)
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["tar", "-xf", made, "-C", out], check=True)
    assert [(out / name).read_bytes() for name in "az"] == [b"first", b"later"]
    packed = detlayer.pack([out])
    assert detlayer.normalize(made).diff_id == packed.diff_id
    assert diff(out, made, normalized=True).same


def test_a_link_to_a_symlink_that_leads_elsewhere_later(tmp_path: Path) -> None:
    def leads(*targets: bytes) -> bytes:
        entries = [header(b"s", kind="symlink", target=target) for target in targets]
        return tar(entries[0], link(b"t", b"s"), *entries[1:])

    report = compared(tmp_path, leads(b"x", b"y"), leads(b"y"))
    assert [one.path for one in report.differences] == ["t"]
    assert compared(tmp_path, leads(b"y", b"y"), leads(b"y")).verdict == "form"


@pytest.mark.parametrize("implied", [False, True])
def test_what_is_below_a_directory_that_becomes_a_file(tmp_path: Path, implied: bool) -> None:
    """It is deleted, whether or not the directory had an entry; also if the directory comes back."""
    start = [] if implied else [header(b"d", kind="dir"), header(b"d/e", kind="dir")]
    lost = tar(*start, member(b"d/e/x", b"x"), member(b"d", b"file"), header(b"d", kind="dir"), member(b"d/y"))
    kept = tar(header(b"d", kind="dir"), header(b"d/e", kind="dir"), member(b"d/e/x", b"x"), member(b"d/y"))
    assert list(read(normalize(lost))) == ["d", "d/y"]
    report = compared(tmp_path, lost, kept, normalized=True)
    assert [(one.kind, one.path) for one in report.differences] == [("added", "d/e"), ("added", "d/e/x")]


@pytest.mark.parametrize("first", ["a.py", "a.txt"])
def test_bytecode_whose_source_is_a_link(first: str, src: Path, tmp_path: Path) -> None:
    """The source next to it has the content of its target: `verify` accepts what `pack` writes."""
    (src / "m").mkdir()
    (src / first).write_text("x = 1\n")
    os.link(src / first, src / "m" / "b.py")
    py_compile.compile(str(src / "m" / "b.py"), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
    detlayer.pack(
        [src], output=tmp_path / "l.tar", options=detlayer.PackOptions(selection=Selection(hardlinks="preserve"))
    )
    assert read((tmp_path / "l.tar").read_bytes())["m/b.py"] == ("link", b"x = 1\n")
    assert "pyc-timestamp" not in {one.trap for one in detlayer.verify([tmp_path / "l.tar"]).findings}


PATHS = st.sampled_from([b"a", b"b", b"d", b"d/a", b"d/d/a", b".wh.a", b"d/.wh..wh..opq"])
PARTS = st.one_of(
    st.builds(lambda path, data: member(path, data), PATHS, st.sampled_from([b"", b"1", b"22"])),
    st.builds(lambda path, target: link(path, target), PATHS, PATHS),
    st.builds(lambda path: header(path, kind="dir"), PATHS),
    st.builds(lambda path, target: header(path, kind="symlink", target=target), PATHS, PATHS),
)


@st.composite
def pairs_of_layers(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Two layers of nearly the same entries in nearly the same order."""
    start = [member(b"a", b"1"), member(b"b", b"2"), D, member(b"d/a", b"3")]
    parts = [draw(PARTS), link(b"l", draw(st.sampled_from([b"a", b"b", b"d/a"]))), draw(PARTS)]
    return tar(*start, *parts), tar(*start, *draw(st.permutations(parts)))


@settings(max_examples=300)
@given(pairs_of_layers())
def test_diff_and_normalize_agree(tmp_path_factory: pytest.TempPathFactory, layers: tuple[bytes, bytes]) -> None:
    """Normalized, two layers are equal exactly if `normalize` gives the same layer."""
    here = tmp_path_factory.getbasetemp()
    a, b = layers
    try:
        normal = [normalize(one) for one in (a, b)]
        kept = [normalize(one, "preserve") for one in (a, b)]
    except LayerError as error:
        assert error.code in ("hardlink-target", "file-as-parent")
        return
    differences = compared(here, a, b, normalized=True).differences
    # Directories that only one of two layers has an entry for: `normalize` adds them, `diff` reports them.
    assert (normal[0] == normal[1]) == all(one.traps == ("parents",) for one in differences)
    assert [normalize(one) for one in kept] == normal
    for one, made in zip((a, b), kept, strict=True):
        assert {path: data for path, (_, data) in read(made).items()} == {
            path: data for path, (_, data) in read(normalize(one)).items()
        }


# -- what else an entry has


def device(major: int, minor: int, flag: bytes = b"3") -> bytes:
    return header(b"dev", at=156, raw=flag + bytes(100) + b"ustar\x0000" + bytes(64) + b"%07o\0%07o\0" % (major, minor))


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("flag", [b"3", b"4"])
def test_device_numbers(tmp_path: Path, flag: bytes, normalized: bool) -> None:
    """A device is compared by its numbers, wherever they are stored."""
    for other in (device(1, 5, flag), device(2, 3, flag)):
        report = compared(tmp_path, tar(device(1, 3, flag)), tar(other), normalized=normalized)
        assert (report.verdict, [one.traps for one in report.differences]) == ("entries", [("special-file",)])
    records = record(b"SCHILY.devmajor", b"1") + record(b"SCHILY.devminor", b"3")
    stored = tar(extension(b"x", records), device(0, 0, flag))
    assert compared(tmp_path, tar(device(1, 3, flag)), stored, normalized=True).same
    bound = [tar(device(1, n, flag), link(b"l", b"dev"), device(1, 9, flag)) for n in (3, 5)]
    assert [one.path for one in compared(tmp_path, *bound, normalized=normalized).differences] == ["l"]


CONTENT_RECORDS = [
    b"SCHILY.acl.access",
    b"SCHILY.acl.default",
    b"SCHILY.acl.ace",
    b"RHT.security.selinux",
    b"SCHILY.fflags",
    b"LIBARCHIVE.xattr.user.a",
    b"MSWINDOWS.rawsd",
    b"nobody.knows.this",
]


@pytest.mark.parametrize("key", CONTENT_RECORDS, ids=bytes.decode)
@pytest.mark.parametrize("kind", ["file", "dir", "hardlink", "device"])
def test_records_that_are_content(tmp_path: Path, key: bytes, kind: str) -> None:
    """Access control, labels, flags and unknown records: of equal or different length, or missing."""
    last = {"file": member(b"a", b"1"), "dir": header(b"a", kind="dir"), "hardlink": link(b"a", b"0")}
    made = last.get(kind) or device(1, 3).replace(b"dev\0", b"a\0\0\0")
    if kind == "device":
        made = header(b"a", at=156, raw=b"3")

    def layer(*values: bytes, shared: bool = False) -> bytes:
        records = b"".join(record(key, value) for value in values)
        flag = b"g" if shared else b"x"
        return tar(member(b"0", b"1"), *([extension(flag, records)] if values else []), made)

    for a, b in (
        (layer(b"AAAA"), layer(b"AAAB")),
        (layer(b"AAAA"), layer()),
        (layer(), layer(b"A")),
        (layer(b"AAAA", shared=True), layer()),
    ):
        report = compared(tmp_path, a, b)
        assert (report.verdict, [(one.path, one.traps) for one in report.differences]) == (
            "entries",
            [("a", ("xattrs",))],
        )
        assert [change.field for change in report.differences[0].changes] == [f"record {key.decode()}"]
        assert compared(tmp_path, a, a).same
        assert compared(tmp_path, a, b, normalized=True).same  # `pack` writes none of these (SPEC 4.6)


@pytest.mark.parametrize("key", ["comment", "atime", "ctime", "uname", "SCHILY.ino", "SCHILY.nlink", "hdrcharset"])
def test_records_that_are_form(tmp_path: Path, key: str) -> None:
    layers = [tar(extension(b"x", record(key.encode(), value)), member(b"a")) for value in (b"1234", b"1235")]
    report = compared(tmp_path, *layers)
    assert (report.verdict, report.differences) == ("form", ())
    assert report.form


def test_an_attribute_that_is_written_twice_is_one(tmp_path: Path) -> None:
    """libarchive writes each attribute twice, in two forms."""
    once = record(b"SCHILY.xattr.user.a b", b"1\0=")
    twice = record(b"LIBARCHIVE.xattr.user.a%20b", b"MQA9") + once
    layers = [tar(extension(b"x", records), member(b"a")) for records in (once, twice)]
    assert compared(tmp_path, *layers).verdict == "form"


def test_a_tree_has_no_records(tmp_path: Path) -> None:
    """Against a tree, the content of a tar is compared, not its form."""
    top = tmp_path / "tree"
    top.mkdir()
    (top / "a").write_bytes(b"1")
    os.utime(top / "a", (946684800, 946684800))
    made = member(b"a", b"1", uid=os.geteuid(), gid=os.stat(top / "a").st_gid)
    (tmp_path / "l.tar").write_bytes(tar(extension(b"x", record(b"SCHILY.acl.access", b"user::rw-")), made))
    report = diff(top, tmp_path / "l.tar")
    assert [(one.path, one.traps) for one in report.differences] == [("a", ("xattrs",))]

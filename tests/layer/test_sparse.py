"""Sparse files in tars of other tools, in every form and by every command (SPEC 4.7)."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import detlayer
from detlayer.checks.audit import audit
from detlayer.difference import diff
from detlayer.errors import LayerError
from detlayer.layer.decompress import BlobReader
from detlayer.layer.reader import MAX_HOLES_BYTES, TarReader
from tests.layer.handmade_tars import (
    SPARSE_FORMS,
    Bytes,
    Spans,
    base256,
    checked,
    extension,
    header,
    member,
    pax_sparse,
    record,
    sealed,
    sparse,
    sparse_old,
    sparse_pax,
    tar,
)
from tests.privileges import program

KEY = b"GNU.sparse."


def read(data: bytes) -> list[tuple[bytes, int, bytes]]:
    """Path, size and content of every member; the content both streamed and in small pieces."""
    found = []
    for one in TarReader([data]):
        content = b"".join(map(bytes, one.views()))
        found.append((one.entry.path, one.entry.size_bytes, content))
    for number, one in enumerate(TarReader([data])):
        assert number < len(found)
        buffer, pieces = bytearray(700), b""
        if one.entry.content is not None:
            reader = one.entry.content.open()
            while count := reader.read_into(memoryview(buffer)):
                pieces += buffer[:count]
        assert pieces == found[number][2]
    return found


def expanded(size: int, spans: Spans, data: bytes) -> bytes:
    out, at = bytearray(size), 0
    for offset, length in spans:
        out[offset : offset + length] = data[at : at + length]
        at += length
    return bytes(out)


MAPS = st.lists(st.tuples(st.integers(0, 900), st.integers(0, 700)), max_size=60)


@given(MAPS, st.integers(0, 1000), st.sampled_from(SPARSE_FORMS))
def test_every_form_is_the_file_that_it_stands_for(gaps: list[tuple[int, int]], rest: int, form: str) -> None:
    """As Python reads it, and the next member is read correctly."""
    spans, end = [], 0
    for gap, length in gaps:
        spans.append((end + gap, length))
        end += gap + length
    stored = sum(length for _, length in spans)
    data = bytes(itertools.islice(itertools.cycle(range(1, 252)), stored))
    spans.append((end + rest, 0))  # as writers end a map
    layer = tar(sparse(form, b"d/s", end + rest, spans, data), member(b"z", b"behind"))
    content = expanded(end + rest, spans, data)
    assert read(layer) == [(b"d/s", end + rest, content), (b"z", 6, b"behind")]
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        file = archive.extractfile("d/s")
        assert file is not None
        assert file.read() == content


SIZE, MAP, OFFSET = record(KEY + b"size", b"9"), record(KEY + b"map", b"5,4"), record(KEY + b"offset", b"5")
VERSION_1 = record(KEY + b"major", b"1") + record(KEY + b"minor", b"0") + record(KEY + b"realsize", b"99")


PAX_ONE = pax_sparse(b"a", SIZE + MAP, b"data")
_BLOCK = sparse_old(b"a", 99, [(5, 4)], b"data")[:512]

OLD: dict[str, bytes] = {
    "offset below zero": sparse_old(b"a", 99, [(-5, 4)], b"data", base256),
    "length below zero": sparse_old(b"a", 99, [(5, -4)], b"", base256),
    "size below zero": sparse_old(b"a", -1, [], b"", base256),
    "a gap in the map": sealed(_BLOCK[:386] + bytes(24) + _BLOCK[386:410] + _BLOCK[434:]),
    "no map": member(b"a", b"data", at=156, raw=b"S"),
    "a directory": header(b"aa", raw=b"a/" + bytes(154) + b"S"),
    "two maps": extension(b"x", record(KEY + b"map", b"")) + sparse_old(b"a", 99, [(5, 4)], b"data"),
    "blocks behind the end": sealed(_BLOCK[:482] + b"\1" + _BLOCK[483:]) + bytes(512),
}
PAX: dict[str, bytes] = {
    "no map": pax_sparse(b"a", record(KEY + b"size", b"9"), b"data"),
    "a name alone": pax_sparse(b"a", record(KEY + b"name", b"b"), b"data"),
    "no size": pax_sparse(b"a", record(KEY + b"map", b"5,4"), b"data"),
    "an offset without a length": pax_sparse(b"a", SIZE + record(KEY + b"offset", b"5"), b""),
    "a length first": pax_sparse(b"a", SIZE + record(KEY + b"numbytes", b"4") + OFFSET, b"data"),
    "another number of blocks": pax_sparse(b"a", SIZE + MAP + record(KEY + b"numblocks", b"2"), b"data"),
    "half a pair": pax_sparse(b"a", SIZE + record(KEY + b"map", b"5,4,6"), b"data"),
    "a list and pairs": pax_sparse(b"a", SIZE + MAP + OFFSET, b"data"),
    "no number": pax_sparse(b"a", SIZE + record(KEY + b"map", b"5,-4"), b""),
    "a number of 5000 digits": pax_sparse(b"a", SIZE + record(KEY + b"map", b"5," + b"9" * 5000), b""),
    "a list of too many": pax_sparse(b"a", SIZE + record(KEY + b"map", b",".join([b"0"] * 700_000)), b""),
    "an unknown version": pax_sparse(b"a", record(KEY + b"major", b"2") + record(KEY + b"minor", b"0"), b""),
    "two versions": pax_sparse(b"a", VERSION_1 + SIZE, b"data"),
    "two sizes": pax_sparse(b"a", SIZE + MAP + record(KEY + b"realsize", b"8"), b"data"),
    "a global map": extension(b"g", SIZE + MAP) + member(b"a", b"data"),
    "a global map under a map of its own": extension(b"g", record(KEY + b"numblocks", b"1")) + PAX_ONE,
    "a symlink": extension(b"x", SIZE + MAP) + header(b"a", kind="symlink", target=b"b"),
    "a FIFO": extension(b"x", SIZE + MAP) + header(b"a", at=156, raw=b"6"),
    "a stored map that does not end": pax_sparse(b"a", VERSION_1, b"3\n5\n4\n".ljust(512, b"1")),
    "a stored map of too many": pax_sparse(b"a", VERSION_1, b"9999999\n" + b"0\n0\n" * 300),
    "a stored map of no number": pax_sparse(b"a", VERSION_1, b"one\n".ljust(512)),
    "a stored map beyond the content": pax_sparse(b"a", VERSION_1, b"1\n5\n4\n"),
}
BOTH: dict[str, tuple[int, Spans, bytes]] = {
    "overlapping": (99, [(5, 4), (8, 4)], b"datadata"),
    "descending": (99, [(50, 4), (5, 4)], b"datadata"),
    "beyond the end": (8, [(5, 4)], b"data"),
    "a size of 2**63": (1 << 63, [(5, 4)], b"data"),
    "an offset of 2**63": (99, [(1 << 63, 4)], b"data"),
    "more than is stored": (99, [(5, 4), (9, 4)], b"data"),
    "less than is stored": (99, [(5, 2)], b"data"),
}


def hostile() -> Iterator[tuple[str, bytes]]:
    for name, made in OLD.items():
        yield f"gnu, {name}", made
    for name, made in PAX.items():
        yield f"pax, {name}", made
    for name, (size, spans, data) in BOTH.items():
        yield f"gnu, {name}", sparse_old(b"a", size, spans, data, base256)
        for version in ("0.0", "0.1", "1.0"):
            yield f"{version}, {name}", sparse_pax(b"a", size, spans, data, version)


@pytest.mark.parametrize(("name", "made"), list(hostile()), ids=[name for name, _ in hostile()])
def test_maps_that_lie_are_errors(name: str, made: bytes) -> None:
    """Readers would disagree on the content, so it is an error."""
    layer = tar(made, member(b"z"))
    for reading in (lambda: read(layer), lambda: audit(Bytes(layer)), lambda: detlayer.inspect(io.BytesIO(layer))):
        with pytest.raises(LayerError) as caught:
            reading()
        assert checked(caught.value) in ("sparse-map", "header-number")


def test_a_map_in_the_header_of_solaris() -> None:
    """Type `X` is another name of a PAX header."""
    made = extension(b"X", SIZE + MAP) + member(b"a", b"data")
    assert read(tar(made)) == [(b"a", 9, bytes(5) + b"data")]


def huge(form: str, hole: int, files: int = 1) -> bytes:
    return tar(*(sparse(form, b"f%d" % number, hole, [(hole, 0)], b"") for number in range(files)))


@pytest.mark.parametrize("form", SPARSE_FORMS)
def test_a_small_layer_does_not_grow_without_bound(form: str, tmp_path: Path) -> None:
    """Holes count like highly compressible data: beyond a GiB, in proportion to the blob."""
    for number, layer in enumerate((huge(form, (1 << 62) + 1), huge(form, 400 << 20, files=3))):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(layer)
        for reading in (
            lambda path=path: detlayer.normalize(path, output=tmp_path / "out.tar"),
            lambda path=path: detlayer.verify([path]),
            lambda path=path: diff(path, path),
        ):
            with pytest.raises(LayerError) as caught:
                reading()
            assert checked(caught.value) == "expansion-limit"
        assert not (tmp_path / "out.tar").exists()
        assert detlayer.inspect(path).content_bytes > 1 << 30  # reads no content, so nothing is expanded


def test_the_bound_on_holes_can_be_raised() -> None:
    layer = huge("1.0", 1100 << 20)
    assert audit(Bytes(layer), contents=False, max_expansion=200_000).files == 1


def test_nobody_counts_holes_of_an_inner_tar() -> None:
    with pytest.raises(LayerError) as caught:
        read(huge("0.1", MAX_HOLES_BYTES + 1))
    assert caught.value.code == "expansion-limit"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files with one hole, with many, with only a hole, and without."""
    top = tmp_path / "tree"
    top.mkdir()
    with open(top / "hole", "wb") as hole:
        hole.write(b"x")
        hole.seek(1 << 19)
        hole.write(b"middle")
        hole.truncate(1 << 20)
    with open(top / "many", "wb") as many:
        for number in range(50):
            many.seek(number << 14)
            many.write(b"%d" % number)
    with open(top / "nothing", "wb") as nothing:
        nothing.truncate(300_001)
    (top / "plain").write_bytes(b"plain")
    for path in (*top.iterdir(), top):
        os.utime(path, (946684800, 946684800))
        path.chmod(0o755 if path.is_dir() else 0o644)
    return top


WRITERS = {
    "gnu": "tar --sparse --format=gnu",
    **{
        f"pax {version}": f"tar --sparse --format=posix --sparse-version={version}" for version in ("0.0", "0.1", "1.0")
    },
    "bsdtar": "bsdtar --format=pax",
}


def written(writer: str, tree: Path, out: Path) -> Path:
    command = WRITERS[writer].split(" ")
    names = sorted(path.name for path in tree.iterdir())
    subprocess.run([program(command[0]), *command[1:], "-cf", out, "-C", tree, *names], check=True)
    with open(out, "rb") as stream:
        assert sum(one.sparse for one in TarReader(BlobReader(stream))) == 3
    return out


@pytest.mark.parametrize("writer", WRITERS)
def test_sparse_tars_of_real_writers(writer: str, tree: Path, tmp_path: Path) -> None:
    """`normalize` gives the result of `pack`, `diff` equals the tree, `inspect` its sizes, `verify` the trap."""
    out = written(writer, tree, tmp_path / "out.tar")
    packed = detlayer.pack([tree], output=tmp_path / "packed.tar.gz")
    assert detlayer.normalize(out, output=tmp_path / "normal.tar.gz").digest == packed.digest
    assert diff(tree, out, normalized=True).same
    assert diff(tmp_path / "packed.tar.gz", out, normalized=True).same
    sizes: dict[str, int] = {}
    detlayer.inspect(out, each=lambda entry, kind: sizes.update({entry.path.decode(): entry.size_bytes}))
    assert sizes == {path.name: path.stat().st_size for path in tree.iterdir()}
    report = detlayer.verify([out])
    assert not report.ok
    assert [one.path for one in report.findings if one.trap == "sparse"] == ["hole", "many", "nothing"]


def test_the_same_packed_bytes_at_other_places_differ(tmp_path: Path) -> None:
    """The stored data is equal, but not its position: only the map shows that these are two files."""
    for form in SPARSE_FORMS:
        paths = []
        for name, spans in (("a", [(0, 4)]), ("b", [(512, 4)])):
            paths.append(tmp_path / f"{name}.tar")
            paths[-1].write_bytes(tar(sparse(form, b"s", 1000, spans, b"data")))
        for normalized in (False, True):
            report = diff(*paths, normalized=normalized)
            assert (report.verdict, [one.path for one in report.differences]) == ("entries", ["s"])
            assert report.differences[0].offset == 0


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations([*SPARSE_FORMS, "plain"], 2)))
def test_one_file_in_two_forms_is_the_same(one: str, other: str, tmp_path: Path) -> None:
    paths = []
    for form in (one, other):
        paths.append(tmp_path / f"{form}.tar")
        spans, data = [(5, 4), (700, 2)], b"dataxy"
        whole = member(b"s", expanded(1000, spans, data))
        paths[-1].write_bytes(tar(whole if form == "plain" else sparse(form, b"s", 1000, spans, data)))
    assert diff(*paths).verdict == "form"
    assert diff(*paths, normalized=True).same


def test_another_map_of_equal_content_is_another_tar() -> None:
    """SPEC 1.3: the key distinguishes tars, not only their contents."""
    layers = [tar(sparse("1.0", b"s", 2000, spans, bytes(512))) for spans in ([(0, 512)], [(512, 512)])]
    keys = {audit(Bytes(layer)).key for layer in layers}
    assert read(layers[0]) == read(layers[1])
    assert len(keys) == 2

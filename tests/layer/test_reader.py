"""Tars from untrusted sources: every inconsistency is a LayerError with a code and a hint, or a finding."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from detlayer.checks.audit import audit
from detlayer.errors import LayerError
from detlayer.layer import reader
from detlayer.layer.reader import TarReader, clean_path, number, parse_records
from detlayer.layer.tar import END
from tests.layer.handmade_tars import LONG, Bytes, checked, extension, header, member, record, sparse, tar

SOUND = tar(
    header(b"d", kind="dir"),
    member(b"d/" + LONG, b"content" * 200),
    member(b"d/x", b"1" * 512, xattrs=((b"user.a", b"1"),)),
    header(b"d/z", kind="symlink", target=b"x"),
)


def code_of(data: bytes, pieces: int = 0) -> str:
    """Read to the end; the code of the LayerError, which must have a hint; empty without error."""
    try:
        source = [data] if not pieces else [data[at : at + pieces] for at in range(0, len(data), pieces)]
        for found in TarReader(source):
            for view in found.views():
                assert len(view)
    except LayerError as error:
        return checked(error)
    return ""


def with_path(path: bytes) -> bytes:
    return tar(extension(b"x", record(b"path", path)), member())


CASES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "no tar": ("header-checksum", lambda: b"#!/bin/sh\n" * 100),
    "half a block": ("tar-truncated", lambda: b"x" * 100),
    "checksum wrong": ("header-checksum", lambda: tar(header(at=148, raw=b"0000000", seal=False))),
    "checksum of no digits": ("header-checksum", lambda: tar(header(at=148, raw=b"checksum", seal=False))),
    "checksum empty": ("header-checksum", lambda: tar(header(at=148, raw=bytes(8), seal=False))),
    "checksum off by the modulus": ("header-checksum", lambda: tar(_off_by(65521))),
    "size beyond the end": ("tar-truncated", lambda: tar(header(b"a", at=124, raw=b"77777777777"))),
    "size of 2**62": ("tar-truncated", lambda: tar(_base256(1 << 62))),
    "size of 2**63": ("header-number", lambda: tar(_base256(1 << 63))),
    "size of 2**90": ("header-number", lambda: tar(_base256(1 << 90))),
    "size below zero": ("header-number", lambda: tar(_base256(-1))),
    "size least of all": ("header-number", lambda: tar(_base256(-(1 << 94)))),
    "size of no digits": ("header-number", lambda: tar(header(at=124, raw=b"12345678xyz"))),
    "record's size beyond the end": (
        "tar-truncated",
        lambda: tar(extension(b"x", record(b"size", b"9" * 19)), member()),
    ),
    "record's size of 20 digits": ("pax-record", lambda: tar(extension(b"x", record(b"size", b"9" * 20)), member())),
    "record's size below zero": ("pax-record", lambda: tar(extension(b"x", record(b"size", b"-5")), member())),
    "record's owner": ("pax-record", lambda: tar(extension(b"x", record(b"uid", b"1e3")), member())),
    "record's time": ("pax-record", lambda: tar(extension(b"x", record(b"mtime", b"nan")), member())),
    "record's time of many digits": (
        "pax-record",
        lambda: tar(extension(b"x", record(b"mtime", b"9" * 5000)), member()),
    ),
    "extension's size below zero": ("header-too-long", lambda: tar(_sized(b"x", -5), member())),
    "extension of 5 MiB": ("header-too-long", lambda: tar(extension(b"x", record(b"c", bytes(5 << 20))), member())),
    "long name of 1 MiB": ("header-too-long", lambda: tar(extension(b"L", b"n" * (1 << 20)), member())),
    "extension cut off": ("tar-truncated", lambda: extension(b"x", record(b"c", b"1"))[:700]),
    "extension and no member": ("tar-truncated", lambda: tar(extension(b"x", record(b"c", b"1")))),
    "long name and no member": ("tar-truncated", lambda: extension(b"L", b"name\0")),
    "a million records": ("header-too-long", lambda: tar(extension(b"x", record(b"a", b"") * 800_000), member())),
    "two PAX headers": ("header-repeated", lambda: tar(extension(b"x", record(b"path", b"b")) * 2, member())),
    "two long names": ("header-repeated", lambda: tar(extension(b"L", b"b\0") * 2, member())),
    "chain of global headers": ("header-chain", lambda: extension(b"g", record(b"a", b"1")) * 5000),
    "global headers that grow": ("header-too-long", lambda: b"".join(_growing())),
    "record too long": ("pax-record", lambda: tar(extension(b"x", b"99 path=b\n"), member())),
    "record too short": ("pax-record", lambda: tar(extension(b"x", b"5 path=b\n"), member())),
    "record of nothing": ("pax-record", lambda: tar(extension(b"x", b"0 path=b\n"), member())),
    "record of its length alone": ("pax-record", lambda: tar(extension(b"x", b"2 \n"), member())),
    "record below zero": ("pax-record", lambda: tar(extension(b"x", b"-9 path=b\n"), member())),
    "record without equals": ("pax-record", lambda: tar(extension(b"x", b"9 pathbb\n"), member())),
    "record without key": ("pax-record", lambda: tar(extension(b"x", b"5 =b\n"), member())),
    "record without newline": ("pax-record", lambda: tar(extension(b"x", b"10 path=bb"), member())),
    "record of many digits": ("pax-record", lambda: tar(extension(b"x", b"9" * 400 + b" a=b\n"), member())),
    "record of no digits": ("pax-record", lambda: tar(extension(b"x", b"\xb2 a=b\n"), member())),
    "zeros behind a record": ("pax-record", lambda: tar(extension(b"x", record(b"a", b"b") + b"\0"), member())),
    "dots": ("unsafe-path", lambda: with_path(b"../etc/passwd")),
    "dots inside": ("unsafe-path", lambda: with_path(b"a/../../b")),
    "dots at the end": ("unsafe-path", lambda: with_path(b"a/..")),
    "absolute dots": ("unsafe-path", lambda: with_path(b"/../b")),
    "dots in a link": ("unsafe-path", lambda: tar(member(), header(b"b", kind="hardlink", target=b"../a"))),
    "NUL": ("entry-path", lambda: with_path(b"a\0b")),
    "NUL in a link": ("entry-path", lambda: tar(extension(b"x", record(b"linkpath", b"a\0b")), _link())),
    "Latin-1": ("name-not-utf8", lambda: with_path(b"caf\xe9")),
    "Latin-1 in the header": ("name-not-utf8", lambda: tar(header(b"abcd", at=0, raw=b"caf\xe9"))),
    "Latin-1 in a link": ("name-not-utf8", lambda: tar(extension(b"x", record(b"linkpath", b"caf\xe9")), _link())),
    "path of 4096 bytes": ("path-too-long", lambda: with_path(b"/".join([b"x" * 63] * 64) + b"y")),
    "type unknown": ("header-type", lambda: tar(header(at=156, raw=b"V"))),
    "directory with content": ("header-type", lambda: tar(header(b"aa", b"data", at=0, raw=b"a/") + b"data")),
    "garbage behind": ("tar-garbage", lambda: SOUND + b"garbage"),
    "garbage between the zeros": ("tar-garbage", lambda: SOUND[:-512] + b"x" * 512),
    "a tar behind": ("tar-garbage", lambda: SOUND + SOUND),
    "a sparse map cut off": ("tar-truncated", lambda: _with_map()),
}


def _off_by(wrong: int) -> bytes:
    block = header(b"\xc3\xbf" * 50)[-512:]
    stored = int(block[148:154], 8)
    return block[:148] + b"%07o\0" % (stored + wrong) + block[156:]


def _base256(value: int) -> bytes:
    return header(b"a", at=124, raw=(value % (1 << 95) | 1 << 95).to_bytes(12, "big"))


def _sized(flag: bytes, size: int) -> bytes:
    return extension(flag, b"", at=124, raw=(size % (1 << 95) | 1 << 95).to_bytes(12, "big"))


def _growing() -> Iterator[bytes]:
    for n in range(40):
        yield extension(b"g", record(b"key%d" % n, bytes(4096)))
        yield member(b"m%d" % n)


def _link() -> bytes:
    return header(b"l", kind="symlink", target=b"t")


def _with_map() -> bytes:
    return sparse("gnu", b"a", 999, [(9 * n, 0) for n in range(60)], b"")[:1024]


@pytest.mark.parametrize("name", CASES)
def test_lies_are_layer_errors(name: str) -> None:
    wanted, make = CASES[name]
    data = make()
    assert code_of(data) == wanted
    with pytest.raises(LayerError) as caught:
        audit(Bytes(data))
    assert caught.value.code == wanted


def test_truncated_anywhere() -> None:
    """At and between all blocks: an error, or at the end a finding; the same for pieces of any length."""
    assert code_of(SOUND) == ""
    end = len(SOUND) - len(END)
    boundaries = set()
    for cut in sorted({*range(0, len(SOUND), 512), *range(0, len(SOUND), 97), *range(end - 3, end + 4)}):
        code = code_of(SOUND[:cut])
        assert code_of(SOUND[:cut], pieces=100) == code, cut
        if code == "":
            boundaries.add(cut)
            assert audit(Bytes(SOUND[:cut])).findings.counts.get("trailer") == 1
        else:
            assert code == "tar-truncated", cut
    # Whole entries and no end, or a short end; never in the middle of an entry.
    starts = {0, 512, 3584, 5120 + 512, end}
    assert boundaries - set(range(end + 512, len(SOUND))) <= starts
    assert {0, 512, end} <= boundaries


@pytest.mark.parametrize("name", [b"a/..b", b"..a", b"a..", b"a/.../b", b".a/.b", b"a/b..c"])
def test_dots_in_names_are_no_way_out(name: bytes) -> None:
    """SPEC 3.2: only a whole `..` component."""
    assert clean_path(name) == name
    assert code_of(with_path(name)) == ""


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        (b"./a", b"a"),
        (b"/a/", b"a"),
        (b"a//b", b"a/b"),
        (b"./", b""),
        (b".", b""),
        (b"/", b""),
        (b"", b""),
        (b"a/./b", b"a/b"),
    ],
)
def test_paths_are_brought_to_one_form(written: bytes, wanted: bytes) -> None:
    """SPEC 3.2."""
    assert clean_path(written) == wanted


def test_longest_path() -> None:
    """SPEC 3.2: 4095 bytes."""
    path = b"/".join([b"x" * 63] * 64)
    assert len(path) == 4095
    assert next(iter(TarReader([with_path(path)]))).entry.path == path


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b"0000755\0", 0o755),
        (b"   755 \0", 0o755),
        (b"755\0junk", 0o755),
        (bytes(8), 0),
        (b"77777777", 0o77777777),
        (b"\x80" + bytes(6) + b"\x05", 5),
        (b"\xff" * 12, -1),
        (b"\xff" * 11 + b"\x00", -256),
        (b"\x80\0\0\0" + b"\x7f" + b"\xff" * 7, (1 << 63) - 1),
    ],
)
def test_numbers(raw: bytes, wanted: int) -> None:
    assert number(raw, "size") == wanted


def test_signed_checksums_of_old_tars() -> None:
    block = header("é".encode() * 10)[-512:]
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:]) + 256
    found = list(TarReader([tar(header("é".encode() * 10)[:-512] + block[:148] + b"%06o\0 " % signed + block[156:])]))
    assert [item.entry.path for item in found] == ["é".encode() * 10]


def test_records() -> None:
    """POSIX pax: values may contain any byte; an empty one cancels a record of a global header."""
    data = record(b"a", b"x=\n\0\xff") + record(b"b", b"")
    assert list(parse_records(data)) == [(b"a", b"x=\n\0\xff"), (b"b", b"")]
    parts = (
        extension(b"g", record(b"path", b"of all")),
        member(b"1"),
        extension(b"x", record(b"path", b"")),
        member(b"2"),
    )
    assert [item.entry.path for item in TarReader([tar(*parts)])] == [b"of all", b"2"]


def test_global_records_are_bounded_but_not_forbidden() -> None:
    parts = [part for n in range(300) for part in (extension(b"g", record(b"comment", b"x" * 900)), member(b"%d" % n))]
    assert len(list(TarReader([tar(*parts)]))) == 300


def test_as_many_records_as_are_allowed() -> None:
    data = b"".join(record(b"SCHILY.xattr.user.%d" % n, b"v") for n in range(reader.MAX_RECORDS))
    found = list(TarReader([tar(extension(b"x", data), member())]))
    assert len(found[0].entry.xattrs) == reader.MAX_RECORDS


def test_a_chain_without_end_is_left() -> None:
    """An endless stream, which only a limit can stop."""
    blocks = itertools.chain.from_iterable(itertools.repeat((extension(b"g", record(b"a", b"1")),)))
    with pytest.raises(LayerError) as caught:
        list(TarReader(blocks))
    assert caught.value.code == "header-chain"


def test_content_is_read_once_and_the_rest_skipped() -> None:
    reader = TarReader([tar(member(b"a", b"12345" * 300), member(b"b", b"67"))])
    seen = []
    for found in reader:
        assert found.entry.content is not None
        content = found.entry.content.open()
        buffer = bytearray(2)
        assert content.read_into(memoryview(buffer)) == 2
        seen.append(bytes(buffer))
        with pytest.raises(RuntimeError):
            found.entry.content.open()
    assert seen == [b"12", b"67"]
    assert reader.trailer_bytes == 1024


def test_sparse_members_do_not_stop_the_reader() -> None:
    found = list(TarReader([tar(sparse("gnu", b"a", 999, [(9 * n, 2) for n in range(60)], b"d" * 120), member(b"b"))]))
    assert [(item.entry.path, item.sparse) for item in found] == [(b"a", True), (b"b", False)]


@pytest.mark.parametrize("target", [b"nowhere", b"a/b/c", b"l"])
def test_hard_links_to_nowhere_are_findings(target: bytes) -> None:
    report = audit(Bytes(tar(header(b"l", kind="hardlink", target=target))))
    assert report.findings.counts == {"hardlink-form": 1}

"""Headers byte by byte (SPEC 5), read back by an independent reader and by Python's tarfile."""

from __future__ import annotations

import tarfile

import pytest
from hypothesis import given

from detlayer.errors import DetlayerError, LayerError, TreeError
from detlayer.layer.entry import MAX_MTIME, MAX_OWNER, Entry, EntryKind
from detlayer.layer.tar import END, encode_header, padding
from detlayer.layer.writer import BytesContent
from tests import strategies
from tests.tar_headers import Header, check_block, cut_field, read_headers, read_members

MAX_FIELD_SIZE = 8589934591
TYPES = {"dir": tarfile.DIRTYPE, "file": tarfile.REGTYPE, "symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE}


def read_one(entry: Entry, content: bytes = b"") -> Header:
    (header,) = read_headers(encode_header(entry) + content + bytes(padding(len(content))) + END)
    return header


def sized(size: int) -> Entry:
    return Entry(b"big", "file", size_bytes=size, content=BytesContent(b""))


def test_offset_table() -> None:
    """SPEC 5.2: one header, every byte written out."""
    header = encode_header(Entry(b"bin/run", "file", 0o4755, 1, 0o7777777, 946684800, 0o1234))
    wanted = (
        b"bin/run".ljust(100, b"\0")
        + b"0004755\x000000001\x007777777\x00"
        + b"00000001234\x0007033241600\x00"
        + b"        "
        + b"0"
        + bytes(100)
        + b"ustar\x0000"
        + bytes(64)
        + b"0000000\x000000000\x00"
        + bytes(167)
    )
    checksum = b"%06o\0 " % sum(wanted)
    assert header == wanted[:148] + checksum + wanted[156:]


@given(strategies.loose_entries())
def test_read_back(entry: Entry) -> None:
    """SPEC 5.1: both readers return the values of the entry, with or without PAX."""
    content = b"x" * entry.size_bytes
    tar = encode_header(entry) + content + bytes(padding(len(content))) + END
    assert len(tar) % 512 == 0
    (header,) = read_headers(tar)
    assert (header.path, header.flag) == (entry.written_path, TYPES[entry.kind])
    assert (header.mode, header.uid, header.gid) == (entry.mode, entry.uid, entry.gid)
    assert (header.size, header.mtime, header.target) == (entry.size_bytes, entry.mtime, entry.target)
    (member,) = read_members(tar)
    assert (member.name.encode(), member.type) == (entry.path, TYPES[entry.kind])
    assert (member.mode, member.uid, member.gid) == (entry.mode, entry.uid, entry.gid)
    assert (member.size, member.mtime, member.linkname.encode()) == (entry.size_bytes, entry.mtime, entry.target)
    assert (member.uname, member.gname, member.devmajor, member.devminor) == ("", "", 0, 0)
    assert dict(header.pax).keys() >= {b"SCHILY.xattr." + name for name, _ in entry.xattrs}


@pytest.mark.parametrize("byte", [b"\x01", b"~", b"\x7f"])
@pytest.mark.parametrize("length", [1, 99, 100])
def test_checksum(byte: bytes, length: int) -> None:
    """SPEC 5.3: a plain sum, computed independently."""
    block = encode_header(Entry(byte * length, "symlink", target=byte * length))
    check_block(block)


def test_largest_checksum() -> None:
    """SPEC 5.3: names of the largest UTF-8 byte; the sum must not wrap."""
    name = "\U000fffff".encode() * 25  # f3 bf bf bf
    tar = encode_header(Entry(name, "symlink", 0o7777, 0o7777777, 0o7777777, MAX_MTIME, target=name))
    check_block(tar[-512:])


@pytest.mark.parametrize(
    ("kind", "length", "needs"), [("file", 100, 0), ("file", 101, 1), ("dir", 99, 0), ("dir", 100, 1)]
)
def test_path_needs_pax_above_100_bytes(kind: EntryKind, length: int, needs: int) -> None:
    """SPEC 5.4: of the written path, including a directory's slash."""
    header = read_one(Entry(b"n" * length, kind))
    assert len(header.pax) == needs
    assert len(header.path) == length + (kind == "dir")
    assert cut_field(header.block, "name") == header.path[:100].ljust(100, b"\0")


@pytest.mark.parametrize(("target", "needs"), [(b"t" * 100, 0), (b"t" * 101, 1), ("é".encode(), 1), (b"\x7f", 0)])
def test_link_target_needs_pax(target: bytes, needs: int) -> None:
    """SPEC 5.4."""
    for kind in ("symlink", "hardlink"):
        header = read_one(Entry(b"a", kind, target=target))
        assert [key for key, _ in header.pax] == [b"linkpath"] * needs
        assert header.target == target


def test_non_ascii_path_needs_pax() -> None:
    """SPEC 5.4: and the name field keeps the raw bytes."""
    header = read_one(Entry("é".encode(), "file"))
    assert header.pax == ((b"path", "é".encode()),)
    assert cut_field(header.block, "name").rstrip(b"\0") == "é".encode()


def test_name_field_may_cut_a_character() -> None:
    """SPEC 5.2: the first 100 bytes, even in the middle of a character."""
    path = b"n" * 99 + "é".encode()
    header = read_one(Entry(path, "file"))
    assert header.path == path
    assert cut_field(header.block, "name") == path[:100]


@pytest.mark.parametrize(("size", "pax"), [(MAX_FIELD_SIZE, None), (MAX_FIELD_SIZE + 1, b"8589934592")])
def test_size_limit(size: int, pax: bytes | None) -> None:
    """SPEC 5.4: the field is 0 when the size is in PAX."""
    blocks = encode_header(sized(size))
    assert (b"size=%d\n" % size in blocks) == (pax is not None)
    assert int(cut_field(blocks[-512:], "size")[:-1], 8) == (0 if pax else size)


@pytest.mark.parametrize("name", ["uid", "gid"])
def test_owner_limit(name: str) -> None:
    """SPEC 5.4."""
    for value, in_pax in ((2097151, False), (2097152, True), (MAX_OWNER, True)):
        uid, gid = (value, 7) if name == "uid" else (7, value)
        header = read_one(Entry(b"a", "file", uid=uid, gid=gid))
        assert (header.uid, header.gid) == (uid, gid)
        assert header.pax == (((name.encode(), b"%d" % value),) if in_pax else ())
        assert int(cut_field(header.block, name)[:-1], 8) == (0 if in_pax else value)


def test_pax_order() -> None:
    """SPEC 5.4: path, linkpath, uid, gid, then attributes by the bytes of their names."""
    attributes = ((b"user.b", b"1"), (b"user.a", b"2"), (b"security.capability", b"3"), (b"user.B", b"4"))
    entry = Entry("é".encode(), "symlink", 0o777, 3000000, 4000000, target="é".encode(), xattrs=attributes)
    assert [key for key, _ in read_one(entry).pax] == [
        b"path",
        b"linkpath",
        b"uid",
        b"gid",
        b"SCHILY.xattr.security.capability",
        b"SCHILY.xattr.user.B",
        b"SCHILY.xattr.user.a",
        b"SCHILY.xattr.user.b",
    ]


def test_pax_size_stands_between_linkpath_and_uid() -> None:
    """SPEC 5.4."""
    entry = Entry(b"n" * 101, "file", uid=3000000, size_bytes=2**40)
    records = encode_header(entry)[512:1024]
    places = [records.index(key) for key in (b" path=", b" size=1099511627776\n", b" uid=")]
    assert places == sorted(places)


def test_pax_header() -> None:
    """SPEC 5.4: its own header contains nothing of the machine or process."""
    blocks = encode_header(Entry("é".encode(), "file", 0o755, 5, 6, 7))
    assert len(blocks) == 3 * 512
    pax = blocks[:512]
    assert cut_field(pax, "name").rstrip(b"\0") == b"././@PaxHeader"
    assert cut_field(pax, "flag") == b"x"
    assert cut_field(pax, "mode") == b"0000644\0"
    assert cut_field(pax, "uid") == cut_field(pax, "gid") == b"0000000\0"
    assert cut_field(pax, "mtime") == b"00000000000\0"
    assert cut_field(pax, "size") == b"%011o\0" % len(b"11 path=\xc3\xa9\n")
    check_block(pax)


@pytest.mark.parametrize("length", [*range(84, 96), *range(980, 996), 9000 - 512])
def test_record_length_counts_itself(length: int) -> None:
    """SPEC 5.4: lengths at which their own digits add one more."""
    value = b"v" * length
    header = read_one(Entry(b"a", "file", xattrs=((b"user.a", value),)))
    assert header.pax == ((b"SCHILY.xattr.user.a", value),)


def test_record_length_edges_are_hit() -> None:
    """SPEC 5.4: 99 + 1 digit: a record of 100 and one of 101 bytes, none of 100 with two digits."""
    lengths = set()
    for size in range(70, 90):
        blocks = encode_header(Entry(b"a", "file", xattrs=((b"user.a", b"v" * size),)))
        lengths.add(int(blocks[512 : blocks.index(b" ", 512)]))
    assert {98, 99, 101, 102} <= lengths
    assert 100 not in lengths


def test_pax_records_are_padded() -> None:
    """SPEC 5.5: a full record block is not followed by another one."""
    for size in range(470, 500):
        blocks = encode_header(Entry(b"a", "file", xattrs=((b"user.a", b"v" * size),)))
        records = int(cut_field(blocks, "size")[:-1], 8)
        assert len(blocks) == 1024 + records + -records % 512


def test_raw_attribute_values() -> None:
    """SPEC 5.4: newlines, NULs and '=' in a value stay."""
    value = b"a\n=\0\xff12 x=y\n"
    assert read_one(Entry(b"a", "file", xattrs=((b"user.a", value),))).pax == ((b"SCHILY.xattr.user.a", value),)


@pytest.mark.parametrize("attribute", [(b"user.a", b""), (b"user.a=b", b"1")])
def test_unwritable_attributes(attribute: tuple[bytes, bytes]) -> None:
    """SPEC 4.6."""
    with pytest.raises(LayerError) as caught:
        encode_header(Entry(b"a", "file", xattrs=(attribute,)))
    assert caught.value.code == "xattr-unwritable"


@pytest.mark.parametrize(
    "entry",
    [
        Entry(b"a", "file", uid=-1),
        Entry(b"a", "file", uid=MAX_OWNER + 1),
        Entry(b"a", "file", gid=MAX_OWNER + 1),
        Entry(b"a", "file", mtime=-1),
        Entry(b"a", "file", mtime=MAX_MTIME + 1),
        Entry(b"a", "file", mode=0o10000),
        Entry(b"a", "file", mode=-1),
        Entry(b"a", "file", size_bytes=-1),
        Entry(b"a", "dir", size_bytes=1),
        Entry(b"a", "symlink", size_bytes=1, target=b"b"),
        Entry(b"a", "hardlink", size_bytes=1, target=b"b"),
    ],
)
def test_values_out_of_range(entry: Entry) -> None:
    """SPEC 5.1."""
    with pytest.raises(LayerError, match="out of range") as caught:
        encode_header(entry)
    assert caught.value.code == "entry-value"


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        (Entry(b"/a", "file"), "entry-path"),
        (Entry(b"a/", "dir"), "entry-path"),
        (Entry(b"\xff", "file"), "name-not-utf8"),
        (Entry(b"a", "symlink", target=b"\xff"), "name-not-utf8"),
        (Entry(b"a" * 4096, "file"), "path-too-long"),
    ],
)
def test_bad_names(entry: Entry, code: str) -> None:
    """SPEC 3.2."""
    with pytest.raises(DetlayerError) as caught:
        encode_header(entry)
    assert caught.value.code == code


def test_bad_target_names_the_entry() -> None:
    """SPEC 3.2."""
    with pytest.raises(TreeError, match=r"^here: link target"):
        encode_header(Entry(b"here", "symlink", target=b"\xff"))


@pytest.mark.parametrize("target", [b"", b"a\0b"])
@pytest.mark.parametrize("kind", ["symlink", "hardlink"])
def test_unwritable_targets(kind: EntryKind, target: bytes) -> None:
    """SPEC 5.2: an empty target, or one with a NUL, would be read back differently."""
    with pytest.raises(LayerError):
        encode_header(Entry(b"a", kind, target=target))


@pytest.mark.parametrize(("size", "zeros"), [(0, 0), (1, 511), (511, 1), (512, 0), (513, 511), (2**40 + 1, 511)])
def test_padding(size: int, zeros: int) -> None:
    """SPEC 5.5."""
    assert padding(size) == zeros


def test_end() -> None:
    """SPEC 5.6."""
    assert bytes(1024) == END

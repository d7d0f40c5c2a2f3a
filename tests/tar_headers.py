"""An independent reader of tar headers: what is in each field, as it is written."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass


@dataclass(frozen=True)
class Header:
    """One entry as its blocks say. `fields` are the raw bytes of the entry's own header."""

    path: bytes
    flag: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    target: bytes
    pax: tuple[tuple[bytes, bytes], ...]
    block: bytes
    content: bytes


FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "gid": (116, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "checksum": (148, 8),
    "flag": (156, 1),
    "target": (157, 100),
    "magic": (257, 8),
    "names": (265, 64),
    "devmajor": (329, 8),
    "devminor": (337, 8),
    "prefix": (345, 167),
}


def cut_field(block: bytes, name: str) -> bytes:
    at, length = FIELDS[name]
    return block[at : at + length]


def split_records(data: bytes) -> tuple[tuple[bytes, bytes], ...]:
    records = []
    while data:
        length = int(data[: data.index(b" ")])
        record, data = data[:length], data[length:]
        assert record.endswith(b"\n")
        key, _, value = record[record.index(b" ") + 1 : -1].partition(b"=")
        records.append((key, value))
    return tuple(records)


def read_headers(tar: bytes) -> list[Header]:
    """Read every entry; asserts what holds for each block: checksum, magic, zero padding, the end."""
    found = []
    pax: tuple[tuple[bytes, bytes], ...] = ()
    at = 0
    while any(tar[at : at + 512]):
        block = tar[at : at + 512]
        at += 512
        check_block(block)
        records = dict(pax)
        numbers = {name: int(cut_field(block, name)[:-1], 8) for name in ("mode", "uid", "gid", "size", "mtime")}
        size = int(records.get(b"size", numbers["size"]))
        content = tar[at : at + size]
        end = at + size + -size % 512
        assert not any(tar[at + size : end])
        at = end
        flag = cut_field(block, "flag")
        if flag == b"x":
            assert not pax
            pax = split_records(content)
            continue
        found.append(
            Header(
                records.get(b"path", cut_field(block, "name").rstrip(b"\0")),
                flag,
                numbers["mode"],
                int(records.get(b"uid", numbers["uid"])),
                int(records.get(b"gid", numbers["gid"])),
                size,
                numbers["mtime"],
                records.get(b"linkpath", cut_field(block, "target").rstrip(b"\0")),
                pax,
                block,
                content,
            )
        )
        pax = ()
    assert tar[at:] == bytes(1024)
    return found


def check_block(block: bytes) -> None:
    assert len(block) == 512
    blanked = block[:148] + b" " * 8 + block[156:]
    assert cut_field(block, "checksum") == b"%06o\0 " % sum(blanked)
    assert cut_field(block, "magic") == b"ustar\x0000"
    assert cut_field(block, "names") == bytes(64)
    assert cut_field(block, "devmajor") == cut_field(block, "devminor") == b"0000000\0"
    assert cut_field(block, "prefix") == bytes(167)


def read_members(tar: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(tar), mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
        return archive.getmembers()

"""What tests share: golden vectors, trees on disk, sinks and reporters in memory, and an independent reader of tars."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from detlayer.layer.codec import Codec
from detlayer.layer.entry import DEFAULT_MTIME, Entry, EntryKind, Profile
from detlayer.layer.ports import Bytes
from detlayer.layer.writer import BytesContent, Layer
from detlayer.layer.writer import pack as pack_layer
from detlayer.packing import packer
from detlayer.packing.options import PackOptions
from detlayer.packing.sources import parse_source
from detlayer.tree import Selection, Source, walk

ROOT = Path(__file__).parent.parent
VECTORS = ROOT / "fixtures" / "vectors"
NOBODY = 65534


# -- vectors


@dataclass(frozen=True)
class Vector:
    """One golden vector: entries as the file lists them, and what has to come out."""

    name: str
    entries: tuple[Entry, ...]
    expect: dict[str, Any]


def vector_names() -> list[str]:
    return sorted(path.stem for path in VECTORS.glob("*.json") if path.stem != "codec-classes")


def load_vector(name: str) -> Vector:
    document = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    return Vector(name, tuple(_vector_entry(item) for item in document["entries"]), document["expect"])


def load_classes() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((VECTORS / "codec-classes.json").read_text(encoding="utf-8"))
    return document


def vector_content(kind: dict[str, Any] | None) -> bytes:
    if kind is None:
        return b""
    if "text" in kind:
        return str(kind["text"]).encode()
    if "repeat" in kind:
        text, times = kind["repeat"]
        return str(text).encode() * int(times)
    seed, size = kind["sha256-counter"]
    return counter_bytes(seed, size)


def counter_bytes(seed: str, size: int) -> bytes:
    """Bytes that do not compress and that anybody can make again."""
    blocks = (hashlib.sha256(f"{seed}:{i}".encode()).digest() for i in range(size // 32 + 1))
    return b"".join(blocks)[:size]


def _vector_entry(item: dict[str, Any]) -> Entry:
    kind: EntryKind = item["type"]
    data = vector_content(item.get("content"))
    mode = item.get("mode", {"dir": "755", "symlink": "777"}.get(kind, "644"))
    return Entry(
        item["path"].encode(),
        kind,
        int(mode, 8),
        item.get("uid", 0),
        item.get("gid", 0),
        item.get("mtime", DEFAULT_MTIME),
        len(data),
        item.get("target", "").encode(),
        tuple((name.encode(), bytes.fromhex(value)) for name, value in item.get("xattrs", {}).items()),
        BytesContent(data) if data else None,
    )


# -- sinks and reporters


class MemorySink:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: Bytes, /) -> None:
        self.data += data


@dataclass
class Words:
    """A reporter that remembers."""

    warnings: list[tuple[str, str]] = field(default_factory=list)
    seen: list[tuple[int, int]] = field(default_factory=list)

    def progress(self, entries: int, tar_bytes: int) -> None:
        self.seen.append((entries, tar_bytes))

    def warning(self, code: str, message: str) -> None:
        self.warnings.append((code, message))


# -- entries and layers


def file_entry(path: str | bytes, data: bytes = b"", *, mode: int = 0o644) -> Entry:
    raw = path.encode() if isinstance(path, str) else path
    return Entry(raw, "file", mode, size_bytes=len(data), content=BytesContent(data) if data else None)


def dir_entry(path: str) -> Entry:
    return Entry(path.encode(), "dir", 0o755)


def layer_of(entries: Iterable[Entry], codec: str = "none", jobs: int = 2) -> tuple[Layer, bytes]:
    sink = MemorySink()
    made = pack_layer(entries, sink, codec=Codec(codec), jobs=jobs)
    return made, bytes(sink.data)


@dataclass(frozen=True)
class Packed:
    layer: Layer
    blob: bytes
    warnings: list[tuple[str, str]]

    @property
    def members(self) -> dict[str, tarfile.TarInfo]:
        return {member.name: member for member in read_members(self.blob)}

    @property
    def paths(self) -> list[bytes]:
        return [header.path for header in read_headers(self.blob)]

    def content(self, name: str) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(self.blob), mode="r:*") as archive:
            found = archive.extractfile(name)
            assert found is not None
            return found.read()


def take_outputs(options: dict[str, Any]) -> dict[str, Any]:
    """Take the arguments of `pack` that say where a layer goes out of `options`; the rest are `PackOptions`."""
    return {name: options.pop(name) for name in ("output", "oci_layout", "descriptor", "depfile") if name in options}


def pack_tree(*sources: Source | str | Path, compression: str = "none", **options: Any) -> Packed:
    """Pack in memory by the public function; an uncompressed tar unless said otherwise."""
    stream, words = io.BytesIO(), Words()
    to = take_outputs(options)
    how = PackOptions(compression=compression, reporter=words, **options)
    made = packer.pack(sources, stream, **to, options=how)
    return Packed(made, stream.getvalue(), words.warnings)


def walk_tree(
    *sources: Source | str | Path, profile: Profile | None = None, selection: Selection | None = None
) -> Iterator[Entry]:
    named = [item if isinstance(item, Source) else parse_source(os.fspath(item)) for item in sources]
    return iter(walk(named, profile=profile, selection=selection))


# -- an independent reader of tars: fields by the offset table of SPEC 5.2, PAX by POSIX


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


# -- trees on disk


@dataclass(frozen=True)
class File:
    data: bytes = b""
    mode: int = 0o644
    mtime: int | None = None


@dataclass(frozen=True)
class Link:
    target: bytes


Spec = Mapping[str, "str | bytes | File | Link | Spec"]


def make_tree(path: Path, spec: Spec) -> Path:
    """Make what `spec` says: text or bytes are files, mappings are directories. Returns `path`."""
    path.mkdir(parents=True, exist_ok=True)
    for name, what in spec.items():
        here = path / name
        match what:
            case str():
                here.write_text(what, encoding="utf-8")
            case bytes():
                here.write_bytes(what)
            case File(data, mode, mtime):
                here.write_bytes(data)
                here.chmod(mode)
                if mtime is not None:
                    os.utime(here, (mtime, mtime))
            case Link(target):
                os.symlink(target, os.fsencode(here))
            case _:
                make_tree(here, what)
    return path


def remove_deep(path: Path) -> None:
    """Remove a tree of any depth: shutil.rmtree recurses, and long paths can't be named."""
    subprocess.run(["rm", "-rf", "--", path], check=True)


def make_deep(path: Path, levels: int, name: str = "d") -> None:
    """Make a chain of directories, with a file in the innermost, by descriptors: no path is ever long."""
    path.mkdir()
    fd = os.open(path, os.O_RDONLY)
    try:
        for _ in range(levels):
            os.mkdir(name, dir_fd=fd)
            below = os.open(name, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(os.open("leaf", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd))
    finally:
        os.close(fd)


def list_files(path: Path) -> list[str]:
    """All names below, hidden ones included."""
    return sorted(str(found.relative_to(path)) for found in path.rglob("*"))


def disk_mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# -- programs and privileges


def program(name: str) -> str:
    """Find a program, or skip with its name."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(name)
    return found


def need_root(what: str) -> None:
    if os.geteuid() != 0:
        pytest.skip(what)


@contextlib.contextmanager
def mounted(arguments: Sequence[str | Path], at: Path) -> Iterator[None]:
    """Mount for a while; skips with 'mount' where that is not permitted."""
    need_root("mount")
    done = subprocess.run([program("mount"), *arguments, at], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mount ({done.stderr.decode().strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", at], check=True)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Drop root's privileges for a while, so that modes count."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def need_user_xattrs(path: Path) -> None:
    try:
        os.setxattr(path, "user.detlayer-probe", b"1")
        os.removexattr(path, "user.detlayer-probe")
    except OSError:
        pytest.skip("user xattrs")

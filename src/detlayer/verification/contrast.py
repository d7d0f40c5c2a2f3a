"""Two layers that should be equal: in what they differ, and which trap that is. Never disk, never how they were made.

Differences are named by the field in which entries differ; those of contents by what the bytes are, and by the marks of
the two runs: texts, such as the path of a build, that only one of them could have written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from io import BytesIO
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile
from zlib import decompressobj
from zlib import error as ZlibError

from blake3 import blake3
from msgspec import structs

from detlayer.checks.findings import Finding
from detlayer.errors import printable
from detlayer.layer import bytecode
from detlayer.layer.decompress import BlobReader
from detlayer.layer.entry import Entry
from detlayer.layer.reader import TarReader
from detlayer.oci.ports import Readable

MAX_KEPT_BYTES = 64 << 20  # of each layer's contents that differ, to say where
_CLOCK = re.compile(rb"\d{1,2}:\d{2}(?::\d{2})?|(?:19|20)\d{2}-\d{2}-\d{2}|\b1\d{9}(?:\d{3}){0,3}\b|\b20\d{12}\b")
_NEAR_BYTES = 40
# What a run is known by → the trap that it is to find that in a content.
MARKS = {"build path": "build-path-in-content", "home": "environment", "time zone": "environment"}
_WORDS = re.compile(rb"[\s\0,;\"'\[\](){}]+")


@dataclass(frozen=True, slots=True)
class Run:
    """A layer as one run made it: its name for messages, a way to open its blob, and the run's marks (see MARKS)."""

    name: str
    open: Callable[[], AbstractContextManager[Readable]]
    marks: Mapping[str, bytes] = field(default_factory=dict)


class _Listed(NamedTuple):
    place: int
    entry: Entry
    blocks: bytes
    content: bytes


def contrast(expected: Run, found: Run, *, max_expansion: int = 200) -> Iterator[Finding]:
    """Name every difference between two layers; nothing if their tars are equal. Raises LayerError."""
    old, new = _list(expected, max_expansion), _list(found, max_expansion)
    for path in sorted(old.keys() ^ new.keys()):
        here, there = ("missing", "there") if path in old else ("there", "missing")
        yield Finding("content", printable(path), "entry", f"{here} in {found.name}", f"{there} as in {expected.name}")
    both = old.keys() & new.keys()
    yield from _check_order([path for path in old if path in both], [path for path in new if path in both])
    changed: dict[bytes, int] = {}
    for path in sorted(both):
        a, b = old[path], new[path]
        if a.content != b.content and a.entry.kind == b.entry.kind == "hardlink":
            yield Finding("content", printable(path), "content", "linked to other bytes", "equal bytes")
        elif a.content != b.content and a.entry.kind == b.entry.kind:
            changed[path] = max(a.entry.size_bytes, b.entry.size_bytes)
        fields = list(_compare(a.entry, b.entry))
        yield from fields
        if a.blocks != b.blocks and not fields and a.entry.size_bytes == b.entry.size_bytes:
            at = next((n for n, (x, y) in enumerate(zip(a.blocks, b.blocks, strict=False)) if x != y), 0)
            shown = (one.blocks[at : at + 8].hex() for one in (b, a))
            yield Finding("header-bytes", printable(path), f"offset {at}", *shown)
    wanted = set(_affordable(changed))
    contents = [_read(run, wanted, max_expansion) for run in (expected, found)] if wanted else [{}, {}]
    for path in sorted(changed):
        if path in wanted:
            yield from name_difference(path, contents[0][path], contents[1][path], expected.marks, found.marks)
        else:
            yield Finding("content", printable(path), "content", "other bytes", "equal bytes")


def _list(run: Run, max_expansion: int) -> dict[bytes, _Listed]:
    listed: dict[bytes, _Listed] = {}
    with run.open() as source:
        reader = BlobReader(source, max_expansion=max_expansion)
        for place, member in enumerate(TarReader(reader, grow=reader.grow)):
            digest = blake3()
            for view in member.views():
                digest.update(view)
            entry = structs.replace(member.entry, content=None)
            target = listed.get(entry.target) if entry.kind == "hardlink" else None
            content = digest.digest() if target is None else target.content  # a link is bound where it stands
            listed[entry.path] = _Listed(place, entry, member.blocks + member.map, content)
    return listed


def _read(run: Run, wanted: set[bytes], max_expansion: int) -> dict[bytes, bytes]:
    contents: dict[bytes, bytes] = {}
    with run.open() as source:
        reader = BlobReader(source, max_expansion=max_expansion)
        for member in TarReader(reader, grow=reader.grow):
            if member.entry.path in wanted:
                contents[member.entry.path] = b"".join(map(bytes, member.views()))
    return contents


def _affordable(sizes: dict[bytes, int]) -> Iterator[bytes]:
    left = MAX_KEPT_BYTES
    for path in sorted(sizes, key=lambda path: sizes[path]):
        left -= sizes[path]
        if left < 0:
            return
        yield path


def _check_order(old: list[bytes], new: list[bytes]) -> Iterator[Finding]:
    """One finding for a whole layer: where the first differs, nearly all behind it do."""
    for a, b in zip(old, new, strict=True):
        if a != b:
            yield Finding("readdir-order", printable(b), "order", f"before {printable(a)}", f"after {printable(a)}")
            return


def _compare(a: Entry, b: Entry) -> Iterator[Finding]:
    path = printable(a.path)
    if a.kind != b.kind:
        trap = "hardlink-form" if {a.kind, b.kind} == {"file", "hardlink"} else "content"
        yield Finding(trap, path, "kind", b.kind, a.kind)
        return
    if a.target != b.target:
        trap = "hardlink-form" if a.kind == "hardlink" else "content"
        yield Finding(trap, path, "target", printable(b.target), printable(a.target))
    if a.mtime != b.mtime:
        yield Finding("mtime", path, "mtime", str(b.mtime), str(a.mtime))
    if a.mode != b.mode:
        trap = "umask" if not (a.mode ^ b.mode) & ~0o077 else "mode"
        yield Finding(trap, path, "mode", f"{b.mode:04o}", f"{a.mode:04o}")
    if (a.uid, a.gid) != (b.uid, b.gid):
        yield Finding("owner", path, "owner", f"{b.uid}:{b.gid}", f"{a.uid}:{a.gid}")
    if a.xattrs != b.xattrs:
        shown = (", ".join(printable(name) for name, _ in entry.xattrs) or "none" for entry in (b, a))
        yield Finding("xattrs", path, "attributes", *shown)


def name_difference(
    path: bytes,
    expected: bytes,
    found: bytes,
    expected_marks: Mapping[str, bytes],
    found_marks: Mapping[str, bytes],
) -> Iterator[Finding]:
    """Say why two contents of one path differ: at least one finding, with the first offset in its field."""
    a, b = expected, found
    for label in sorted(found_marks.keys() & expected_marks.keys(), key=lambda label: -len(found_marks[label])):
        old, new = expected_marks[label], found_marks[label]
        trap = MARKS[label]
        if trap == "build-path-in-content" and path.endswith(b".pyc"):
            trap = "pyc-path"
        # A run that writes a mark of its own, while the other does not write the same.
        if (new in b and new not in a) or (old in a and old not in b):
            place = b.find(new) if new in b else a.find(old)
            shown = (printable(text) if text in data else "other text" for text, data in ((new, b), (old, a)))
            yield Finding(trap, printable(path), f"{label} at offset {place}", *shown)
        a, b = a.replace(old, b""), b.replace(new, b"")
    if (a, b) != (expected, found) and (a == b or b"\0" in a):
        return  # a binary holds lengths and offsets, too, which follow the text
    if a == b:
        a, b = expected, found
    yield from _by_form(path, a, b)


def _by_form(path: bytes, a: bytes, b: bytes) -> Iterator[Finding]:
    """Judge by what the bytes are."""
    shown = printable(path)
    at = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    where = f"content at offset {at}"
    excerpts = (_excerpt(b, at), _excerpt(a, at))
    if path.endswith(b".pyc") and bytecode.recorded(a[:16]) and bytecode.recorded(b[:16]) and a[12:] == b[12:]:
        times = (str(int.from_bytes(data[8:12], "little")) for data in (b, a))
        yield Finding("pyc-timestamp", shown, "mtime", *times)
    elif a[:2] == b[:2] == b"PK" and (zips := _zip_difference(a, b)):
        yield Finding(zips[0], shown, *zips[1:])
    elif a[:2] == b[:2] == b"\x1f\x8b" and (a[4:8] != b[4:8] or _gunzip(a) == _gunzip(b)):
        times = (str(int.from_bytes(data[4:8], "little")) for data in (b, a))
        yield Finding("gzip-in-content", shown, "mtime" if a[4:8] != b[4:8] else "compressed bytes", *times)
    elif a[257:262] == b[257:262] == b"ustar" or a[:8] == b[:8] == b"!<arch>\n":
        yield Finding("archive-in-content", shown, where, *excerpts)
    elif _same_words(a, b):
        yield Finding("readdir-order", shown, where, "the same words in another order", excerpts[1])
    elif _times_near(a, at) != _times_near(b, at):
        yield Finding("environment", shown, f"time in {where}", *excerpts)
    else:
        yield Finding("content", shown, where, *excerpts)


def _zip_difference(a: bytes, b: bytes) -> tuple[str, str, str, str] | None:
    try:
        with ZipFile(BytesIO(a)) as one, ZipFile(BytesIO(b)) as other:
            old, new = one.infolist(), other.infolist()
    except (BadZipFile, ValueError, NotImplementedError, OverflowError, IndexError):
        return None
    names = [[info.filename for info in infos] for infos in (old, new)]
    if names[0] != names[1]:
        if sorted(names[0]) == sorted(names[1]):
            place = next(n for n, (x, y) in enumerate(zip(*names, strict=True)) if x != y)
            return "readdir-order", "order in the archive", printable(names[1][place]), printable(names[0][place])
        return None
    for x, y in zip(old, new, strict=True):
        if x.date_time != y.date_time:
            times = ["{:04}-{:02}-{:02} {:02}:{:02}:{:02}".format(*info.date_time) for info in (y, x)]
            return "zip-times", f"time of {printable(x.filename)}", times[0], times[1]
        if x.CRC != y.CRC:
            return "content", f"{printable(x.filename)} in the archive", f"CRC {y.CRC:08x}", f"CRC {x.CRC:08x}"
    return None


def _gunzip(data: bytes) -> bytes | None:
    try:
        return decompressobj(wbits=31).decompress(data, MAX_KEPT_BYTES)
    except ZlibError:
        return None


def _same_words(a: bytes, b: bytes) -> bool:
    words = _WORDS.split(a)
    return len(words) > 1 and len(a) == len(b) and sorted(words) == sorted(_WORDS.split(b))


def _times_near(data: bytes, at: int) -> list[bytes]:
    """What looks like times around an offset, on its line."""
    start, end = _line_around(data, at)
    return _CLOCK.findall(data[start:end])


def _line_around(data: bytes, at: int) -> tuple[int, int]:
    """The stretch around an offset that is on one line, with some bytes on either side at most."""
    low = max(0, at - _NEAR_BYTES)
    start = max(low, data.rfind(b"\n", low, at) + 1)
    end = data.find(b"\n", at, at + _NEAR_BYTES)
    return start, end if end >= 0 else at + _NEAR_BYTES


def _excerpt(data: bytes, at: int) -> str:
    """The line around an offset if it is text, else a few bytes in hex."""
    start, end = _line_around(data, at)
    line = data[start:end]
    if line and all(32 <= byte < 127 for byte in line):
        return line.decode("ascii")
    return data[at : at + 8].hex() or "the end"

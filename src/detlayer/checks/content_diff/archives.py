"""What differs in archives inside files: zip, gzip, tar and ar. The caller explains members."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from gzip import BadGzipFile, GzipFile
from io import BytesIO
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile, ZipInfo

from blake3 import blake3

from detlayer.checks.compare import EntryValues, Summary, compare, summarise
from detlayer.checks.findings import Change
from detlayer.errors import LayerError, printable
from detlayer.layer.order import order_key
from detlayer.layer.reader import TarReader

Inside = Callable[[bytes, bytes, bytes], list[Change]]
"""Explains two contents of a name."""

_MAX_MEMBERS = 200_000


def explain_zip(a: bytes, b: bytes, max_bytes: int, inside: Inside) -> list[Change]:
    """Compare two zip archives (wheels, jars): names, order, times, modes, contents, compression."""
    try:
        with ZipFile(BytesIO(a)) as old, ZipFile(BytesIO(b)) as new:
            return list(_zip_changes(old, new, max_bytes, inside))
    except _BROKEN:
        return []


# All exceptions that zipfile raises on malformed archives.
_BROKEN = (BadZipFile, ValueError, NotImplementedError, OverflowError, IndexError, RuntimeError, EOFError, zlib.error)


def _zip_changes(a: ZipFile, b: ZipFile, max_bytes: int, inside: Inside) -> Iterator[Change]:
    old, new = ({info.filename: info for info in archive.infolist()[:_MAX_MEMBERS]} for archive in (a, b))
    yield from _name_changes(list(old), list(new), "zip")
    if a.comment != b.comment:
        yield Change("archive-in-content", "comment of the zip", printable(a.comment), printable(b.comment))
    left = max_bytes
    times = 0
    for name, one in old.items():
        other = new.get(name)
        if other is None:
            continue
        shown = printable(name)
        if one.date_time != other.date_time:
            times += 1
            if times == 1:
                yield Change("zip-times", f"time of {shown}", _time(one), _time(other))
        if one.external_attr != other.external_attr or one.create_system != other.create_system:
            yield Change("archive-in-content", f"mode of {shown}", _attributes(one), _attributes(other))
        if (one.CRC, one.file_size) != (other.CRC, other.file_size):
            left -= one.file_size + other.file_size
            causes = inside(name.encode(), a.read(one), b.read(other)) if left >= 0 else []
            for change in causes or [
                Change("content", "content", f"{one.file_size} bytes", f"{other.file_size} bytes")
            ]:
                yield change._replace(field=f"{shown} in zip: {change.field}")
        elif (one.compress_type, one.compress_size) != (other.compress_type, other.compress_size):
            packed = [f"method {info.compress_type}, {info.compress_size} bytes" for info in (one, other)]
            yield Change("archive-in-content", f"compression of {shown}", *packed)
        elif one.extra != other.extra:
            yield Change("zip-times", f"extra field of {shown}", one.extra[:32].hex(), other.extra[:32].hex())
    if times > 1:
        yield Change("zip-times", f"times of {times - 1} more members", "differ", "too")


def _time(info: ZipInfo) -> str:
    return "{:04}-{:02}-{:02} {:02}:{:02}:{:02}".format(*info.date_time)


def _attributes(info: ZipInfo) -> str:
    return f"{info.external_attr >> 16:o} (system {info.create_system})"


def explain_gzip(path: bytes, a: bytes, b: bytes, max_bytes: int, inside: Inside) -> list[Change]:
    """Compare two gzip files: header, then content; the compressed stream only if the content is equal."""
    found = [
        Change("gzip-in-content", f"gzip header, {what}", old, new)
        for (what, old), (_, new) in zip(_gzip_header(a), _gzip_header(b), strict=True)
        if old != new
    ]
    try:
        contents = [_gunzip(data, max_bytes) for data in (a, b)]
    except (zlib.error, EOFError, BadGzipFile):
        return found
    if contents[0] != contents[1]:
        name = path.removesuffix(b".gz") if not path.endswith(b".tgz") else path[:-4] + b".tar"
        for change in inside(name, *contents):
            found.append(change._replace(field=f"content in gzip: {change.field}"))
    elif not found or a[10:] != b[10:]:
        at = _name_end(a), _name_end(b)
        if a[at[0] :] != b[at[1] :]:
            streams = [f"{len(data)} bytes" for data in (a, b)]
            found.append(Change("gzip-in-content", "compressed stream of equal content", *streams))
    return found


def _gzip_header(data: bytes) -> list[tuple[str, str]]:
    name = printable(data[10 : _name_end(data)].rstrip(b"\0")[:200])
    mtime = int.from_bytes(data[4:8], "little")
    return [("mtime", str(mtime)), ("name", name), ("level", data[8:9].hex()), ("OS byte", data[9:10].hex())]


def _name_end(data: bytes) -> int:
    if len(data) < 10 or data[3] & 0x0C != 0x08:
        return 10
    end = data.find(b"\0", 10, 10 + 4096)
    return end + 1 if end >= 0 else 10


def _gunzip(data: bytes, max_bytes: int) -> bytes:
    with GzipFile(fileobj=BytesIO(data)) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise EOFError
    return content


def explain_tar(a: bytes, b: bytes, inside: Inside) -> list[Change]:
    """Compare two tars: names, order, values, contents."""
    try:
        old, new = _read_tar(a), _read_tar(b)
    except LayerError:
        return []
    return _member_changes(old, new, "tar", inside)


class _Members(NamedTuple):
    summaries: dict[bytes, Summary]
    contents: dict[bytes, bytes]


def _read_tar(data: bytes) -> _Members:
    values: dict[EntryValues, EntryValues] = {}
    found = _Members({}, {})
    for member in TarReader([data]):
        entry = member.entry
        content = b"".join(member.views())
        kind = member.special or entry.kind
        found.summaries[entry.path] = summarise(entry, values, len(found.summaries), kind, blake3(content).digest())
        found.contents[entry.path] = content
    return found


def explain_ar(a: bytes, b: bytes, inside: Inside) -> list[Change]:
    """Compare two ar archives (static libraries, .deb): names, order, values, contents."""
    old, new = _read_ar(a), _read_ar(b)
    if old is None or new is None:
        return []
    return _member_changes(old, new, "ar", inside)


def _read_ar(data: bytes) -> _Members | None:
    found = _Members({}, {})
    at = 8
    while at + 60 <= len(data):
        head = data[at : at + 60]
        fields = [head[start:end].strip() for start, end in ((16, 28), (28, 34), (34, 40), (40, 48), (48, 58))]
        if head[58:] != b"`\n" or any(one.strip(b"0123456789") for one in fields):
            return None
        mtime, uid, gid, mode, size = (
            int(one or b"0", 8 if number == 3 and not one.strip(b"01234567") else 10)
            for number, one in enumerate(fields)
        )
        content = data[at + 60 : at + 60 + size]
        name = head[:16].rstrip(b" ")
        if name not in (b"/", b"//"):
            name = name.removesuffix(b"/")
        if name in found.summaries:  # ar allows repeated names; each is compared with the one at the same position
            name += b" (%d)" % len(found.summaries)
        found.contents[name] = content
        values = EntryValues("file", mode, uid, gid, mtime)
        found.summaries[name] = Summary(name, values, size, blake3(content).digest(), position=len(found.summaries))
        at += 60 + size + size % 2
    return found


def _member_changes(a: _Members, b: _Members, kind: str, inside: Inside) -> list[Change]:
    found = list(_name_changes(list(map(printable, a.summaries)), list(map(printable, b.summaries)), kind))
    ordered = [sorted(one.summaries.values(), key=lambda summary: order_key(summary.path)) for one in (a, b)]
    counts: dict[str, int] = {}
    for difference in compare(*ordered):
        path = difference.raw_path
        for change in difference.changes if difference.kind == "changed" else ():
            if change.field == "content":
                for cause in inside(path, a.contents.get(path, b""), b.contents.get(path, b"")):
                    found.append(cause._replace(field=f"{printable(path)} in {kind}: {cause.field}"))
                continue
            counts[change.field] = counts.get(change.field, 0) + 1
            if counts[change.field] == 1:
                where = f"{change.field} of {printable(path)} in {kind}"
                found.append(change._replace(trap="archive-in-content", field=where))
    for name, count in counts.items():
        if count > 1:
            found.append(Change("archive-in-content", f"{name} of {count - 1} more members", "differs", "too"))
    return found or [Change("archive-in-content", f"encoding of the {kind}", "one way", "another")]


def _name_changes(a: list[str], b: list[str], kind: str) -> Iterator[Change]:
    left, right = set(a), set(b)
    lost, came = [name for name in a if name not in right], [name for name in b if name not in left]
    if lost or came:
        shown = [", ".join(map(printable, names[:5])) + (" …" if len(names) > 5 else "") for names in (lost, came)]
        yield Change("content", f"members of the {kind}", *shown)
    common = [[name for name in names if name in other] for names, other in ((a, right), (b, left))]
    if common[0] != common[1]:
        at = next(n for n, pair in enumerate(zip(*common, strict=False)) if pair[0] != pair[1])
        yield Change(
            "readdir-order", f"member {at + 1} of the {kind}", printable(common[0][at]), printable(common[1][at])
        )

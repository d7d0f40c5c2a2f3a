"""What differs in Python bytecode and in ELF files, by their headers; nothing is unmarshalled or run."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from detlayer.checks.compare import first_difference
from detlayer.checks.content_diff.text import explain_bytes, token_trap
from detlayer.checks.findings import Change
from detlayer.errors import printable
from detlayer.layer import bytecode

_MAX_SECTIONS = 4096
# A string in marshal's format: its type, with or without the reference bit, and its length.
_SHORT = re.compile(rb"(?s)(?=[zZ\xfa\xda](.))")
_LONG = re.compile(rb"(?s)(?=[aAu\xe1\xc1\xf5](....))")
_MAX_PATH_BYTES = 4096
_MAX_NAMES = 64
_BYTELESS = (0, 8)  # SHT_NULL and SHT_NOBITS have no bytes in the file


def explain_pyc(a: bytes, b: bytes) -> list[Change]:
    """Compare two .pyc (PEP 552, SPEC 4.8): flags, the source's time, size or hash, file names in code, code."""
    found = []
    if a[:4] != b[:4]:
        return [Change("content", "Python's magic number", str(_word(a, 0)), str(_word(b, 0)))]
    if a[4:8] != b[4:8]:
        found.append(Change("content", "invalidation mode", _invalidation(a), _invalidation(b)))
    elif a[4:8] == bytes(4):
        if a[8:12] != b[8:12]:
            found.append(Change("pyc-timestamp", "mtime of the source", str(_word(a, 8)), str(_word(b, 8))))
        if a[12:16] != b[12:16]:
            found.append(Change("content", "size of the source", str(_word(a, 12)), str(_word(b, 12))))
    elif a[8:16] != b[8:16]:
        found.append(Change("content", "hash of the source", a[8:16].hex(), b[8:16].hex()))
    old, new = a[bytecode.HEADER_BYTES :], b[bytecode.HEADER_BYTES :]
    if old == new:
        return found
    old_paths, new_paths = _file_names(old), _file_names(new)
    rest = [old, new]
    if old_paths != new_paths:
        for left, right in zip(old_paths, new_paths, strict=False):
            if left != right:
                found.append(Change("pyc-path", "file name in code", printable(left), printable(right)))
                break
        rest = [_without(old, old_paths), _without(new, new_paths)]
    if rest[0] != rest[1] or old_paths == new_paths:
        at = first_difference(old, new) or 0
        found.append(
            Change("content", f"code from offset {bytecode.HEADER_BYTES + at}", f"{len(old)} bytes", _bytes(new))
        )
    return found


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _bytes(data: bytes) -> str:
    return f"{len(data)} bytes"


def _invalidation(data: bytes) -> str:
    return {0: "timestamp", 1: "unchecked hash", 3: "checked hash"}.get(_word(data, 4), data[4:8].hex())


def _file_names(code: bytes) -> list[bytes]:
    """Strings that are whole file names of sources, ordered by first occurrence."""
    found: dict[bytes, int] = {}
    for pattern in (_SHORT, _LONG):
        for match in pattern.finditer(code):
            length = int.from_bytes(match[1], "little")
            start = match.end(1)
            if 4 <= length <= _MAX_PATH_BYTES and code[start + length - 3 : start + length] == b".py":
                name = code[start : start + length]
                if name.isascii() and printable(name) == name.decode() and b" " not in name:
                    found.setdefault(name, start)
    return sorted(found, key=lambda name: found[name])[:_MAX_NAMES]


def _without(code: bytes, names: list[bytes]) -> bytes:
    for number, name in enumerate(names):
        length = len(name)
        for size in (1, 4):
            if length < 1 << 8 * size:
                code = code.replace(length.to_bytes(size, "little") + name, b"\0name %d\0" % number)
    # A long name has another type than a short one.
    return re.sub(rb"(?s)[zZ\xfa\xdaaAu\xe1\xc1\xf5](?=\0name \d+\0)", b"", code)


class Section(NamedTuple):
    """A section of an ELF file; its bytes may be truncated."""

    name: str
    data: bytes


def explain_elf(a: bytes, b: bytes) -> list[Change]:
    """Compare two ELF files section by section; the build-id comes last, since it follows from the rest."""
    old, new = list(_sections(a)), list(_sections(b))
    if not old or not new:
        return []
    found: list[Change] = []
    names = [[section.name for section in sections] for sections in (old, new)]
    if names[0] != names[1]:
        lost, came = (", ".join(n for n in one if n not in other) for one, other in (names, names[::-1]))
        if lost or came:
            found.append(Change("content", "sections", lost, came))
        else:
            found.append(Change("content", "order of sections", *(", ".join(one[:8]) for one in names)))
    build_id: list[Change] = []
    by_name = {section.name: section for section in new}
    for section in old:
        other = by_name.get(section.name)
        if other is None or section.data == other.data:
            continue
        if section.name == ".note.gnu.build-id":
            build_id.append(Change("content", "build-id", section.data[16:].hex(), other.data[16:].hex()))
            continue
        at = first_difference(section.data, other.data) or 0
        for change in _explain_strings(section, other) or explain_bytes(section.data, other.data, at):
            found.append(change._replace(field=f"section {section.name}: {change.field}"))
    if build_id and not found:
        return [change._replace(field="build-id alone") for change in build_id]
    # A path or a time comes first: sizes and addresses of other sections follow from it.
    found.sort(key=lambda change: change.trap == "content")
    return found + build_id


def _explain_strings(a: Section, b: Section) -> list[Change]:
    """Compare string tables as sets: linkers order them by hash, so one path moves all the others."""
    if a.name not in (".debug_str", ".debug_line_str"):
        return []
    old, new = (set(section.data.split(b"\0")) for section in (a, b))
    pairs = zip(sorted(old - new), sorted(new - old), strict=False)
    for left, right in ((one.decode("utf-8", "replace"), other.decode("utf-8", "replace")) for one, other in pairs):
        trap = token_trap(left, right)
        if trap != "content":
            return [Change(trap, "string", printable(left[:200]), printable(right[:200]))]
    return []


def _sections(data: bytes) -> Iterator[Section]:
    """Read the section table of a 32 or 64 bit file of either byte order; nothing from an inconsistent one."""
    wide, order = data[4:5] == b"\2", "<" if data[5:6] == b"\1" else ">"
    try:
        if wide:
            (table,) = struct.unpack_from(order + "Q", data, 0x28)
            size, count, names = struct.unpack_from(order + "HHH", data, 0x3A)
            layout, size_wanted = order + "IIQQQQ", 64
        else:
            (table,) = struct.unpack_from(order + "I", data, 0x20)
            size, count, names = struct.unpack_from(order + "HHH", data, 0x2E)
            layout, size_wanted = order + "IIIIII", 40
        if size != size_wanted or not 0 < count <= _MAX_SECTIONS or names >= count:
            return
        heads = [struct.unpack_from(layout, data, table + number * size) for number in range(count)]
    except (struct.error, OverflowError):
        return
    if sum(head[5] for head in heads if head[1] not in _BYTELESS) > 2 * len(data):
        return  # no linker writes overlapping sections, and they would be copied repeatedly
    strings = data[heads[names][4] : heads[names][4] + heads[names][5]]
    for name, kind, _, _, offset, length in heads:
        if kind not in _BYTELESS:
            end = strings.find(b"\0", name)
            yield Section(printable(strings[name : end if end >= 0 else None][:100]), data[offset : offset + length])

"""Find file contents that differ from build to build: times, paths, installer files. Does not access the disk.

Judged by name and bytes; nothing is executed or unmarshalled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from detlayer.checks.findings import Finding
from detlayer.errors import printable
from detlayer.layer import bytecode

MAX_KEPT_BYTES = 32 << 20  # of a file that has to be checked as a whole
_ZIP_SUFFIXES = (b".zip", b".whl", b".jar", b".war", b".ear", b".egg", b".nupkg", b".aar")
_GZIP_SUFFIXES = (b".gz", b".tgz", b".svgz")
_ARCHIVE_SUFFIXES = (b".tar", b".a", b".deb", b".cpio")
_ARCHIVES = _ZIP_SUFFIXES + _GZIP_SUFFIXES + _ARCHIVE_SUFFIXES
_ZIP_EPOCHS = frozenset(((1980, 1, 1, 0, 0, 0), (1980, 2, 1, 0, 0, 0), (2020, 2, 2, 0, 0, 0), (2000, 1, 1, 0, 0, 0)))
_ZIP_FIELDS = (12, 14, 28, 30, 32)  # time, date; lengths of name, extra and comment
_EDITOR_NAMES = frozenset(
    (b".DS_Store", b".git", b".hg", b".svn", b"Thumbs.db", b"desktop.ini", b".idea", b".vscode", b".Spotlight-V100")
)
_EDITOR_PATTERN = re.compile(rb"\._.+|.+~|\.#.+|#.+#|\..+\.sw[nop]", re.DOTALL)
_INSTALLER_NAMES = frozenset((b"direct_url.json", b"uv_cache.json", b"INSTALLER", b"REQUESTED", b".package-lock.json"))
_ABSOLUTE = re.compile(
    rb"/(?:home|root|tmp|var/tmp|build|builds|Users|private|github|__w|workspace)/[\x21-\x7e]{0,120}\.py"
)


def check_name(path: bytes, is_dir: bool) -> Iterator[Finding]:
    """Check a path by its last component alone."""
    name = path.rpartition(b"/")[2]
    if name in _EDITOR_NAMES or (not is_dir and _EDITOR_PATTERN.fullmatch(name)):
        yield Finding("editor-and-os-files", printable(path), "name", printable(name), "not in a layer")
    if name in _INSTALLER_NAMES and (b".dist-info/" in path or b"node_modules/" in path):
        yield Finding("installer-files", printable(path), "name", printable(name), "not in a layer")


def wants_content(path: bytes, size_bytes: int) -> bool:
    """Tell whether `check_content` needs the whole content."""
    return size_bytes <= MAX_KEPT_BYTES and path.endswith((b".pyc", b"/RECORD", *_ARCHIVES))


def check_content(path: bytes, data: bytes, source: tuple[int, int] | None) -> Iterator[Finding]:
    """Check a file's content. `source` is mtime and size of a .pyc's source in the layer, None if it has none."""
    if path.endswith(b".pyc"):
        yield from _check_pyc(path, data, source)
    elif path.endswith(_ZIP_SUFFIXES) and data[:2] == b"PK":
        yield from _check_zip(path, data)
    elif data[:2] == b"\x1f\x8b":
        yield from _check_gzip(path, data)
    elif path.endswith(b"/RECORD") and b".dist-info/" in path:
        lines = [line for line in data.split(b"\n") if line]
        if lines != sorted(lines):
            yield Finding("installer-files", printable(path), "order of lines", "as installed", "sorted")
    elif data[257:262] == b"ustar" or data[:8] == b"!<arch>\n" or data[:6] in (b"070701", b"070702", b"070707"):
        yield from _check_archive(path, data)


def _check_pyc(path: bytes, data: bytes, source: tuple[int, int] | None) -> Iterator[Finding]:
    recorded = bytecode.recorded(data[: bytecode.HEADER_BYTES])
    shown = printable(path)
    if recorded is not None:
        if source is None:
            yield Finding("pyc-timestamp", shown, "mtime", str(recorded.mtime), "its source beside it")
        elif not bytecode.matches(recorded, *source):
            found, wanted = f"{recorded.mtime}, {recorded.size_bytes} bytes", f"{source[0]}, {source[1]} bytes"
            yield Finding("pyc-timestamp", shown, "mtime and size of the source", found, wanted)
    match = _ABSOLUTE.search(data, bytecode.HEADER_BYTES)
    if match is not None:
        yield Finding("pyc-path", shown, "file name in code", printable(match[0]), "a path in the container")


def _check_zip(path: bytes, data: bytes) -> Iterator[Finding]:
    """Walk the central directory (APPNOTE 4.3.12) in place: zipfile creates an object per entry, and thirty megabytes
    hold 700 thousand."""
    end = data.rfind(b"PK\5\6")
    if end < 0 or end + 22 > len(data):
        return  # not an archive
    size, at = int.from_bytes(data[end + 12 : end + 16], "little"), int.from_bytes(data[end + 16 : end + 20], "little")
    if data[at : at + 4] != b"PK\1\2":
        at = max(end - size, 0)  # something precedes the archive, such as a launcher
    while data[at : at + 4] == b"PK\1\2" and at + 46 <= end:
        time, date, name, extra, comment = (int.from_bytes(data[at + n : at + n + 2], "little") for n in _ZIP_FIELDS)
        stamp = ((date >> 9) + 1980, date >> 5 & 15, date & 31, time >> 11, time >> 5 & 63, (time & 31) * 2)
        if stamp not in _ZIP_EPOCHS:
            when = "{:04}-{:02}-{:02} {:02}:{:02}:{:02}".format(*stamp)
            where = printable(data[at + 46 : at + 46 + name])
            yield Finding("zip-times", printable(path), f"time of {where}", when, "a fixed time")
            return
        at += 46 + name + extra + comment


def _check_gzip(path: bytes, data: bytes) -> Iterator[Finding]:
    mtime = int.from_bytes(data[4:8], "little")
    if mtime:
        yield Finding("gzip-in-content", printable(path), "mtime", str(mtime), "0")
    if len(data) > 10 and data[3] & 0x0C == 0x08:
        yield Finding("gzip-in-content", printable(path), "name", printable(data[10:266].split(b"\0")[0]), "none")


def _check_archive(path: bytes, data: bytes) -> Iterator[Finding]:
    """Check the first member's time: archives differ in all their members or in none."""
    if data[:8] == b"!<arch>\n":
        kind, mtime = "ar", data[8 + 16 : 8 + 28].strip().decode("ascii", "replace")
    elif data[:2] == b"07":
        width, start = (8, 46) if data[5:6] in b"12" else (11, 48)
        raw = data[start : start + width]
        kind, mtime = "cpio", str(int(raw, 16 if width == 8 else 8)) if re.fullmatch(rb"[0-9a-fA-F]+", raw) else "0"
    else:
        raw = data[136:147].strip(b" \0")
        kind, mtime = "tar", str(int(raw, 8)) if re.fullmatch(rb"[0-7]+", raw) else "0"
    if mtime not in ("", "0", "946684800"):
        yield Finding("archive-in-content", printable(path), f"mtime in {kind}", mtime, "a fixed time")

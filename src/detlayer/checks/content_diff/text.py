"""What differs in text and in unknown formats: lines, line endings, times, build paths."""

from __future__ import annotations

import re
from collections.abc import Iterator

from detlayer.checks.compare import first_difference
from detlayer.checks.findings import Change
from detlayer.errors import printable

_MAX_WHOLE = 4 << 20  # characters compared as a whole; beyond, only the first line that differs is reported
_SHOWN = 60
_PATH = re.compile(r"(?:(?<![\w.:/])|(?<=file:/))/(?:[\w.+@~%=-]+/)*[\w.+@~%=-]+")
_DAY = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*"
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*"
_TIME = re.compile(
    r"(?<!\d)(?:"
    r"\d{4}[-/]\d\d[-/]\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[ ]?[+-]\d\d:?\d\d)?)?"
    rf"|(?:{_DAY},? )?(?:\d{{1,2}} )?{_MONTH} {{1,2}}\d{{1,2}},?(?: \d\d:\d\d:\d\d)?"
    r"(?: [AP]M)?(?: (?:[A-Z]{3,4}|[+-]\d\d(?:\d\d)?))?(?: \d{4})?"
    rf"|\d{{1,2}}[ -]{_MONTH}[ -]\d{{4}}(?: \d\d:\d\d:\d\d)?"
    r"|\d\d:\d\d:\d\d(?:\.\d+)?"
    r"|20\d{12}Z?"
    r"|1[0-9]{9}(?:\.\d+|\d{3}|\d{6}|\d{9})?"  # seconds since 1970 in 2001 to 2033, with fractions or smaller units
    r")(?!\d)"
)
_RUN = re.compile(rb"[\x20-\x7e]+")
_WORDS = re.compile(r"[\s,;\"'\[\](){}]+")


def as_text(data: bytes) -> str | None:
    """Decode bytes as text; None if they are not text."""
    if b"\0" in data:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def explain_text(path: bytes, a: str, b: str) -> list[Change]:
    """Report how two texts differ: line endings, end, order of lines, or the first line."""
    if len(a) <= _MAX_WHOLE and len(b) <= _MAX_WHOLE:
        if a.replace("\r\n", "\n") == b.replace("\r\n", "\n"):
            return [Change("content", "line endings", _endings(a), _endings(b))]
        if a.rstrip("\r\n") == b.rstrip("\r\n"):
            return [Change("content", "newlines at the end", _tail(a), _tail(b))]
        old, new = a.splitlines(), b.splitlines()
        if sorted(old) == sorted(new):
            trap = "installer-files" if path.endswith(b".dist-info/RECORD") else "readdir-order"
            number = next(n for n, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1])
            return [Change(trap, "order of lines", *_around(old[number], new[number]))]
        if len(a) == len(b) and sorted(_WORDS.split(a)) == sorted(_WORDS.split(b)):
            return [Change("readdir-order", "order of words", *_around(a, b))]
    else:
        # A prefix of whole lines is enough to find the first difference.
        at = _first_text_difference(a, b)
        start = max(a.rfind("\n", 0, at) + 1, 0)
        before = a.count("\n", 0, start)
        old, new = a[start : at + 4096].splitlines(), b[start : at + 4096].splitlines()
        return _first_line(old, new, before, whole=False)
    return _first_line(old, new, 0, whole=True)


def _first_line(old: list[str], new: list[str], before: int, *, whole: bool) -> list[Change]:
    length = max(len(old), len(new))
    old_line = new_line = ""
    number = 0
    for number in range(length):
        old_line = old[number] if number < len(old) else ""
        new_line = new[number] if number < len(new) else ""
        if old_line != new_line or number >= min(len(old), len(new)):
            break
    at = f"line {before + number + 1}"
    shown = _around(old_line, new_line)
    if token_trap(old_line, new_line) != "content":
        found = [Change(trap, at, *token) for trap, token in _tokens(old_line, new_line)]
        if not whole or _same_but_tokens(old, new):
            return found
        # Something else differs too: find the first line that no time or path explains.
        for other, (left, right) in enumerate(zip(old, new, strict=False)):
            if _masked(left) != _masked(right):
                return [*found, Change("content", f"line {before + other + 1}", *_around(left, right))]
        return [*found, Change("content", "lines", str(len(old)), str(len(new)))]
    return [Change("content", at, *shown)]


def explain_bytes(a: bytes, b: bytes, at: int) -> list[Change]:
    """Report the first difference: part of a path, a time, or just bytes."""
    old, new = _run(a, at), _run(b, at)
    if len(old) > 3 and len(new) > 3:
        left, right = old.decode(), new.decode()
        if token_trap(left, right) != "content":
            return [Change(trap, f"at offset {at}", *token) for trap, token in _tokens(left, right)]
        return [Change("content", f"at offset {at}", *_around(left, right))]
    # Four aligned bytes that are a time of this century on both sides are most likely one.
    word = at - at % 4
    times = [int.from_bytes(data[word : word + 4], "little") for data in (a, b)]
    if all(1_000_000_000 < time < 2_500_000_000 for time in times) and abs(times[0] - times[1]) < 1 << 26:
        return [Change("time-in-content", f"32-bit number at offset {word}", str(times[0]), str(times[1]))]
    return [Change("content", f"bytes at offset {at}", a[at : at + 8].hex() or "end", b[at : at + 8].hex() or "end")]


def token_trap(a: str, b: str) -> str:
    """Name the difference between two lines: only times, only absolute paths, or content."""
    if _TIME.sub("T", a) == _TIME.sub("T", b):
        return "time-in-content"
    if _PATH.sub("P", a) == _PATH.sub("P", b) or _masked(a) == _masked(b):
        return "build-path-in-content"
    return "content"


def _masked(line: str) -> str:
    return _PATH.sub("P", _TIME.sub("T", line))


def _same_but_tokens(old: list[str], new: list[str]) -> bool:
    return len(old) == len(new) and all(a == b or _masked(a) == _masked(b) for a, b in zip(old, new, strict=True))


def _tokens(a: str, b: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Find the first time and the first path that differ between two otherwise equal lines."""
    lines = a, b
    for trap, pattern in (("time-in-content", _TIME), ("build-path-in-content", _PATH)):
        for left, right in zip(pattern.finditer(lines[0]), pattern.finditer(lines[1]), strict=False):
            if left[0] != right[0]:
                yield trap, (printable(left[0][:200]), printable(right[0][:200]))
                break
        lines = _TIME.sub("T", a), _TIME.sub("T", b)


def _around(a: str, b: str) -> tuple[str, str]:
    """Return the part of each of two lines around their first difference."""
    at = _first_text_difference(a, b)
    start = max(0, at - 20)
    return tuple(  # type: ignore[return-value]
        repr(("…" if start else "") + one[start : start + _SHOWN] + ("…" if len(one) > start + _SHOWN else ""))
        for one in (a, b)
    )


def _first_text_difference(a: str, b: str) -> int:
    at = first_difference(a.encode("utf-32-le", "surrogatepass"), b.encode("utf-32-le", "surrogatepass"))
    return (at or 0) // 4


def _endings(text: str) -> str:
    both, alone = text.count("\r\n"), text.count("\n")
    return "none" if not alone else "CRLF" if both == alone else "LF" if not both else "LF and CRLF"


def _tail(text: str) -> str:
    return str(len(text) - len(text.rstrip("\r\n")))


def _run(data: bytes, at: int) -> bytes:
    """Return the printable bytes around an offset."""
    start = max(0, at - 256)
    for match in _RUN.finditer(data[start : at + 256]):
        if match.start() <= at - start < match.end():
            return match[0]
    return b""

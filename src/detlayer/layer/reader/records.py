"""The numbers and records of tar headers: octal and base-256 fields, PAX records and their values."""

from __future__ import annotations

from collections.abc import Iterator

from detlayer.errors import LayerError, printable

AGAIN = "fetch or make it again"
NOBODY = "the archive may be malicious; do not use it"


def parse_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Parse PAX records, `LENGTH KEY=VALUE\\n`; raises LayerError for an invalid length."""
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        digits = data[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise bad_record(data[at : at + 40])
        end = at + int(digits)
        if end > len(data) or end <= space + 1 or data[end - 1] != 0x0A:
            raise bad_record(data[at : at + 40])
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise bad_record(data[at : at + 40])
        yield key, value
        at = end


def number(raw: bytes, what: str) -> int:
    """Parse an octal or base-256 field; raises LayerError."""
    if raw[0] & 0x80:
        value = int.from_bytes(bytes((raw[0] & 0x7F,)) + raw[1:], "big")
        if raw[0] & 0x40:
            value -= 1 << (8 * len(raw) - 1)
        if abs(value) >= 1 << 63:
            raise LayerError("header-number", f"the {what} of a header exceeds 64 bits", AGAIN)
        return value
    digits = raw.split(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise LayerError("header-number", f"invalid octal number {printable(digits)!r} as {what} of a header", AGAIN)
    return int(digits, 8)


def decimal(value: bytes, key: bytes) -> int:
    """Parse the decimal value of a record; raises LayerError."""
    if not value.isdigit() or len(value) > 19:
        raise bad_record(key + b"=" + value)
    return int(value)


def seconds(value: bytes) -> int:
    """Parse the whole seconds of a PAX time, rounded down; raises LayerError."""
    whole, _, fraction = value.partition(b".")
    digits = whole.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 18 or (fraction and not fraction.isdigit()):
        raise bad_record(b"mtime=" + value)
    return int(whole) - (1 if whole.startswith(b"-") and fraction.strip(b"0") else 0)


def bad_record(found: bytes) -> LayerError:
    """Make the error for an invalid record."""
    return LayerError("pax-record", f"malformed PAX record {printable(found[:60])!r}", AGAIN)

"""Tars and blobs made by hand, for what no honest writer makes: headers with single bytes changed, records that lie."""

from __future__ import annotations

from detlayer.entry import Entry, Kind
from detlayer.errors import DetlayerError
from detlayer.layer import BytesContent
from detlayer.tar import END, encode_header

LONG = b"n" * 120


class Bytes:
    """A source for `audit`."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def read(self, size: int, /) -> bytes:
        data, self._data = bytes(self._data[:size]), self._data[size:]
        return data


def checked(error: DetlayerError) -> str:
    """The code of an error that says what is wrong and what to do."""
    assert error.code
    assert error.message
    assert error.hint
    return error.code


def entry(
    path: bytes, data: bytes = b"", kind: Kind = "file", mode: int | None = None, target: bytes = b"", **values: object
) -> Entry:
    usual = {"dir": 0o755, "symlink": 0o777}.get(kind, 0o644)
    content = BytesContent(data) if data else None
    made = Entry(path, kind, usual if mode is None else mode, size_bytes=len(data), target=target, content=content)
    return made if not values else _with(made, values)


def _with(made: Entry, values: dict[str, object]) -> Entry:
    fields = {name: getattr(made, name) for name in made.__struct_fields__}
    return Entry(**{**fields, **values})


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def sealed(block: bytes) -> bytes:
    """Give a header block the checksum that it should have."""
    return block[:148] + b"%06o\0 " % (sum(block[:148] + block[156:]) + 256) + block[156:]


def header(
    path: bytes = b"a", data: bytes = b"", at: int = 0, raw: bytes = b"", *, seal: bool = True, **how: object
) -> bytes:
    """A canonical header with `raw` at offset `at` of its last block."""
    blocks = encode_header(entry(path, data, **how))  # type: ignore[arg-type]
    block = blocks[-512:]
    block = block[:at] + raw + block[at + len(raw) :]
    return blocks[:-512] + (sealed(block) if seal else block)


def member(path: bytes = b"a", data: bytes = b"", at: int = 0, raw: bytes = b"", **how: object) -> bytes:
    return header(path, data, at, raw, **how) + padded(data)  # type: ignore[arg-type]


def tar(*parts: bytes) -> bytes:
    return b"".join(parts) + END


def record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length += len(str(length)) - len(str(rest))
    return b"%d %b=%b\n" % (length, key, value)


def extension(flag: bytes, data: bytes, name: bytes = b"././@PaxHeader", at: int = 0, raw: bytes = b"") -> bytes:
    """An extension header with its data: PAX `x` or `g`, GNU `L` or `K`."""
    block = bytearray(encode_header(Entry(b"a", "file")))
    block[:100] = name.ljust(100, b"\0")
    block[124:136] = b"%011o\0" % len(data)
    block[136:148] = b"%011o\0" % 0
    block[156:157] = flag
    block[at : at + len(raw)] = raw
    return sealed(bytes(block)) + padded(data)

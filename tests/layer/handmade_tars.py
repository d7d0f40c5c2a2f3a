"""Tars and blobs that no valid writer makes: headers with single bytes changed, inconsistent records."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from detlayer.errors import DetlayerError
from detlayer.layer.entry import Entry, EntryKind
from detlayer.layer.tar import END, encode_header
from detlayer.layer.writer import BytesContent

LONG = b"n" * 120


class Bytes:
    """A source for `audit`."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def read(self, size: int, /) -> bytes:
        data, self._data = bytes(self._data[:size]), self._data[size:]
        return data


def checked(error: DetlayerError) -> str:
    """The code of an error that has a message and a hint."""
    assert error.code
    assert error.message
    assert error.hint
    return error.code


def entry(
    path: bytes,
    data: bytes = b"",
    kind: EntryKind = "file",
    mode: int | None = None,
    target: bytes = b"",
    **values: object,
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
    """Give a header block its correct checksum."""
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


Spans = Sequence[tuple[int, int]]


def base256(value: int) -> bytes:
    """A number of twelve bytes in GNU tar's format for those that do not fit octal digits."""
    return (value % (1 << 95) | 1 << 95).to_bytes(12, "big")


def sparse_old(
    path: bytes, size: int, spans: Spans, data: bytes, slots: Callable[[int], bytes] = lambda value: b"%011o\0" % value
) -> bytes:
    """A sparse member in GNU tar's own format: four ranges in the header, others in blocks after it."""
    raw = [slots(offset) + slots(length) for offset, length in spans]
    rest = [raw[at : at + 21] for at in range(4, len(raw), 21)]
    block = bytearray(header(path, data, at=156, raw=b"S"))
    block[386 : 386 + 24 * len(raw[:4])] = b"".join(raw[:4])
    block[482:483] = b"\1" if rest else b"\0"
    block[483:495] = slots(size)
    more = (b"".join(group).ljust(504, b"\0") + (b"\1" if group is not rest[-1] else b"\0") for group in rest)
    return sealed(bytes(block)) + b"".join(one.ljust(512, b"\0") for one in more) + padded(data)


def sparse_pax(path: bytes, size: int, spans: Spans, data: bytes, version: str) -> bytes:
    """A sparse member with PAX records of version 0.0, 0.1 or 1.0."""
    key = b"GNU.sparse."
    count = record(key + b"numblocks", b"%d" % len(spans))
    if version == "0.0":
        pairs = (record(key + b"offset", b"%d" % at) + record(key + b"numbytes", b"%d" % n) for at, n in spans)
        return extension(b"x", record(key + b"size", b"%d" % size) + count + b"".join(pairs)) + member(path, data)
    name = record(key + b"name", path)
    if version == "0.1":
        listed = record(key + b"map", b",".join(b"%d,%d" % span for span in spans))
        return pax_sparse(path, record(key + b"size", b"%d" % size) + count + name + listed, data)
    lines = b"%d\n" % len(spans) + b"".join(b"%d\n%d\n" % span for span in spans)
    numbers = record(key + b"major", b"1") + record(key + b"minor", b"0")
    return pax_sparse(path, numbers + name + record(key + b"realsize", b"%d" % size), padded(lines) + data)


def pax_sparse(path: bytes, records: bytes, data: bytes) -> bytes:
    """A member with any records, named as by GNU tar."""
    return extension(b"x", records) + member(b"GNUSparseFile.0/" + path, data)


def sparse(form: str, path: bytes, size: int, spans: Spans, data: bytes) -> bytes:
    """A sparse member in one of SPARSE_FORMS."""
    slots = {} if size < 8**11 else {"slots": base256}
    return sparse_old(path, size, spans, data, **slots) if form == "gnu" else sparse_pax(path, size, spans, data, form)


SPARSE_FORMS = ("gnu", "0.0", "0.1", "1.0")

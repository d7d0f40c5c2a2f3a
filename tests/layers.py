"""Layers in memory: entries, sinks and reporters, and packs of trees read back."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detlayer.layer.codec import Codec
from detlayer.layer.entry import Entry, Profile
from detlayer.layer.ports import Bytes
from detlayer.layer.writer import BytesContent, Layer
from detlayer.layer.writer import pack as pack_layer
from detlayer.packing import packer
from detlayer.packing.options import PackOptions
from detlayer.packing.sources import parse_source
from detlayer.tree import Selection, Source, walk
from tests.tar_headers import read_headers, read_members


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

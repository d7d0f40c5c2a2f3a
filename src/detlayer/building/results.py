"""The results of build steps. Traces store them as texts, and keys are computed from these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Self

import msgspec

from detlayer.oci.types import Descriptor, Digest, Platform, canonical_json, parse_digest


class _Result(msgspec.Struct, frozen=True, rename="kebab"):
    def to_texts(self) -> dict[str, str]:
        """Convert each non-empty field to text."""
        values = ((name, getattr(self, field)) for field, name, _ in _fields(type(self)))
        return {name: _text(value) for name, value in values if value not in (None, "")}

    @classmethod
    def from_texts(cls, texts: Mapping[str, str]) -> Self:
        """Convert texts back; raises ValueError for invalid ones."""
        try:
            return cls(**{field: parse(texts[name]) for field, name, parse in _fields(cls) if name in texts})
        except (TypeError, KeyError, msgspec.MsgspecError) as error:  # a field is missing, or a platform invalid
            raise ValueError(str(error)) from error


class ResolvedBase(_Result, frozen=True):
    """The digest that a base reference points to."""

    digest: Digest


class FetchedBase(_Result, frozen=True):
    """The manifest of a base for one platform, and its config; both are in the store."""

    manifest: Digest
    config: Digest


class DownloadedBase(_Result, frozen=True):
    """A manifest of a base whose layers are in the store."""

    manifest: Digest


class PackedLayer(_Result, frozen=True):
    """A layer in the store. `size_bytes` is the size of the blob."""

    digest: Digest
    size_bytes: int = msgspec.field(name="size")
    media_type: str
    diff_id: Digest
    key: str
    codec_class: str

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, self.digest, self.size_bytes)


class MadeConfig(_Result, frozen=True):
    """The config of an image for one platform, in the store."""

    config: Digest


class MadeImage(_Result, frozen=True):
    """A manifest or an index, in the store. A manifest has the platform that its index lists."""

    digest: Digest
    platform: Platform | None = None


class WrittenImage(_Result, frozen=True):
    """An image in a layout, archive or engine; `file` is the state of an archive on disk."""

    digest: Digest
    file: str = ""


@cache
def _fields(result: type[_Result]) -> tuple[tuple[str, str, Callable[[str], Any]], ...]:
    return tuple((one.name, one.encode_name, _PARSERS[one.type]) for one in msgspec.structs.fields(result))


def _text(value: Any) -> str:
    return canonical_json(value.to_document()).decode() if isinstance(value, Platform) else str(value)


def _platform(text: str) -> Platform:
    named = msgspec.json.decode(text, type=dict[str, str])
    return Platform(named["os"], named["architecture"], named.get("variant", ""), named.get("os.version", ""))


_PARSERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: int,
    Digest: parse_digest,
    Platform | None: _platform,
}

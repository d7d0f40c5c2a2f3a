"""Parse text into tables. Errors name the file, the key and a suggestion."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from detlayer.building.settings.location import Location
from detlayer.building.settings.substitution import expand, nearest
from detlayer.building.settings.toml_tables import BY_KEY, FileTable, ImageTable, LayerTable, Table
from detlayer.errors import ConfigError, printable

FILE_NAME = "detlayer.toml"
PYPROJECT = "pyproject.toml"

_MAX_BYTES = 4 << 20
_AT = re.compile(r"(?P<what>.*) - at `(?P<key>.*)`\Z", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`\Z", re.DOTALL)
_LINE = re.compile(r"at line ([0-9]+)")
_TableT = TypeVar("_TableT", bound=Table)


class Tables(msgspec.Struct, frozen=True):
    """A parsed file. `raw` has variables filled in; its images are parsed later, once defaults are known."""

    name: str
    file: FileTable
    raw: dict[str, Any]


def read_tables(data: bytes, name: str, environment: Mapping[str, str]) -> Tables | None:
    """Parse a detlayer.toml, or tool.detlayer of a pyproject.toml (None if missing). Raises ConfigError."""
    document = _toml(data, name)
    prefix = ""
    if name.rpartition("/")[2] == PYPROJECT:
        document, prefix = _section(document), "tool.detlayer."
        if document is None:
            return None
    allowed = document.get("variables", [])
    if isinstance(allowed, list) and all(isinstance(one, str) for one in allowed):
        document = {
            key: one if key == "variables" else expand(one, Location(name, f"{prefix}{key}"), allowed, environment)
            for key, one in document.items()
        }
    return Tables(name, _convert(document, FileTable, name, prefix), document)


def has_section(data: bytes, name: str) -> bool:
    """Return whether a pyproject.toml has the table tool.detlayer, valid or not; False if it is not TOML."""
    try:
        return _section(_toml(data, name)) is not None
    except ConfigError:
        return False


def read_image(data: bytes, name: str) -> ImageTable:
    """Parse a file with the table of one image; raises ConfigError. Does not fill in variables."""
    return _convert(_toml(data, name), ImageTable, name, "")


def image_with_defaults(defaults: Mapping[str, Any], image: Mapping[str, Any], name: str, key: str) -> ImageTable:
    """Merge an image's table over defaults, key by key, and also within `env`, `labels` and `annotations`."""
    merged = {**defaults, **image}
    for table in ("env", "labels", "annotations"):
        both = [one[table] for one in (defaults, image) if isinstance(one.get(table), dict)]
        if len(both) == 2:
            merged[table] = {**both[0], **both[1]}
    return _convert(merged, ImageTable, name, f"{key}.")


def _toml(data: bytes, name: str) -> dict[str, Any]:
    if len(data) > _MAX_BYTES:
        raise ConfigError(
            "config-invalid", f"{printable(name)} is larger than {_MAX_BYTES} bytes", "check the path", file=name
        )
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        line = _LINE.search(str(error))
        raise ConfigError(
            "config-invalid",
            f"invalid TOML in {printable(name)}: {printable(str(error))}",
            "see toml.io for the syntax",
            file=name,
            line=int(line[1]) if line else None,
        ) from error


def _section(document: dict[str, Any]) -> Any:
    tool = document.get("tool")
    section = tool.get("detlayer") if isinstance(tool, dict) else None
    return section if isinstance(section, dict) else None


def _convert(document: Any, kind: type[_TableT], name: str, prefix: str) -> _TableT:
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise _explain(error, document, kind, name, prefix) from error


def _explain(error: Exception, document: Any, kind: type[Table], name: str, prefix: str) -> ConfigError:
    match = _AT.match(str(error))
    what = match["what"] if match else str(error)
    key = _find(match["key"].removeprefix("$").removeprefix(".") if match else "", document, kind, str(error))
    unknown = _UNKNOWN.match(what)
    if unknown is None:
        return ConfigError(
            "config-value",
            f"{printable(name)}: {prefix}{printable(key)}: {printable(what)}",
            _right_form(key, _value_at(document, key), what),
            file=name,
            key=f"{prefix}{key}" or None,
        )
    table = _table_at(key, kind)
    names = [field.encode_name for field in msgspec.structs.fields(table)]
    inside = f"{key}." if key else ""
    return ConfigError(
        "config-key",
        f"{printable(name)}: unknown key {prefix}{printable(inside + unknown[1])}",
        nearest(unknown[1], names) or f"known keys: {', '.join(names)}",
        file=name,
        key=f"{prefix}{inside}{unknown[1]}",
    )


def _right_form(key: str, value: Any, what: str) -> str:
    """Show how a value is written that has the wrong type."""
    name = key.rpartition(".")[2]
    if "Expected `array`" in what and isinstance(value, str):
        words = value.split() if name in ("entrypoint", "cmd") else [value]
        return f"write an array: {name} = [{', '.join(map(_quoted, words))}]"
    if "Expected `str`" in what and isinstance(value, int | float):
        return f"write it in quotes: {name} = {_quoted(str(value).lower())}"
    if "Expected `int" in what and isinstance(value, str) and value.isdecimal():
        return f"write it without quotes: {name} = {value}"
    if "Expected `bool`" in what:
        return f"write {name} = true or {name} = false"
    if "Expected `object`" in what:
        return f"write a table: [{key}]"
    return "`detlayer schema` prints the type of each key"


def _quoted(text: str) -> str:
    return '"' + printable(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _value_at(document: Any, key: str) -> Any:
    """Return the value at a key such as `images.app.layers[0]`; None if there is none."""
    for part in re.findall(r"[^.\[\]]+", key):
        if isinstance(document, list) and part.isdecimal() and int(part) < len(document):
            document = document[int(part)]
        else:
            document = document.get(part) if isinstance(document, dict) else None
    return document


def _find(key: str, document: Any, kind: type[Table], message: str) -> str:
    """Replace `[...]`, which msgspec writes for any key, by the names of keys that fail alone."""
    while "[...]" in key:
        before, _, after = key.partition("[...]")
        at: Any = document
        path = re.findall(r"[^.\[\]]+", before)
        for part in path:
            at = at[int(part)] if isinstance(at, list) else at[part]
        if not isinstance(at, dict):
            return key
        for one in at:
            try:
                msgspec.convert(_only(document, path, one), kind)
            except msgspec.ValidationError as error:
                if str(error) == message:
                    key = f"{before}.{one}{after}"
                    break
        else:
            return key
    return key.lstrip(".")


def _only(document: Any, path: list[str], name: str) -> Any:
    """Copy a document with only one key in the table at `path`."""
    if not path:
        return {name: document[name]}
    if isinstance(document, list):
        index = int(path[0])
        return [_only(one, path[1:], name) if at == index else one for at, one in enumerate(document)]
    return {key: _only(one, path[1:], name) if key == path[0] else one for key, one in document.items()}


def _table_at(key: str, kind: type[Table]) -> type[Table]:
    """Return the type of the table at a key such as `images.app.layers[0]`."""
    table = kind
    parts = re.findall(r"[^.\[\]]+", key)
    if kind is FileTable and parts:
        top, parts = parts[0], parts[1:]
        if top == "layers":
            return LayerTable
        table = ImageTable
        if top == "images":
            parts = parts[1:]
    return BY_KEY[parts[0]] if parts and parts[0] in BY_KEY else table

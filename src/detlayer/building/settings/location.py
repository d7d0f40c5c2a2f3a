"""The location of a setting, for errors: file, key and line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from detlayer.errors import ConfigError, printable

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]")
_ASSIGNMENT = re.compile(r"\s*([^=#\[\]\s][^=#]*?)\s*=")
_MULTILINE = re.compile(r"\"\"\"(?:\\.|[^\\])*?\"\"\"|'''.*?'''", re.DOTALL)
_PART = re.compile(r"\"([^\"]*)\"|'([^']*)'|([^.\s\"']+)")


class Location(NamedTuple):
    """A file and a key in it, such as `images.app.layers[0]`; an empty key means the whole file."""

    file: str
    key: str = ""

    def __str__(self) -> str:
        return f"{printable(self.file)}: {self.key}" if self.key else printable(self.file)

    def __truediv__(self, name: str) -> Location:
        """Return the location of a key of this table."""
        return Location(self.file, f"{self.key}.{name}" if self.key else name)

    def item(self, index: int) -> Location:
        """Return the location of an item of this list."""
        return Location(self.file, f"{self.key}[{index}]")

    def error(self, code: str, message: str, hint: str) -> ConfigError:
        """Return an error about the value here."""
        return ConfigError(code, f"{self}: {message}", hint, file=self.file, key=self.key or None)

    @contextmanager
    def located(self) -> Iterator[None]:
        """Add file and key to errors about the value here."""
        try:
            yield
        except ConfigError as error:
            raise self.error(error.code, error.message, error.hint) from error


def add_line(error: ConfigError, read: Callable[[str], bytes | None]) -> None:
    """Set the line of an error that has a file and a key; `read` returns the content of the file."""
    if error.file is not None and error.line is None and error.key is not None:
        error.line = find_line((read(error.file) or b"").decode("utf-8", "replace"), error.key)


def find_line(text: str, key: str) -> int | None:
    """Return the line of a key in TOML text, from 1, or that of its table or of a key inside it; None if not found.

    Only looks at headers and the start of lines, so a key in an inline table has the line of that table.
    """
    wanted = tuple(re.findall(r"[^.\[\]]+", key))
    table: tuple[str, ...] = ()
    counts: dict[tuple[str, ...], int] = {}
    best, best_line = 0, None
    text = _MULTILINE.sub(lambda match: "\n" * match[0].count("\n"), text)
    for number, line in enumerate(text.split("\n"), 1):
        if header := _HEADER.match(line):
            table = _indexed(_parts(header[2]), counts, is_item=header[1] == "[[")
            at = table
        elif assignment := _ASSIGNMENT.match(line):
            at = (*table, *_parts(assignment[1]))
        else:
            continue
        common = min(len(at), len(wanted))
        if common > best and wanted[:common] == at[:common]:
            best, best_line = common, number
    return best_line


def _parts(key: str) -> tuple[str, ...]:
    return tuple(next(filter(None, match.groups()), "") for match in _PART.finditer(key))


def _indexed(path: tuple[str, ...], counts: dict[tuple[str, ...], int], *, is_item: bool) -> tuple[str, ...]:
    """Add the index of each `[[…]]` item to the path of a header, as in the keys of errors."""
    indexed: tuple[str, ...] = ()
    for at, part in enumerate(path):
        indexed += (part,)
        if at == len(path) - 1 and is_item:
            counts[indexed] = counts.get(indexed, -1) + 1
        if indexed in counts:
            indexed += (str(counts[indexed]),)
    return indexed

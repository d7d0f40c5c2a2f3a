"""The error families. Knows no other module and no exit code (`cli.exits` maps one to the other).

Every error carries a stable kebab-case `code` (documented in docs/errors.md, part of JSON output), a `message` that
says what is wrong with which thing, and a `hint` that says what to do about it.
"""

from __future__ import annotations


class DetlayerError(Exception):
    """The base of everything that detlayer raises on purpose."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class ConfigError(DetlayerError):
    """What was asked for makes no sense: options, patterns, settings."""


class TreeError(DetlayerError):
    """The source tree can't be packed as it is, or changed meanwhile."""


class LayerError(DetlayerError):
    """A sequence of entries or an input tar breaks the format."""


class IntegrityError(DetlayerError):
    """A digest or size is not what it should be."""


class OutputError(DetlayerError):
    """The result could not be written: no space, no permission, no such directory."""


def printable(raw: bytes | str) -> str:
    """Show a path on one line: control characters, line breaks and bytes that are not UTF-8 become escapes."""
    text = raw.decode("utf-8", "backslashreplace") if isinstance(raw, bytes) else raw
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)

"""Exception classes. Imports no other module; `cli.exits` maps them to exit codes.

Every error has a stable kebab-case `code` (documented in docs/errors.md, part of JSON output), a `message` that says
what is wrong, and a `hint` that says how to fix it.
"""

from __future__ import annotations


class DetlayerError(Exception):
    """The base class of all errors that detlayer raises deliberately."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class ConfigError(DetlayerError):
    """An option, argument or setting is invalid.

    For errors in a project file, `file` is its path, `key` the dotted path of the setting, such as
    `images.app.layers[0].sources`, and `line` the line of that, from 1. Each is None if unknown.
    """

    def __init__(
        self,
        code: str,
        message: str,
        hint: str = "",
        *,
        file: str | None = None,
        line: int | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(code, message, hint)
        self.file = file
        self.line = line
        self.key = key


class TreeError(DetlayerError):
    """The source tree can't be packed, or changed while it was read."""


class LayerError(DetlayerError):
    """A sequence of entries or an input tar is invalid."""


class FormatError(LayerError):
    """An input is not a tar, or its compression is not supported in layers."""


class UnreadableError(LayerError):
    """An input can't be read because of an operating system error, so its contents are unknown."""


class IntegrityError(DetlayerError):
    """A digest or size does not match."""


class OutputError(DetlayerError):
    """The result could not be written: no space, no permission, no such directory."""


class RegistryError(DetlayerError):
    """A registry request failed."""


class AuthError(RegistryError):
    """The registry or its token service denied access."""


class NotFoundError(RegistryError):
    """The registry does not have the object, or hides it from this user."""


class RejectedError(RegistryError):
    """The registry rejected the request permanently: a retry would not help."""


class UnavailableError(RegistryError):
    """The registry is unreachable or busy: a retry may help."""


def printable(raw: bytes | str) -> str:
    """Format a path on one line: control characters, line breaks and bytes that are not UTF-8 are escaped.

    Also escapes what GitHub's runner takes for a command in its log: `::` at the start of a line, `##[` anywhere.
    """
    text = raw.decode("utf-8", "backslashreplace") if isinstance(raw, bytes) else raw
    if not text.isprintable():
        text = "".join(
            c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text
        )
    if "##[" in text:
        text = text.replace("##[", "#\\x23[")
    if "::" in text and text.lstrip().startswith("::"):
        text = text.replace("::", "\\x3a:", 1)
    return text

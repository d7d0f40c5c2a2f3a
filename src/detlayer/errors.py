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
    """An option, argument or setting is invalid.

    Errors in a project file have its path as `file`, the dotted path of the setting as `key`, such as
    `images.app.layers[0].sources`, and the line of that, from 1. Each is None where it is not known.
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
    """The source tree can't be packed as it is, or changed meanwhile."""


class LayerError(DetlayerError):
    """A sequence of entries or an input tar breaks the format."""


class FormatError(LayerError):
    """An input is not a tar, or compressed in a way that layers are not."""


class UnreadableError(LayerError):
    """An input cannot be read, for a reason of the system's: nothing is known of what it holds."""


class IntegrityError(DetlayerError):
    """A digest or size is not what it should be."""


class OutputError(DetlayerError):
    """The result could not be written: no space, no permission, no such directory."""


class RegistryError(DetlayerError):
    """A registry did not do what was asked."""


class AuthError(RegistryError):
    """The registry, or its token service, does not let us."""


class NotFoundError(RegistryError):
    """The registry has no such thing, or does not say so to us."""


class RejectedError(RegistryError):
    """The registry refuses for good: trying again would not help."""


class UnavailableError(RegistryError):
    """The registry can't be reached, or can't answer now: trying again may help."""


def printable(raw: bytes | str) -> str:
    """Show a path on one line: control characters, line breaks and bytes that are not UTF-8 become escapes.

    So does what would make a command for GitHub's runner of a line of its log: `::` at the start, `##[` anywhere.
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

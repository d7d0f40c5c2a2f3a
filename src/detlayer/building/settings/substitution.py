"""Fill in variables (`${NAME}`, from an allow-list) and placeholders (`{platform}` and others)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from detlayer.building.settings.location import Location
from detlayer.errors import ConfigError, printable

_VARIABLE = re.compile(r"\$(\$\{)|\$\{([^}]*)\}")
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?\Z", re.DOTALL)
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


def nearest(name: str, names: Collection[str]) -> str:
    """Return a hint with the most similar name; empty if there is none."""
    found = get_close_matches(name, names, 1, 0.6)
    return f"did you mean {found[0]}?" if found else ""


def expand(value: Any, location: Location, allowed: Collection[str], environment: Mapping[str, str]) -> Any:
    """Expand `${NAME}` and `${NAME:-default}` in all values of a document; `$${` gives `${`. Raises ConfigError.

    Only allowed names are expanded, so that the file lists everything that a build reads from its environment.
    """
    if isinstance(value, dict):
        return {key: expand(one, location / key, allowed, environment) for key, one in value.items()}
    if isinstance(value, list):
        return [expand(one, location.item(index), allowed, environment) for index, one in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value

    def fill(match: re.Match[str]) -> str:
        if match[1]:
            return "${"
        parts = _NAME.match(match[2])
        if parts is None:
            raise location.error(
                "variable-invalid",
                f"invalid variable {printable(match[0])}",
                "use ${NAME} or ${NAME:-default}, or $${ for a literal ${",
            )
        name, default = parts[1], parts[2]
        if name not in allowed:
            raise location.error(
                "variable-not-allowed",
                f"${{{name}}} is not in `variables` of this file",
                nearest(name, allowed) or f'add variables = ["{name}"], or use $${{{name}}} for a literal ${{{name}}}',
            )
        found = environment.get(name)
        if found is None and default is None:
            raise location.error(
                "variable-unset",
                f"{name} is not set",
                f"set it in the environment, or use ${{{name}:-default}}",
            )
        return default if found is None and default is not None else found or ""

    return _VARIABLE.sub(fill, value)


def fill(text: str, values: Mapping[str, str]) -> str:
    """Replace `{name}` for the given names; `{{` gives `{`. Raises ConfigError for any other name."""

    def one(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        if match[1] not in values:
            raise ConfigError(
                "placeholder-unknown",
                f"unknown placeholder {printable(match[0])}",
                nearest(match[1], values)
                or f"use {', '.join(f'{{{name}}}' for name in values)}, or {{{{ for a literal {{",
            )
        return values[match[1]]

    return _PLACEHOLDER.sub(one, text)


def has_placeholder(text: str) -> bool:
    """Return whether a text has placeholders."""
    return any(match[1] is not None for match in _PLACEHOLDER.finditer(text))

"""What each error, warning and trap means, with an example and a fix: the texts of `detlayer explain` and of the docs.

The texts are the TOML files of this folder, one for each group; docs/errors.md and docs/traps.md are generated from
them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from importlib.resources import files
from typing import Literal

import msgspec

ExplanationType = Literal["error", "warning", "trap"]

GROUPS: dict[str, str] = {
    "errors-command-line": "Command line and Python API",
    "errors-sources": "Sources and file systems",
    "errors-layers": "Layers",
    "errors-images": "Images, layouts and archives",
    "errors-registries": "Registries",
    "errors-builds": "Projects and builds",
    "errors-cache": "Cache",
    "errors-outputs": "Outputs",
    "warnings": "Warnings",
    "traps-tar": "How the tar is written",
    "traps-compression": "How the blob is compressed",
    "traps-contents": "What files contain",
    "traps-images": "Corrupt or unexpected images",
    "traps-runs": "What two builds differ in",
}
"""The files, in the order in which they are listed, each with its title."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """The text for one code. `exit` is the exit code of an error, and None for warnings and traps."""

    code: str
    type: ExplanationType
    group: str
    exit: int | None = None
    title: str
    meaning: str
    example: str
    fix: str


class _Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    title: str
    meaning: str
    example: str
    fix: str
    exit: int | None = None


def read_explanations() -> list[Explanation]:
    """Read all texts, group by group, in the order of the files."""
    return [explanation for group in GROUPS for explanation in _read_group(group)]


def find_explanations(code: str) -> list[Explanation]:
    """Return the texts for a code: one code may name an error and a warning or trap. Empty if there are none."""
    return [one for one in read_explanations() if one.code == code]


def similar_codes(code: str) -> list[str]:
    """Return up to three known codes that look like an unknown one, the most similar first."""
    return get_close_matches(code, dict.fromkeys(one.code for one in read_explanations()), n=3, cutoff=0.6)


def _read_group(group: str) -> Iterator[Explanation]:
    data = files(__package__).joinpath(f"{group}.toml").read_text("utf-8")
    explanation_type: ExplanationType = (
        "trap" if group.startswith("traps-") else "warning" if group == "warnings" else "error"
    )
    for code, text in msgspec.convert(tomllib.loads(data), dict[str, _Text]).items():
        yield Explanation(
            code=code,
            type=explanation_type,
            group=group,
            exit=text.exit,
            title=text.title.strip(),
            meaning=text.meaning.strip(),
            example=text.example.strip(),
            fix=text.fix.strip(),
        )

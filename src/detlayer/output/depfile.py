"""Dependency files for make and ninja: the rule with the inputs of an output."""

from __future__ import annotations

import re

from detlayer.errors import TreeError, printable


def rule(target: bytes, dependencies: list[bytes]) -> bytes:
    """Write `target: dependencies`, and an empty rule for each dependency.

    The empty rules (as of `gcc -MP`) let make continue after a file was deleted. Raises TreeError for names that make
    or ninja would misread.
    """
    escaped = [_escape(path) for path in dependencies]
    lines = [b" \\\n  ".join([_escape(target) + b":", *escaped])]
    # On the left side, a % makes a pattern rule, and a = an assignment.
    lines += [path + b":" for path in escaped if b"%" not in path and b"=" not in path]
    return b"\n".join(lines) + b"\n"


# Control characters; terminators of a list of prerequisites; a backslash before an escaped character, or at the end; a
# leading ~; `lib(member)`, which make reads as a part of an archive.
_UNWRITABLE = re.compile(rb"[\0-\x1f;|]|\\(?=[ #:$\\]|\Z)|\A~|\A[^(]+\(.+\)\Z| \Z", re.DOTALL)


def _escape(path: bytes) -> bytes:
    if _UNWRITABLE.search(path) is not None:
        raise TreeError(
            "depfile-name",
            f"{printable(path)} can't be written in a depfile",
            "make and ninja have no common escape for it; rename or exclude it",
        )
    path = path.replace(b"$", b"$$").replace(b"#", b"\\#")
    return path.replace(b" ", b"\\ ").replace(b":", b"\\:")

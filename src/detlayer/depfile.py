"""Dependency files for make and ninja: the rule that says what an output was made of. Never the disk."""

from __future__ import annotations

from detlayer.errors import TreeError, printable


def rule(target: bytes, dependencies: list[bytes]) -> bytes:
    """Write `target: dependencies`, and an empty rule for each dependency.

    The empty rules (as of `gcc -MP`) keep make going after a file was deleted. Raises TreeError for names that neither
    make nor ninja can read.
    """
    escaped = [_escape(path) for path in dependencies]
    lines = [b" \\\n  ".join([_escape(target) + b":", *escaped])]
    lines += [path + b":" for path in escaped if b"%" not in path]  # with a % it would be a pattern rule
    return b"\n".join(lines) + b"\n"


def _escape(path: bytes) -> bytes:
    if any(byte < 0x20 for byte in path) or path.endswith(b"\\"):
        raise TreeError(
            "depfile-name",
            f"{printable(path)} can't be written in a depfile",
            "make and ninja have no spelling for control characters; rename or exclude it",
        )
    path = path.replace(b"$", b"$$").replace(b"#", b"\\#")
    return path.replace(b" ", b"\\ ").replace(b":", b"\\:")

"""Patterns in gitignore syntax: which paths of a source to pack, and which entries a rule applies to.

pathspec translates a pattern to a regular expression. The rules of git around it are here: each path is judged by
itself, the last matching pattern wins, a pattern ending in `/` matches only directories, and nothing below an excluded
directory can be re-included (gitignore(5), "PATTERN FORMAT"). SPEC 4.9.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable

import msgspec

from detlayer.errors import ConfigError, printable
from detlayer.layer.entry import MAX_OWNER, Owner


class Pattern(msgspec.Struct, frozen=True):
    """One compiled pattern. `negated` re-includes paths that an earlier one excluded."""

    text: str
    negated: bool
    dirs_only: bool
    regex: re.Pattern[str]

    def matches(self, path: str, is_dir: bool) -> bool:
        """Tell whether the pattern matches `path` itself (no trailing slash), not only a directory above it."""
        if self.dirs_only and not is_dir:
            return False
        match = self.regex.search(path)
        # pathspec lets a pattern for a directory match paths below it, and marks the slash where it did.
        return match is not None and match.groupdict().get("ps_d") is None


def parse_pattern(text: str) -> Pattern | None:
    """Compile one line of gitignore syntax; None for blanks and comments. Raises ConfigError."""
    from pathspec.patterns.gitignore import GitIgnorePatternError
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

    line = _git_line(text)
    dirs_only = line.endswith("/") and not line.endswith("\\/") and line.strip("/!") != ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about brackets that a later `re` may read differently
            compiled = GitIgnoreSpecPattern(_kept_blank(line[:-1]) if dirs_only else line)
            regex = None if compiled.regex is None else _git_regex(compiled.regex.pattern)
    except (GitIgnorePatternError, re.error) as error:
        raise ConfigError(
            "pattern-invalid", f"invalid gitignore pattern {printable(text)!r}", "see `man gitignore` for the syntax"
        ) from error
    if compiled.include is None or regex is None:
        return None
    return Pattern(text, not compiled.include, dirs_only, regex)


def _git_regex(pattern: str) -> re.Pattern[str]:
    """Correct where pathspec's expressions differ from git: a bracket never matches a slash, names may contain line
    breaks, and `$` must not match before a final line break."""
    guarded = _BRACKET.sub(
        lambda found: found[0] if found[0][0] == "\\" or found[0] == "[^/]" else "(?!/)" + found[0], pattern
    )
    return re.compile(guarded.replace("|$)", r"|\Z)"), re.DOTALL)


_ASTERISKS = re.compile(r"(\\.)|\*{3,}")
_BRACKET = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)


def _kept_blank(stem: str) -> str:
    """Spell a blank before the slash of a directory's pattern so that pathspec does not drop it."""
    if not stem[-1:].isspace():
        return stem
    before = stem[:-1]
    is_escaped = (len(before) - len(before.rstrip("\\"))) % 2
    return f"{before[:-1] if is_escaped else before}[{stem[-1]}]"


def _git_line(text: str) -> str:
    """Rewrite a line so that pathspec reads it as git does: trailing spaces and tabs, and POSIX character classes."""
    line = text.rstrip(" ")
    backslashes = len(line) - len(line.rstrip("\\"))
    if len(line) < len(text) and backslashes % 2:
        line = line[:-1] + "[ ]"  # an escaped space is kept
    elif line and line[-1].isspace():
        line = f"{line[:-1]}[{line[-1]}]"  # git strips only spaces
    line = _ASTERISKS.sub(lambda found: found[1] or "**", line)  # git reads three as two
    line = line.replace("[!/]", "?").replace("[^/]", "?")  # pathspec splits at every slash
    return _POSIX_CLASS.sub(lambda found: _POSIX_CLASSES[found[1]], line)


# The expansion of [:name:] between brackets in git's wildmatch.
_POSIX_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": " \t",
    "digit": "0-9",
    "lower": "a-z",
    "space": " \t\n\v\f\r",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}
_POSIX_CLASS = re.compile(rf"\[:({'|'.join(_POSIX_CLASSES)}):\]")


def parse_patterns(lines: Iterable[str]) -> tuple[Pattern, ...]:
    """Compile lines in order, skipping blanks and comments. Raises ConfigError."""
    return tuple(pattern for pattern in map(parse_pattern, lines) if pattern is not None)


def read_ignore_file(data: bytes, name: str) -> tuple[Pattern, ...]:
    """Compile the bytes of an ignore file; raises ConfigError with its name."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError("ignore-file", f"{printable(name)} is not UTF-8", "save it as UTF-8") from None
    return parse_patterns(line.removesuffix("\r") for line in text.split("\n"))


def excluded(patterns: tuple[Pattern, ...], path: str, is_dir: bool) -> bool:
    """Judge one path by itself: the last matching pattern wins. The walk judges its parent directories."""
    for pattern in reversed(patterns):
        if pattern.matches(path, is_dir):
            return not pattern.negated
    return False


class ModeRules(msgspec.Struct, frozen=True):
    """`--chmod`: the mode of the last pattern that matches a path."""

    rules: tuple[tuple[Pattern, int], ...]

    def __call__(self, path: bytes, is_dir: bool) -> int | None:
        text = path.decode("utf-8", "surrogateescape")
        return next((mode for pattern, mode in reversed(self.rules) if pattern.matches(text, is_dir)), None)


class OwnerRules(msgspec.Struct, frozen=True):
    """`--chown`: the owner of the last pattern that matches a path."""

    rules: tuple[tuple[Pattern, Owner], ...]

    def __call__(self, path: bytes, is_dir: bool) -> Owner | None:
        text = path.decode("utf-8", "surrogateescape")
        return next((owner for pattern, owner in reversed(self.rules) if pattern.matches(text, is_dir)), None)


def parse_mode_rules(texts: Iterable[str]) -> ModeRules | None:
    """Parse `PATTERN=MODE` rules in order; None if there are none. Raises ConfigError."""
    rules = tuple((pattern, parse_mode(value)) for pattern, value in map(_split_rule, texts))
    return ModeRules(rules) if rules else None


def parse_owner_rules(texts: Iterable[str]) -> OwnerRules | None:
    """Parse `PATTERN=UID:GID` rules in order; None if there are none. Raises ConfigError."""
    rules = tuple((pattern, parse_owner(value)) for pattern, value in map(_split_rule, texts))
    return OwnerRules(rules) if rules else None


def parse_mode(text: str) -> int:
    """Parse an octal mode of at most twelve bits; raises ConfigError."""
    if re.fullmatch(r"(0o?)?[0-7]{3,4}", text) is None:
        raise ConfigError("mode-invalid", f"invalid mode {text!r}", "use octal digits, such as 0755 or 4755")
    return int(text.removeprefix("0o"), 8)


def parse_owner(text: str) -> Owner:
    """Parse `UID` or `UID:GID`; without GID, the group has the number of the owner. Raises ConfigError."""
    match = re.fullmatch(r"([0-9]{1,10})(?::([0-9]{1,10}))?", text)
    if match is not None:
        owner = Owner(int(match[1]), int(match[2] or match[1]))
        if owner.uid <= MAX_OWNER and owner.gid <= MAX_OWNER:
            return owner
    raise ConfigError(
        "owner-invalid",
        f"invalid owner {text!r}",
        "use numbers, UID or UID:GID: names may have other numbers on other machines",
    )


def _split_rule(text: str) -> tuple[Pattern, str]:
    left, equals, value = text.rpartition("=")
    pattern = parse_pattern(left) if equals else None
    if pattern is None or pattern.negated:
        raise ConfigError(
            "rule-invalid",
            f"invalid rule {text!r}",
            "write PATTERN=VALUE, such as '*.sh=0755' or '/srv/app/**=1000:1000'",
        )
    return pattern, value

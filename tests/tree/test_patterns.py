"""Patterns (SPEC 4.9): the same results as git, and rules on written paths."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detlayer.errors import ConfigError
from detlayer.layer.entry import Owner
from detlayer.tree.patterns import (
    excluded,
    parse_mode,
    parse_mode_rules,
    parse_owner,
    parse_owner_rules,
    parse_pattern,
    parse_patterns,
    read_ignore_file,
)
from tests.privileges import program

# Created on disk for git; paths with others below them are directories.
PATHS = [
    "a",
    "a/a",
    "a/b",
    "a/b/c",
    "a/b/c/a",
    "a/x.o",
    "b",
    "b/a",
    "b/a/b",
    "b/keep.o",
    "b/.hidden",
    "x.o",
    "y.O",
    "foo",
    "foo/bar",
    "foo/baz",
    "foo/baz/bar",
    "foo/baz/deep",
    "foo/baz/deep/bar",
    "bar",
    "foobar",
    "!bang",
    "#hash",
    "sp ",
    "sp",
    "sp  ",
    " lead",
    "lead",
    "tab\t",
    "tab",
    "back\\slash",
    "star*",
    "starry",
    "[br]",
    "b]",
    "r",
    "q?",
    "qq",
    "é",
    "e\u0301",
    "日本",
    "日本/語",
    "new\nline",
    "new",
    "line",
    "nl",
    "a-b",
    "aab",
    "A",
    "nbsp\u00a0",
    "nbsp",
    "..x",
    "0",
    "z",
]

# A newline in a name often breaks regular expressions: `.` and `$` treat it specially.
BROKEN = ["nl\n", "nl", "x.o\n", "x.o", "dir\nbreak", "dir\nbreak/x.o", "dir\nbreak/a", "dir\nbreak/a/b", "\n", "\n/a"]

FILES = [
    ["a"],
    ["/a"],
    ["a/"],
    ["/a/"],
    ["a/**"],
    ["a/*"],
    ["**/a"],
    ["**/x.o"],
    ["*/"],
    ["/*/"],
    ["*"],
    ["/*"],
    ["**"],
    ["/**"],
    ["**/"],
    ["*/*"],
    ["foo/**/bar"],
    ["foo/**/"],
    ["foo/*/bar"],
    ["**/baz/**"],
    ["a/**/a"],
    ["a/b"],
    ["b/a/"],
    ["*.o"],
    ["*.o", "!keep.o"],
    ["*.o", "!b/keep.o"],
    ["b/", "!b/keep.o"],
    ["b/*", "!b/keep.o"],
    ["*", "!*/", "!*.o"],
    ["/*", "!/foo", "/foo/*", "!/foo/baz"],
    ["a/**", "!a/b/"],
    ["a/**", "!a/b/", "!a/b/c"],
    ["!a", "a"],
    ["a", "!a"],
    [r"\!bang"],
    ["!bang"],
    [r"\#hash"],
    ["#hash"],
    ["sp "],
    ["sp\\ "],
    ["sp\\  "],
    ["sp\\ \\ "],
    ["sp  "],
    ["sp\\"],
    [" lead"],
    ["tab\t"],
    ["nbsp\u00a0"],
    ["back\\\\slash"],
    ["star\\*"],
    ["star*"],
    ["\\[br\\]"],
    ["[br]"],
    ["[!b]"],
    ["[^b]"],
    ["[]]"],
    ["b[]]"],
    ["[a-c]"],
    ["[[:digit:]]"],
    ["[[:alpha:]]"],
    ["[[:upper:]]"],
    ["q\\?"],
    ["q?"],
    ["?"],
    ["a?b"],
    ["a[!/]b"],
    ["é"],
    ["e\u0301"],
    ["日*"],
    ["日本/"],
    ["日本/語"],
    ["nl"],
    ["line"],
    ["new"],
    ["*line"],
    ["new?line"],
    [".*"],
    ["..x"],
    ["./a"],
    ["a//b"],
    ["//a"],
    ["/"],
    ["!"],
    ["\\"],
    ["a\\"],
    ["a\\/"],
    ["f**r"],
    ["foo**bar"],
    ["foo/b**"],
    ["**/**/a"],
    ["a/**/**/a"],
    ["***"],
    ["a**/b"],
    ["[a"],
    ["\\a"],
    ["A"],
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with PATHS that reads only its own ignore file."""
    return new_repository(tmp_path_factory.mktemp("repository"), PATHS)


@pytest.fixture(scope="module")
def broken_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_repository(tmp_path_factory.mktemp("broken"), BROKEN)


def new_repository(root: Path, paths: list[str]) -> Path:
    for path in paths:
        if any(other.startswith(path + "/") for other in paths):
            (root / path).mkdir()
        else:
            (root / path).touch()
    subprocess.run([program("git"), "init", "-q", root], env=git_environment(root), check=True)
    return root


def git_environment(root: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(root), "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}


def ask_git(repository: Path, ignore_file: bytes, paths: list[str] = PATHS) -> set[str]:
    (repository / ".git" / "info" / "exclude").write_bytes(ignore_file)
    command = [program("git"), "check-ignore", "--no-index", "-z", "--stdin"]
    done = subprocess.run(
        command,
        input="\0".join(paths).encode(),
        cwd=repository,
        env=git_environment(repository),
        capture_output=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return {name.decode() for name in done.stdout.split(b"\0") if name}


def ask_us(ignore_file: bytes, paths: list[str] = PATHS) -> set[str]:
    """Match as a walk does: nothing below an excluded directory is checked. Rejected patterns match no path."""
    try:
        patterns = read_ignore_file(ignore_file, "test")
    except ConfigError:
        return set()
    found: set[str] = set()
    for path in paths:
        above = path.rpartition("/")[0]
        is_dir = any(other.startswith(path + "/") for other in paths)
        if above in found or excluded(patterns, path, is_dir):
            found.add(path)
    return found


@pytest.mark.parametrize("lines", FILES, ids=repr)
def test_git_agrees(repository: Path, lines: list[str]) -> None:
    """SPEC 4.9."""
    ignore_file = "\n".join(lines).encode() + b"\n"
    # git's `?` and `[…]` match one byte, ours one character.
    paths = [path for path in PATHS if path.isascii()] if set("?[") & set("".join(lines)) else PATHS
    assert ask_us(ignore_file, paths) == ask_git(repository, ignore_file, paths)


@pytest.mark.parametrize(
    "ignore_file",
    [
        b"a\r\nb\r\n",
        b"a\n\n\nb",
        b"\xef\xbb\xbfa\n",
        b"# comment\na\n",
        b"***/a\n",
        b"a /\n",
        b"a\\ /\n",
        b"a\\\\ /\n",
        b"a\t/\n",
        b"a/***\n",
        b"a/****/b\n",
        b"x\x0bfoo\n",
        b"x\x0cfoo\n",
        b"x\xc2\x85foo\n",
        b"x\xe2\x80\xa8foo\n",
        b"x\x1cfoo\n",
        b"x\rfoo\n",
        b"",
    ],
)
def test_git_agrees_on_lines(repository: Path, ignore_file: bytes) -> None:
    """SPEC 4.9: only newlines end lines, not the other line breaks of Unicode."""
    assert ask_us(ignore_file) == ask_git(repository, ignore_file)


PIECES = st.sampled_from(("a", "b", "foo", "bar", "baz", "*", "**", "?", "/", "/", "!", "*.o", "x", "[ab]", "\\", " "))


@given(lines=st.lists(st.lists(PIECES, min_size=1, max_size=5).map("".join), min_size=1, max_size=3))
@settings(max_examples=150)
def test_git_agrees_on_any(repository: Path, lines: list[str]) -> None:
    """SPEC 4.9."""
    good = [line for line in lines if accepted(line) and not is_undefined(line)]
    ignore_file = "\n".join(good).encode()
    paths = [path for path in PATHS if path.isascii()]
    assert ask_us(ignore_file, paths) == ask_git(repository, ignore_file, paths)


def is_undefined(line: str) -> bool:
    """Tell whether `**` follows a character other than a slash, as in `a**/b`.

    gitignore(5) reads it as `*`, and so do we. git before 2.41 compares unrelated pointers, and sometimes does not.
    """
    return re.search(r"[^/*]\*\*+(?:/|\Z)", line) is not None


@pytest.mark.parametrize("line", ["a**/a", "a**", "/a**/a"])
def test_two_asterisks_behind_a_letter_are_one(line: str) -> None:
    """SPEC 4.9, gitignore(5): other consecutive asterisks are regular asterisks."""
    assert ask_us(line.encode()) == ask_us(line.replace("**", "*").encode())


def accepted(line: str) -> bool:
    try:
        parse_patterns([line])
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize(
    "line", ["nl", "*.o", "a", "**/a", "dir*/", "dir?break/*", "dir*/a", "/dir*/a", "x.o", "?", "*"]
)
def test_git_agrees_on_names_with_newlines(broken_repository: Path, line: str) -> None:
    """SPEC 4.9: a newline is an ordinary character."""
    assert ask_us(line.encode(), BROKEN) == ask_git(broken_repository, line.encode(), BROKEN)


def test_wildcards_are_for_characters() -> None:
    """SPEC 4.9: characters count, not bytes as in git."""
    assert excluded(parse_patterns(["?本"]), "日本", False)
    assert excluded(parse_patterns(["[日月]本"]), "日本", False)
    assert not excluded(parse_patterns(["???本"]), "日本", False)


def test_last_match_wins() -> None:
    """SPEC 4.9."""
    patterns = parse_patterns(["*.o", "!keep.o", "k*"])
    assert [excluded(patterns, name, False) for name in ("a.o", "keep.o", "b")] == [True, True, False]
    assert not excluded(parse_patterns(["*.o", "!keep.o"]), "keep.o", False)


def test_blanks_and_comments_are_no_patterns() -> None:
    """SPEC 4.9."""
    assert parse_patterns(["", "  ", "# comment", "a"]) == (parse_pattern("a"),)


@pytest.mark.parametrize("text", ["!", "a/\\", "[z-a]", "foo\\/bar"])
def test_bad_patterns_are_refused_or_match_nothing(text: str) -> None:
    """SPEC 4.9."""
    try:
        pattern = parse_pattern(text)
    except ConfigError as error:
        refusal = error
    else:
        assert pattern is None or not any(pattern.matches(path, False) for path in PATHS)
        return
    assert refusal.code == "pattern-invalid"
    assert refusal.hint


def test_ignore_file_is_utf8() -> None:
    """SPEC 4.9."""
    with pytest.raises(ConfigError, match="some\\\\nname is not UTF-8") as caught:
        read_ignore_file(b"\xff", "some\nname")
    assert caught.value.code == "ignore-file"


@pytest.mark.parametrize(
    ("text", "mode"),
    [("0755", 0o755), ("755", 0o755), ("4755", 0o4755), ("04755", 0o4755), ("0o644", 0o644), ("000", 0)],
)
def test_modes(text: str, mode: int) -> None:
    """SPEC 4.3."""
    assert parse_mode(text) == mode


@pytest.mark.parametrize(
    "text", ["", "7", "75", "855", "17777", "u+x", "-755", "0x755", "755 ", "755\n", "\u0667\u0665\u0665"]
)
def test_bad_modes(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_mode(text)
    assert caught.value.code == "mode-invalid"


@pytest.mark.parametrize(
    ("text", "owner"),
    [("0", Owner(0, 0)), ("5", Owner(5, 5)), ("5:6", Owner(5, 6)), ("4294967294", Owner(4294967294, 4294967294))],
)
def test_owners(text: str, owner: Owner) -> None:
    """SPEC 4.2."""
    assert parse_owner(text) == owner


@pytest.mark.parametrize(
    "text", ["", "root", "-1", "1:", ":1", "1:2:3", "4294967295", "1:4294967295", "1 ", "1\n", "\u0661"]
)
def test_bad_owners(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_owner(text)
    assert caught.value.code == "owner-invalid"


def test_mode_rules() -> None:
    """SPEC 4.3: on written paths, the last match wins, `/` at the end is for directories only."""
    rules = parse_mode_rules(["*.sh=755", "/srv/app/**=0600", "bin/=711", "a=b=640", "x.sh=4755"])
    assert rules is not None
    asked = [
        (b"a.sh", False),
        (b"srv/app/a.sh", False),
        (b"bin", True),
        (b"bin", False),
        (b"a=b", False),
        (b"x.sh", False),
    ]
    assert [rules(path, is_dir) for path, is_dir in asked] == [0o755, 0o600, 0o711, None, 0o640, 0o4755]


def test_a_rule_is_for_what_matches_itself() -> None:
    """SPEC 4.3: a rule for a directory does not apply to files below it."""
    rules = parse_owner_rules(["/srv=1:2"])
    assert rules is not None
    assert rules(b"srv", True) == Owner(1, 2)
    assert rules(b"srv/a", False) is None


@pytest.mark.parametrize("text", ["", "a", "=755", "!a=755", "#a=755", " =755"])
def test_bad_rules(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_mode_rules([text])
    assert caught.value.code == "rule-invalid"


@pytest.mark.parametrize("text", ["a=", "a=9", "a=rwx"])
def test_bad_rule_values(text: str) -> None:
    for parse in (parse_mode_rules, parse_owner_rules):
        if text == "a=9" and parse is parse_owner_rules:
            continue
        with pytest.raises(ConfigError):
            parse([text])


def test_no_rules_are_none() -> None:
    assert parse_mode_rules([]) is None
    assert parse_owner_rules([]) is None

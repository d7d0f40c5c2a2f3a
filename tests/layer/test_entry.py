"""Entries: values that are equal everywhere, paths, order (SPEC 3, 4)."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given

from detlayer.errors import LayerError, TreeError, printable
from detlayer.layer.entry import (
    DEFAULT_MTIME,
    MAX_MTIME,
    PATH_MAX_BYTES,
    Entry,
    EntryKind,
    Mtime,
    Owner,
    Profile,
    check_path,
    marker,
    normalize,
    parent,
)
from detlayer.layer.order import OrderChecker, order_key
from tests import strategies

SOURCE = Profile(mtime=Mtime("source"), owner=None, mode="source")


def made(kind: EntryKind = "file", mode: int = 0o600, path: bytes = b"a") -> Entry:
    return Entry(path, kind, mode, 1000, 1001, 1700000000)


def check_follows(entry: Entry, previous: Entry) -> None:
    order = OrderChecker()
    order.check(previous)
    order.check(entry)


def test_default_mtime_is_2000() -> None:
    """SPEC 4.1."""
    assert DEFAULT_MTIME == 946684800
    assert normalize(made(), Profile()).mtime == DEFAULT_MTIME


@pytest.mark.parametrize(
    ("policy", "seconds", "found", "wanted"),
    [
        ("fixed", 5, 1700000000, 5),
        ("source", 5, 1700000000, 1700000000),
        ("source", 5, 0, 0),
        ("source", 5, MAX_MTIME, MAX_MTIME),
        ("clamp", 100, 99, 99),
        ("clamp", 100, 100, 100),
        ("clamp", 100, 101, 100),
        ("clamp", 100, MAX_MTIME + 1, 100),
    ],
)
def test_mtime_policies(policy: str, seconds: int, found: int, wanted: int) -> None:
    """SPEC 4.1."""
    profile = Profile(mtime=Mtime(policy, seconds))  # type: ignore[arg-type]
    assert normalize(Entry(b"a", "file", mtime=found), profile).mtime == wanted


@pytest.mark.parametrize(("policy", "found"), [("source", -1), ("source", MAX_MTIME + 1), ("clamp", -1)])
def test_mtime_without_room_is_an_error(policy: str, found: int) -> None:
    """SPEC 4.1."""
    with pytest.raises(TreeError, match="a: modification time") as caught:
        normalize(Entry(b"a", "file", mtime=found), Profile(mtime=Mtime(policy)))  # type: ignore[arg-type]
    assert caught.value.code == "mtime-out-of-range"
    assert caught.value.hint


def test_fixed_mtime_takes_any_file_time() -> None:
    """SPEC 4.1: a value that is not written need not fit."""
    assert normalize(Entry(b"a", "file", mtime=-5), Profile()).mtime == DEFAULT_MTIME


def test_owner() -> None:
    """SPEC 4.2."""
    values = [normalize(made(), Profile(owner=owner)) for owner in (Owner(), Owner(7, 8), None)]
    assert [(entry.uid, entry.gid) for entry in values] == [(0, 0), (7, 8), (1000, 1001)]


@pytest.mark.parametrize(
    ("kind", "mode", "canonical", "source"),
    [
        ("file", 0o600, 0o644, 0o600),
        ("file", 0o644, 0o644, 0o644),
        ("file", 0o700, 0o755, 0o700),
        ("file", 0o611, 0o644, 0o611),  # only the owner's bit counts
        ("file", 0o100, 0o755, 0o100),
        ("file", 0o6755, 0o755, 0o6755),
        ("dir", 0o700, 0o755, 0o700),
        ("dir", 0o1777, 0o755, 0o1777),
        ("dir", 0o2775, 0o755, 0o2775),
        ("symlink", 0o755, 0o777, 0o777),
    ],
)
def test_mode(kind: EntryKind, mode: int, canonical: int, source: int) -> None:
    """SPEC 4.3."""
    assert normalize(made(kind, mode), Profile()).mode == canonical
    assert normalize(made(kind, mode), SOURCE).mode == source


@pytest.mark.parametrize(
    ("path", "mode"), [(b"tmp", 0o1777), (b"var/tmp", 0o1777), (b"root", 0o700), (b"x/tmp", 0o755)]
)
def test_well_known_directories(path: bytes, mode: int) -> None:
    """SPEC 4.4: as an entry and as a parent."""
    assert normalize(made("dir", 0o755, path), Profile()).mode == mode
    assert parent(path, Profile()).mode == mode


def test_parent_is_roots_whatever_the_profile() -> None:
    """SPEC 4.4."""
    profile = Profile(mtime=Mtime("source"), owner=Owner(5, 6), mode="source")
    assert parent(b"opt", profile) == Entry(b"opt", "dir", 0o755, 0, 0, DEFAULT_MTIME)


def test_parent_takes_fixed_time_and_rules() -> None:
    """SPEC 4.4."""
    profile = Profile(
        mtime=Mtime("fixed", 7), mode_rule=lambda path, is_dir: 0o711, owner_rule=lambda p, d: Owner(1, 2)
    )
    assert parent(b"opt", profile) == Entry(b"opt", "dir", 0o711, 1, 2, 7)


def test_marker_is_an_empty_file_of_root() -> None:
    """SPEC 4.10."""
    assert marker(b".wh.a", Profile(owner=Owner(9, 9))) == Entry(b".wh.a", "file", 0o644, 0, 0, DEFAULT_MTIME)


def test_rules_override_and_get_path_and_kind() -> None:
    """SPEC 4.3: rules override the canonical mode, and do not apply to symlinks."""
    asked: list[tuple[bytes, bool]] = []

    def rule(path: bytes, is_dir: bool) -> int | None:
        asked.append((path, is_dir))
        return None if path == b"quiet" else 0o4711

    profile = Profile(mode_rule=rule)
    kinds: list[tuple[EntryKind, bytes]] = [("file", b"a"), ("dir", b"d"), ("symlink", b"s"), ("file", b"quiet")]
    assert [normalize(made(kind, 0o644, path), profile).mode for kind, path in kinds] == [0o4711, 0o4711, 0o777, 0o644]
    assert asked == [(b"a", False), (b"d", True), (b"quiet", False)]


@given(strategies.loose_entries(), strategies.profiles())
def test_normalize_is_idempotent(entry: Entry, profile: Profile) -> None:
    """SPEC 4."""
    once = normalize(entry, profile)
    assert normalize(once, profile) == once


@pytest.mark.parametrize(
    ("name", "patterns", "wanted"),
    [
        ("user.a", (), False),
        ("user.a", ("user.*",), True),
        ("user.a", ("USER.*",), False),
        ("security.capability", ("security.capability",), True),
        ("security.selinux", ("*",), False),
        ("security.selinux", ("security.selinux",), False),
        ("system.nfs4_acl", ("system.*",), False),
        ("system.posix_acl_access", ("system.*",), True),
        ("trusted.overlay.opaque", ("trusted.*",), False),
        ("com.apple.quarantine", ("*",), False),
    ],
)
def test_xattr_choice(name: str, patterns: tuple[str, ...], wanted: bool) -> None:
    """SPEC 4.6."""
    assert Profile(xattrs=patterns).wants_xattr(name) is wanted


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"/",
        b"/a",
        b"a/",
        b"a//b",
        b".",
        b"..",
        b"./a",
        b"a/.",
        b"a/./b",
        b"a/../b",
        b"../a",
        b"a/..",
        b"a\0b",
        b"\0",
    ],
)
def test_bad_paths(path: bytes) -> None:
    """SPEC 3.2."""
    with pytest.raises(LayerError) as caught:
        check_path(path)
    assert caught.value.code == "entry-path"


@pytest.mark.parametrize(
    "path",
    [
        b"a",
        b".a",
        b"..a",
        b"a..",
        b"...",
        b"a/...",
        b"a/.b",
        b"a\nb",
        b" ",
        b"\x7f",
        "é".encode(),
        b"a" * PATH_MAX_BYTES,
    ],
)
def test_good_paths(path: bytes) -> None:
    """SPEC 3.2: any other byte is allowed."""
    check_path(path)


@pytest.mark.parametrize("path", [b"\xff", b"a/\xc3", b"\xed\xa0\x80", b"\xc0\xaf"])
def test_paths_are_utf8(path: bytes) -> None:
    """SPEC 3.2: surrogates and overlong forms are not UTF-8 either."""
    with pytest.raises(TreeError) as caught:
        check_path(path)
    assert caught.value.code == "name-not-utf8"
    assert "\\x" in caught.value.message


def test_path_over_path_max() -> None:
    """SPEC 3.2."""
    with pytest.raises(TreeError, match="4096 bytes") as caught:
        check_path(b"a" * (PATH_MAX_BYTES + 1))
    assert caught.value.code == "path-too-long"


ORDERED = [
    b".wh..wh..opq",
    b".wh.zzz",
    b"!",
    b".wg",
    b"A",
    b"a",
    b"a/.wh.gone",
    b"a/+",
    b"a/b",
    b"a/b/c",
    b"a\x01",
    b"a b",
    b"a-b",
    b"a.b",
    b"a0",
    b"a0/.wh.x",
    b"a0/b",
    b"b",
    b"b.wh.c",
    b"\xc3\xa9",
]


def test_order() -> None:
    """SPEC 3.4: component by component, whiteouts first."""
    assert sorted(random.Random(4).sample(ORDERED, len(ORDERED)), key=order_key) == ORDERED


def test_neighbours_are_held_to_the_order() -> None:
    """SPEC 3.4: the fast comparison agrees with the key, for every two paths."""
    for before, after in itertools.combinations(ORDERED, 2):
        check_follows(Entry(after, "dir"), Entry(before, "dir"))
        with pytest.raises(LayerError) as caught:
            check_follows(Entry(before, "dir"), Entry(after, "dir"))
        assert caught.value.code == "entry-order"


@given(strategies.paths(), strategies.paths())
def test_neighbours_agree_with_the_key(one: bytes, other: bytes) -> None:
    """SPEC 3.4."""
    before, after = sorted((one, other), key=order_key)
    if before == after:
        return
    check_follows(Entry(after, "dir"), Entry(before, "dir"))
    with pytest.raises(LayerError):
        check_follows(Entry(before, "dir"), Entry(after, "dir"))


@pytest.mark.parametrize("kind", ["file", "symlink", "hardlink"])
def test_only_directories_are_parents(kind: EntryKind) -> None:
    """SPEC 3.3."""
    with pytest.raises(LayerError, match="also the parent") as caught:
        check_follows(Entry(b"a/b/c", "file"), Entry(b"a", kind))
    assert caught.value.code == "file-as-parent"
    check_follows(Entry(b"a/b", "file"), Entry(b"a", "dir"))
    check_follows(Entry(b"ab", "file"), Entry(b"a", kind))


def test_duplicates() -> None:
    """SPEC 3.3."""
    with pytest.raises(LayerError) as caught:
        check_follows(Entry(b"a", "file"), Entry(b"a", "dir"))
    assert caught.value.code == "duplicate-path"


def test_written_path() -> None:
    """SPEC 3.1."""
    assert Entry(b"a/b", "dir").written_path == b"a/b/"
    assert Entry(b"a/b", "file").written_path == b"a/b"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain", "plain"),
        ("é日".encode(), "é日"),
        (b"a\nb", "a\\nb"),
        (b"\x1b[31m", "\\x1b[31m"),
        (b"\xff", "\\xff"),
        ("\u202e".encode(), "\\u202e"),
        ("\udcff", "\\udcff"),
        # GitHub's runner executes lines of a log that begin with the first or contain the second.
        ("::error::x", "\\x3a:error::x"),
        (b"  ::add-mask::x", "  \\x3a:add-mask::x"),
        ("a::b", "a::b"),
        ("a##[stop-commands]b", "a#\\x23[stop-commands]b"),
    ],
)
def test_printable(raw: bytes | str, shown: str) -> None:
    """Names in messages stay on one line."""
    assert printable(raw) == shown

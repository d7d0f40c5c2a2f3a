"""All Hypothesis strategies: paths, entries, entry lists, profiles, trees."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from detlayer.layer.entry import MAX_MTIME, MAX_OWNER, Entry, EntryKind, Mtime, Owner, Profile
from detlayer.layer.order import order_key
from detlayer.layer.writer import BytesContent

# Few letters, so that names meet; bytes around `/` and `.`, which orders go wrong by; control characters and Unicode.
_LETTERS = "ab.A- 0\n\x01é日\u0301!,/"


def names() -> st.SearchStrategy[bytes]:
    text = st.text(_LETTERS.replace("/", ""), min_size=1, max_size=6).filter(lambda name: name not in (".", ".."))
    long = st.integers(90, 120).map(lambda count: "n" * count)
    return st.one_of(text, text, text, long).map(str.encode)


def paths(max_depth: int = 4) -> st.SearchStrategy[bytes]:
    whiteouts = names().map(lambda name: b".wh." + name)
    component = st.one_of(names(), names(), names(), whiteouts)
    return st.lists(component, min_size=1, max_size=max_depth).map(b"/".join)


def owners() -> st.SearchStrategy[int]:
    return st.one_of(st.integers(0, 70000), st.sampled_from((0o7777777, 0o7777777 + 1, MAX_OWNER)))


def mtimes() -> st.SearchStrategy[int]:
    return st.one_of(st.integers(0, 2**32 + 1), st.sampled_from((0, MAX_MTIME)))


def xattrs() -> st.SearchStrategy[tuple[tuple[bytes, bytes], ...]]:
    keys = st.text("abz.é", min_size=1, max_size=5).map(lambda text: b"user." + text.encode())
    return st.dictionaries(keys, st.binary(min_size=1, max_size=40), max_size=3).map(lambda found: tuple(found.items()))


@st.composite
def loose_entries(draw: st.DrawFn, path: bytes | None = None, kind: EntryKind | None = None) -> Entry:
    """One entry of any kind; a hard link points at a path that need not be there."""
    where = draw(paths()) if path is None else path
    what: EntryKind = draw(st.sampled_from(("dir", "file", "symlink", "hardlink"))) if kind is None else kind
    data = draw(st.binary(max_size=1500)) if what == "file" else b""
    targets = st.one_of(paths(), names().map(lambda name: b"/../" + name))
    return Entry(
        where,
        what,
        draw(st.integers(0, 0o7777)),
        draw(owners()),
        draw(owners()),
        draw(mtimes()),
        len(data),
        draw(targets) if what in ("symlink", "hardlink") else b"",
        draw(xattrs()),
        BytesContent(data) if data else None,
    )


@st.composite
def entry_lists(draw: st.DrawFn, max_size: int = 12) -> list[Entry]:
    """Entries in order that a layer can hold: no duplicates, only directories as parents."""
    found = sorted(draw(st.sets(paths(), max_size=max_size)), key=order_key)
    entries: list[Entry] = []
    for path in found:
        is_parent = any(other.startswith(path + b"/") for other in found)
        entries.append(draw(loose_entries(path, "dir" if is_parent else None)))
    return entries


def _rule_mode(path: bytes, is_dir: bool) -> int | None:
    return 0o2750 if is_dir else (0o100 if len(path) % 2 else None)


def _rule_owner(path: bytes, is_dir: bool) -> Owner | None:
    return Owner(3, 4) if len(path) % 2 else None


def profiles() -> st.SearchStrategy[Profile]:
    return st.builds(
        Profile,
        mtime=st.builds(Mtime, st.sampled_from(("fixed", "source", "clamp")), st.integers(0, MAX_MTIME)),
        owner=st.one_of(st.none(), st.builds(Owner, owners(), owners())),
        mode=st.sampled_from(("canonical", "source")),
        mode_rule=st.sampled_from((None, _rule_mode)),
        owner_rule=st.sampled_from((None, _rule_owner)),
    )


@dataclass(frozen=True)
class TreeItem:
    """One thing in a generated tree. `link_of` is the path of the file that it is a hard link of."""

    path: str
    kind: str
    data: bytes = b""
    executable: bool = False
    target: str = ""


_TREE_NAMES = (
    "a",
    "b",
    "a-b",
    "a.d",
    "A",
    "é",
    "e\u0301",
    "日本",
    "x y",
    "tab\tname",
    "-n",
    "z" * 101,
    "#c",
    "new\nline",
)


@st.composite
def trees(draw: st.DrawFn, max_size: int = 14) -> tuple[TreeItem, ...]:
    """A tree in an order in which it can be made: directories before what they hold."""
    directories = [""]
    items: dict[str, TreeItem] = {}
    for _ in range(draw(st.integers(0, max_size))):
        above = draw(st.sampled_from(directories))
        path = f"{above}/{draw(st.sampled_from(_TREE_NAMES))}".lstrip("/")
        if path in items:
            continue
        kind = draw(st.sampled_from(("dir", "file", "file", "symlink")))
        if kind == "dir":
            directories.append(path)
            items[path] = TreeItem(path, kind)
        elif kind == "file":
            data = draw(st.one_of(st.binary(max_size=40), st.integers(500, 520).map(lambda size: b"x" * size)))
            items[path] = TreeItem(path, kind, data, draw(st.booleans()))
        else:
            target = draw(st.sampled_from(("nowhere", "/etc/passwd", "..", "a", "日本/x", "t" * 101)))
            items[path] = TreeItem(path, kind, target=target)
    return tuple(items.values())

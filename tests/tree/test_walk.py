"""Trees on a real file system: valid trees, merging, and error messages (SPEC 3, 4)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from detlayer.errors import ConfigError, DetlayerError, TreeError
from detlayer.layer.entry import DEFAULT_MTIME, Entry, Mtime, Owner, Profile
from detlayer.layer.ports import Bytes
from detlayer.packing import packer
from detlayer.packing.options import PackOptions
from detlayer.tree import Selection, Source, takes
from detlayer.tree.patterns import parse_mode_rules, parse_owner_rules, parse_patterns
from tests.layers import Packed, Words, layer_of, pack_tree, walk_tree
from tests.privileges import NOBODY, as_nobody, mounted, need_root, need_user_xattrs
from tests.trees import File, Link, Spec, list_files, make_deep, make_tree

MIB = 1 << 20


@contextmanager
def refused(code: str, *words: str) -> Iterator[None]:
    """An error of the tree: code, a hint, one line, and the words that the message must contain."""
    with pytest.raises(TreeError) as caught:
        yield
    error = caught.value
    assert error.code == code, error.message
    assert error.hint
    for word in words:
        assert word in error.message
    assert error.message.isprintable() or code == "special-files"


def interfere(src: Path, at: str, action: Callable[[], object]) -> None:
    """Pack, and act after the entry `at` was yielded but before its content is read."""

    def entries() -> Iterator[Entry]:
        for entry in walk_tree(src):
            if entry.path == at.encode():
                action()
            yield entry

    layer_of(entries())


class ActingSink:
    """Acts once, at the first bytes."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action: Callable[[], object] | None = action

    def write(self, data: Bytes, /) -> None:
        if self.action is not None:
            self.action()
            self.action = None


# -- changed while read


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def rewrite(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(b"y" * size)
    os.utime(path, (5, 5))


def replace(path: Path) -> None:
    status = path.stat()
    new = path.with_name("new")
    new.write_bytes(path.read_bytes())
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.replace(path)


@pytest.mark.parametrize("size", [10, 5 * MIB])
@pytest.mark.parametrize(
    "action", [grow, lambda path: os.truncate(path, 5), lambda path: os.truncate(path, 0), rewrite, replace]
)
def test_changed_while_read(src: Path, action: Callable[[Path], object], size: int) -> None:
    """Between listing and reading: grown, shrunk, emptied, rewritten, replaced."""
    make_tree(src, {"sub": {"a": "", "b": b"x" * size, "c": ""}})
    with refused("changed-while-read", "sub/b"):
        interfere(src, "sub/b", lambda: action(src / "sub" / "b"))


def test_changed_in_the_middle(src: Path) -> None:
    """A large file that is rewritten before its second half is read."""
    make_tree(src, {"a": b"x" * (80 * MIB)})
    with refused("changed-while-read", "a"):
        packer.pack([src], output=_Stream(lambda: rewrite(src / "a")), options=PackOptions(compression="none"))  # type: ignore[arg-type]


class _Stream:
    """The subset of a binary stream that an output needs."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.sink = ActingSink(action)

    def write(self, data: Bytes, /) -> int:
        self.sink.write(data)
        return len(data)

    def flush(self) -> None:
        return


@pytest.mark.parametrize("what", ["fifo", "directory", "symlink"])
def test_became_something_else(src: Path, what: str) -> None:
    """A file was replaced before it is opened: no hang on a FIFO, no link followed."""
    path = make_tree(src, {"sub": {"a": "x" * 10, "b": ""}}) / "sub" / "a"

    def change() -> None:
        path.unlink()
        match what:
            case "fifo":
                os.mkfifo(path)
            case "directory":
                path.mkdir()
            case "symlink":
                path.symlink_to("/etc/passwd")

    with pytest.raises(TreeError) as caught:
        interfere(src, "sub/a", change)
    assert caught.value.code in ("changed-while-read", "tree-io")
    assert "sub/a" in caught.value.message


@pytest.mark.parametrize("below", ["", "sub"])
def test_vanished_before_it_is_looked_at(src: Path, below: str) -> None:
    """Deleted after listing: an error that names it, also in the source's root; never an incomplete layer."""
    home = make_tree(src / below, {"a": "1", "b": "2", "c": "3"})
    first = f"{below}/a".lstrip("/")
    with refused("vanished", "/b "):
        interfere(src, first, lambda: (home / "b").unlink())


def test_vanished_from_one_of_two_sources(tmp_path: Path) -> None:
    one = make_tree(tmp_path / "one", {"a": "1", "b": "2"})
    two = make_tree(tmp_path / "two", {"c": "3"})

    def entries() -> Iterator[Entry]:
        for entry in walk_tree(one, two):
            if entry.path == b"a":
                (one / "b").unlink()
            yield entry

    with refused("vanished", "one/b"):
        layer_of(entries())


def test_vanished_before_it_is_read(src: Path) -> None:
    make_tree(src, {"a": "1", "b": "2"})
    with refused("vanished", "/b "):
        interfere(src, "b", lambda: (src / "b").unlink())


def test_directory_vanished(src: Path) -> None:
    make_tree(src, {"a": "1", "b": {}})
    with refused("vanished", "/b "):
        walker = walk_tree(src)
        next(walker)
        (src / "b").rmdir()
        list(walker)


def test_directory_swapped_for_a_link_is_not_followed(src: Path, tmp_path: Path) -> None:
    make_tree(tmp_path / "elsewhere", {"secret": "x"})
    make_tree(src, {"a": {"f": "1"}, "b": {"f": "2"}})
    walker = walk_tree(src)
    seen = [next(walker).path]
    (src / "b").rename(tmp_path / "old")
    (src / "b").symlink_to(tmp_path / "elsewhere")
    seen += [entry.path for entry in walker]
    assert b"b/secret" not in seen


# -- unreadable


@pytest.mark.parametrize("what", ["file", "directory", "entered"])
def test_unreadable(src: Path, open_tmp: Path, what: str) -> None:
    need_root("root")
    make_tree(src, {"dir": {"x": "1"}, "file": "1", "entered": {"x": "1"}})
    src.chmod(0o755)
    (src / "dir").chmod(0o000 if what == "directory" else 0o755)
    (src / "file").chmod(0o000 if what == "file" else 0o644)
    (src / "entered").chmod(0o444 if what == "entered" else 0o755)
    name = {"file": "file", "directory": "dir", "entered": "entered/x"}[what]
    with as_nobody(), refused("unreadable", f"src/{name}"):
        pack_tree(src)


def test_source_missing(tmp_path: Path) -> None:
    with refused("source-missing", "nothing"):
        pack_tree(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("files", "missing", "command"),
    [
        (["package.json", "package-lock.json"], "node_modules", "npm ci"),
        (["package.json", "pnpm-lock.yaml"], "dist", "pnpm run build"),
        (["pom.xml"], "target/app.jar", "mvn package"),
        (["app.csproj"], "bin/Release/net8.0/publish", "dotnet publish -c Release"),
        (["pyproject.toml"], "src", None),
        (["README"], "dist", None),
    ],
)
def test_a_missing_source_names_the_command_that_creates_it(
    tmp_path: Path, files: list[str], missing: str, command: str | None
) -> None:
    make_tree(tmp_path, dict.fromkeys(files, "x"))
    with pytest.raises(TreeError) as found:
        pack_tree(tmp_path / missing)
    assert found.value.code == "source-missing"
    prefix = f"run the command that creates it, probably `{command}`, or " if command else ""
    assert found.value.hint == f"{prefix}check the path: SOURCE[:DEST]"


@pytest.mark.parametrize("odd", ["a\0b/dist", "x" * 5000 + "/node_modules"])
def test_a_missing_source_with_an_odd_name(tmp_path: Path, odd: str) -> None:
    with pytest.raises((TreeError, ConfigError)):
        pack_tree(tmp_path / odd)


def test_source_special(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with refused("special-files", "fifo"):
        pack_tree(tmp_path / "fifo")


# -- loops and depth


def test_bind_mount_loop(src: Path) -> None:
    make_tree(src, {"a": {"loop": {}}})
    with mounted(["--bind", src], src / "a" / "loop"), refused("directory-loop", "src/a/loop"):
        pack_tree(src)


def test_bind_mount_without_loop(src: Path, tmp_path: Path) -> None:
    """A mount of another directory is an ordinary directory."""
    make_tree(src, {"a": {}, "b": {"x": "1"}})
    with mounted(["--bind", src / "b"], src / "a"):
        assert pack_tree(src).paths == [b"a/", b"a/x", b"b/", b"b/x"]


@pytest.mark.parametrize("levels", [63, 64, 65, 300, 1500])
def test_deep(deep: Path, levels: int) -> None:
    """More levels than descriptors, than Python's recursion limit; siblings on the way back."""
    make_deep(deep, levels)
    (deep / "e").write_text("after")
    (deep / "d" / "z").write_text("also")
    packed = pack_tree(deep)
    assert packed.layer.entries == levels + 3
    assert packed.paths[-3:] == [b"d/" * levels + b"leaf", b"d/z", b"e"]


def test_deep_with_patterns_and_two_sources(deep: Path, src: Path) -> None:
    make_deep(deep, 200)
    make_tree(src, {"d": {"d": {"other": "x"}}})
    packed = pack_tree(deep, src, exclude=["*.o"])
    assert packed.layer.entries == 202
    assert b"d/d/other" in packed.paths


def test_path_over_path_max(deep: Path) -> None:
    make_deep(deep, 41, "n" * 100)
    with refused("path-too-long", "4096"[:1]):
        pack_tree(deep)


def test_path_max_may_be_excluded(deep: Path) -> None:
    make_deep(deep, 41, "n" * 100)
    assert pack_tree(deep, exclude=["leaf", "/" + "n" * 100]).paths == []


def test_long_destination(src: Path) -> None:
    make_tree(src, {"a": ""})
    with pytest.raises(DetlayerError) as caught:
        pack_tree(f"{src}:{'d/' * 2048}")
    assert caught.value.code == "path-too-long"


@pytest.mark.slow
def test_100_000_files(src: Path) -> None:
    for directory in range(4):
        (src / str(directory)).mkdir()
        fd = os.open(src / str(directory), os.O_RDONLY)
        for i in range(25000):
            os.close(os.open(f"{i:05}", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd))
        os.close(fd)
    entries = [entry.path for entry in walk_tree(src)]
    assert len(entries) == 100004
    assert entries == sorted(entries, key=lambda path: path.split(b"/"))


def test_no_files(src: Path) -> None:
    packed = pack_tree(src)
    assert packed.blob == bytes(1024)
    assert packed.layer.entries == 0


@pytest.mark.slow
def test_huge_sparse_file(src: Path) -> None:
    """SPEC 5.4: over 8589934591 bytes, the size moves to PAX, and the content streams as zeros."""
    size = 8589934592
    with (src / "sparse").open("wb") as file:
        file.truncate(size)
    if (src / "sparse").stat().st_blocks > 1000:
        pytest.skip("sparse files")
    head = bytearray()

    class Head:
        def write(self, data: Bytes, /) -> int:
            head.extend(bytes(data[:2048]) if not head else b"")
            return len(data)

        def flush(self) -> None:
            return

    made = packer.pack([src], output=Head(), options=PackOptions(compression="none", jobs=2))  # type: ignore[arg-type]
    assert b"19 size=8589934592\n" in head
    assert made.tar_bytes == made.size_bytes == size + 3 * 512 + 1024
    assert len(made.chunks) == 2049


# -- names


def test_non_utf8_name(src: Path) -> None:
    with open(os.fsencode(src) + b"/caf\xe9", "wb"):
        pass
    with refused("name-not-utf8", "caf\\xe9"):
        pack_tree(src)
    assert pack_tree(src, exclude=["caf*"]).paths == []


@pytest.mark.parametrize("rules", ["mode", "owner", "pattern"])
def test_non_utf8_name_under_rules(src: Path, rules: str) -> None:
    """The same error, whichever check comes first."""
    with open(os.fsencode(src) + b"/caf\xe9", "wb"):
        pass
    profile = Profile(
        mode_rule=parse_mode_rules(["*.sh=755"]) if rules == "mode" else None,
        owner_rule=parse_owner_rules(["*.sh=1:1"]) if rules == "owner" else None,
    )
    with refused("name-not-utf8", "caf\\xe9"):
        pack_tree(src, profile=profile, exclude=["*.sh"] if rules == "pattern" else [])


def test_non_utf8_link_target(src: Path) -> None:
    os.symlink(b"\xff", os.fsencode(src) + b"/link")
    with refused("name-not-utf8", "link"):
        pack_tree(src)


@pytest.mark.parametrize("name", ["new\nline", "tab\t", "\x01", "\x7f", "esc\x1b[31m", " ", "\u202e", "a\\b"])
def test_odd_names_are_packed(src: Path, name: str) -> None:
    make_tree(src, {name: "x"})
    packed = pack_tree(src)
    assert packed.paths == [name.encode()]
    assert packed.content(name) == b"x"


@pytest.mark.parametrize("name", ["new\nline", "esc\x1b[31m", "\u202e"])
def test_odd_names_are_escaped_in_messages(src: Path, name: str) -> None:
    make_tree(src, {"sub": {name: "x"}})
    with refused("vanished", "src/sub/"):
        interfere(src, f"sub/{name}", lambda: (src / "sub" / name).unlink())


@pytest.mark.parametrize("where", ["", "sub"])
@pytest.mark.parametrize("name", [".wh.gone", ".wh..wh..opq", ".wh."])
def test_whiteout_names(src: Path, name: str, where: str) -> None:
    """SPEC 4.10."""
    make_tree(src / where, {name: ""})
    with refused("whiteout-name", name):
        pack_tree(src)
    assert pack_tree(src, exclude=[name]).paths == ([b"sub/"] if where else [])


@pytest.mark.parametrize("dest", [".wh.x", "opt/.wh.x", "opt/.wh.d/x"])
def test_whiteout_names_in_destinations(tmp_path: Path, src: Path, dest: str) -> None:
    """SPEC 4.10: an engine would delete `x`, whatever the origin of the name."""
    (tmp_path / "f").write_text("x")
    for source in (f"{tmp_path}/f:{dest}", f"{src}:{dest}"):
        with pytest.raises(DetlayerError) as caught:
            pack_tree(source)
        assert caught.value.code in ("whiteout-name", "destination-invalid")


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (("README", "readme"), "case-collision"),
        (("\u00e9", "e\u0301"), "unicode-collision"),
        (("\u00c9", "e\u0301"), "case-collision"),
        (("stra\u00dfe", "STRASSE"), "case-collision"),
        (("k", "\u212a"), "unicode-collision"),
    ],
)
def test_alike_names_warn(src: Path, names: tuple[str, str], code: str) -> None:
    make_tree(src, {"sub": dict.fromkeys(names, "x")})
    packed = pack_tree(src)
    assert packed.layer.files == 2
    (warning,) = packed.warnings
    assert warning[0] in ("case-collision", "unicode-collision")
    if names != ("k", "\u212a"):
        assert warning[0] == code
    assert all(f"sub/{name}" in warning[1] for name in names)


def test_alike_names_of_two_sources_warn(tmp_path: Path) -> None:
    make_tree(tmp_path, {"one": {"A": ""}, "two": {"a": ""}})
    assert [code for code, _ in pack_tree(tmp_path / "one", tmp_path / "two").warnings] == ["case-collision"]


def test_three_alike_names(src: Path) -> None:
    make_tree(src, {"ABC": "", "Abc": "", "abc": ""})
    assert len(pack_tree(src).warnings) == 2


def test_names_that_are_left_out_are_not_warned_of(src: Path) -> None:
    """Only one of the two is in the layer, so nothing collides."""
    make_tree(src, {"README": "", "readme": ""})
    packed = pack_tree(src, exclude=["readme"])
    assert packed.paths == [b"README"]
    assert packed.warnings == []


def test_different_names_do_not_warn(src: Path) -> None:
    make_tree(src, {"a": {"x": ""}, "b": {"X": ""}, "c": "", "é": "", "É2": ""})
    assert pack_tree(src).warnings == []


# -- special files


def make_socket(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


def test_special_files(src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPEC 4.7: one error that lists them all."""
    make_tree(src, {"a": {}, "b": "x"})
    os.mkfifo(src / "a" / "fi\nfo")
    make_socket(src / "socket", monkeypatch)
    with refused("special-files", "a/fi\\nfo (FIFO)", "socket (socket)"):
        pack_tree(src)
    packed = pack_tree(src, selection=Selection(special="skip"))
    assert packed.paths == [b"a/", b"b"]
    assert [code for code, _ in packed.warnings] == ["special-skipped"] * 2
    assert pack_tree(src, exclude=["fi*", "socket"]).warnings == []


def test_device(src: Path) -> None:
    need_root("root")
    os.mknod(src / "null", 0o020666, os.makedev(1, 3))
    with refused("special-files", "null (device)"):
        pack_tree(src)


def test_many_special_files(src: Path) -> None:
    """SPEC 4.7: those that do not fit a screen are counted."""
    for i in range(25):
        os.mkfifo(src / f"{i:02}")
    with refused("special-files", "/00 (FIFO)", "and 5 more"):
        pack_tree(src)


# -- links


def test_symlinks_are_kept(src: Path) -> None:
    """SPEC 4.7: dangling, absolute, upwards, to a directory, to itself: target bytes are unchanged."""
    targets = {
        "dangling": "no/where",
        "absolute": "/etc",
        "up": "../../..",
        "dir": "sub/",
        "self": "self",
        "dots": "./a//b/.",
    }
    make_tree(src, {"sub": {"x": ""}, **{name: Link(target.encode()) for name, target in targets.items()}})
    members = pack_tree(src).members
    assert {name: members[name].linkname for name in targets} == targets
    assert all(members[name].mode == 0o777 for name in targets)
    assert "dir/x" not in members


def linked(src: Path) -> Path:
    make_tree(src, {"b": File(b"same", 0o700), "c": {}})
    os.link(src / "b", src / "a")
    os.link(src / "b", src / "c" / "d")
    return src


def test_hard_links_separate(src: Path) -> None:
    """SPEC 4.7."""
    packed = pack_tree(linked(src))
    assert [(member.type, member.size) for member in packed.members.values() if not member.isdir()] == [(b"0", 4)] * 3


def test_hard_links_preserved(src: Path) -> None:
    """SPEC 4.7: the first path in order has the content, the others have its values, rules included."""
    profile = Profile(
        owner=None,
        mode="source",
        mtime=Mtime("source"),
        mode_rule=parse_mode_rules(["/c/d=0600"]),
        owner_rule=parse_owner_rules(["/a=7:8"]),
    )
    packed = pack_tree(linked(src), profile=profile, selection=Selection(hardlinks="preserve"))
    a, b, d = (packed.members[name] for name in ("a", "b", "c/d"))
    assert (a.type, a.size) == (b"0", 4)
    assert [(link.type, link.size, link.linkname) for link in (b, d)] == [(b"1", 0, "a")] * 2
    assert {(one.mode, one.uid, one.gid, one.mtime) for one in (a, b, d)} == {
        (0o700, 7, 8, int((src / "a").stat().st_mtime))
    }
    assert packed.layer.files == 1


def test_a_link_outside_is_no_link(src: Path, tmp_path: Path) -> None:
    """SPEC 4.7: a file with one path in the layer is not a link, whatever other paths it has on disk."""
    linked(src)
    for name in ("a", "c/d"):
        (src / name).rename(tmp_path / name.replace("/", "-"))
    packed = pack_tree(src, selection=Selection(hardlinks="preserve"))
    assert packed.members["b"].type == b"0"


def test_links_across_sources(src: Path, tmp_path: Path) -> None:
    linked(src)
    packed = pack_tree(f"{src}:z", f"{src}:y", f"{src}/b:x", selection=Selection(hardlinks="preserve"))
    assert [member.linkname for member in packed.members.values() if member.islnk()] == ["x"] * 6


def test_excluded_first_link(src: Path) -> None:
    """SPEC 4.7: the first path *in the layer*."""
    packed = pack_tree(linked(src), exclude=["/a"], selection=Selection(hardlinks="preserve"))
    assert (packed.members["b"].type, packed.members["c/d"].linkname) == (b"0", "b")


# -- several sources


def tree_pair(tmp_path: Path, one: Spec, two: Spec) -> tuple[Path, Path]:
    return make_tree(tmp_path / "one", one), make_tree(tmp_path / "two", two)


def test_sources_merge(tmp_path: Path) -> None:
    one, two = tree_pair(
        tmp_path, {"d": {"a": "1", "c": {"x": ""}}, "z": ""}, {"d": {"b": "2", "c": {"y": ""}}, "a": ""}
    )
    packed = pack_tree(one, two)
    assert packed.paths == [b"a", b"d/", b"d/a", b"d/b", b"d/c/", b"d/c/x", b"d/c/y", b"z"]
    assert packed.blob == pack_tree(two, one).blob


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"x": "1"}, {"x": "1"}),
        ({"x": "1"}, {"x": {}}),
        ({"x": {}}, {"x": "1"}),
        ({"x": Link(b"y")}, {"x": Link(b"y")}),
        ({"x": Link(b"y")}, {"x": {}}),
    ],
)
def test_collisions_name_both(tmp_path: Path, first: Spec, second: Spec) -> None:
    """SPEC 3.3."""
    one, two = tree_pair(tmp_path, {"sub": first}, {"sub": second})
    with refused("collision", "sub/x", "one/sub/x", "two/sub/x"):
        pack_tree(one, two)
    assert pack_tree(one, Source(os.fsencode(two), b"", parse_patterns(["x"]))).layer.entries == 2


def test_collision_with_a_file_source(tmp_path: Path) -> None:
    """SPEC 3.3."""
    one, two = tree_pair(tmp_path, {"opt": {"x": "1"}}, {"f": "2"})
    with refused("collision", "opt/x", "one/opt/x", "two/f"):
        pack_tree(one, f"{two}/f:opt/x")
    with refused("collision", "opt", "two/f"):
        pack_tree(one, f"{two}/f:opt")
    with refused("collision", "opt/x", "one", "two/f"):
        pack_tree(one, f"{two}/f:opt/x/y")


def test_file_sources_collide(tmp_path: Path) -> None:
    make_tree(tmp_path, {"f": "", "g": ""})
    with refused("collision", "tmp_f"[:0], "/f", "/g"):
        pack_tree(f"{tmp_path}/f:x", f"{tmp_path}/g:x")
    with refused("collision", "/f", "/g"):
        pack_tree(f"{tmp_path}/f:x", f"{tmp_path}/g:x/y")
    with refused("collision", "/f", "/g"):
        pack_tree(f"{tmp_path}/g:x/y", f"{tmp_path}/f:x")


def test_the_same_source_twice(src: Path) -> None:
    make_tree(src, {"a": "1"})
    with refused("collision"):
        pack_tree(src, src)
    assert pack_tree(f"{src}:x", f"{src}:y").paths == [b"x/", b"x/a", b"y/", b"y/a"]


def test_merged_directories_must_agree(tmp_path: Path) -> None:
    """SPEC 3.3: with source modes, two directories with different modes are a collision, too."""
    one, two = tree_pair(tmp_path, {"d": {}}, {"d": {}})
    (one / "d").chmod(0o700)
    assert pack_tree(one, two).layer.entries == 1
    with refused("collision", "mode"):
        pack_tree(one, two, profile=Profile(mode="source"))


def test_merged_directories_take_the_latest_time(tmp_path: Path) -> None:
    one, two = tree_pair(tmp_path, {"d": {}}, {"d": {}})
    for path, seconds in ((one, 1000), (two, 2000)):
        os.utime(path / "d", (seconds, seconds))
    profile = Profile(mtime=Mtime("source"))
    assert pack_tree(one, two, profile=profile).members["d"].mtime == 2000
    assert pack_tree(two, one, profile=profile).members["d"].mtime == 2000


def test_source_into_a_directory_of_another(tmp_path: Path) -> None:
    one, two = tree_pair(tmp_path, {"opt": {"a": ""}}, {"b": ""})
    assert pack_tree(one, f"{two}:opt/app").paths == [b"opt/", b"opt/a", b"opt/app/", b"opt/app/b"]


# -- destinations


@pytest.mark.parametrize(
    ("dest", "path"),
    [("", "f"), ("/", "f"), ("x", "x"), ("/x", "x"), ("x/", "x/f"), ("a/b/", "a/b/f"), ("./a//b", "a/b"), ("a/.", "a")],
)
def test_file_source(tmp_path: Path, dest: str, path: str) -> None:
    (tmp_path / "f").write_text("x")
    packed = pack_tree(f"{tmp_path}/f:{dest}")
    assert packed.paths[-1] == path.encode()
    assert packed.content(path) == b"x"


def test_file_source_through_a_symlink(tmp_path: Path) -> None:
    """A symlink given as a source is followed; the name stays."""
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to("real")
    packed = pack_tree(f"{tmp_path}/link:opt/")
    assert packed.paths == [b"opt/", b"opt/link"]
    assert packed.members["opt/link"].isfile()


def test_directory_source_through_a_symlink(tmp_path: Path, src: Path) -> None:
    make_tree(src, {"a": ""})
    (tmp_path / "link").symlink_to("src")
    assert pack_tree(tmp_path / "link").blob == pack_tree(src).blob


def test_colons(tmp_path: Path) -> None:
    """The last colon separates."""
    make_tree(tmp_path, {"a:b": {"x": ""}})
    assert pack_tree(f"{tmp_path}/a:b:").paths == [b"x"]
    assert pack_tree(f"{tmp_path}/a:b:c").paths == [b"c/", b"c/x"]


@pytest.mark.parametrize("dest", ["..", "../x", "a/../b", "a/.."])
def test_bad_destinations(src: Path, dest: str) -> None:
    """SPEC 3.2."""
    with pytest.raises(ConfigError) as caught:
        pack_tree(f"{src}:{dest}")
    assert caught.value.code == "destination-invalid"


def test_non_utf8_destination(src: Path) -> None:
    """SPEC 3.2."""
    with refused("name-not-utf8"):
        pack_tree(Source(os.fsencode(src), b"\xff"))


def test_no_source() -> None:
    with pytest.raises(ConfigError) as caught:
        pack_tree()
    assert caught.value.code == "no-source"


def test_parents(src: Path) -> None:
    """SPEC 4.4: known modes; root's, whatever --owner is; the destination itself has the source's values."""
    members = pack_tree(
        f"{src}:tmp/a", f"{src}:root/b/c", f"{src}:var/tmp/x", f"{src}:opt/y", profile=Profile(owner=Owner(5, 6))
    ).members
    wanted = {"tmp": 0o1777, "root": 0o700, "root/b": 0o755, "var": 0o755, "var/tmp": 0o1777, "opt": 0o755}
    assert {name: members[name].mode for name in wanted} == wanted
    assert {(members[name].uid, members[name].mtime) for name in wanted} == {(0, DEFAULT_MTIME)}
    assert members["opt/y"].uid == 5


def test_no_entry_for_the_root(src: Path) -> None:
    """SPEC 3.1."""
    assert pack_tree(f"{src}:/").paths == []


@pytest.mark.parametrize(
    ("dest", "instead"),
    [
        ("bin", "/usr/bin"),
        ("sbin/x", "/usr/sbin"),
        ("lib/a/b", "/usr/lib"),
        ("lib32", "/usr/lib32"),
        ("lib64", "/usr/lib64"),
        ("libx32", "/usr/libx32"),
        ("var/run/x", "/run"),
        ("var/lock/x", "/run/lock"),
    ],
)
def test_merged_usr_parents(src: Path, dest: str, instead: str) -> None:
    """SPEC 4.5."""
    with pytest.raises(ConfigError) as caught:
        pack_tree(f"{src}:{dest}")
    assert caught.value.code == "merged-usr-parent"
    assert f"use {instead} " in caught.value.hint
    assert "--allow-parent" in caught.value.hint
    allowed = frozenset((dest.split("/")[0].encode(), b"/".join(dest.encode().split(b"/")[:2])))
    assert pack_tree(f"{src}:{dest}", selection=Selection(allowed_parents=allowed)).paths[-1] == dest.encode() + b"/"


def test_merged_names_elsewhere_are_fine(src: Path) -> None:
    """SPEC 4.5."""
    make_tree(src, {"bin": {"x": ""}})
    assert pack_tree(f"{src}:opt/lib").paths[-1] == b"opt/lib/bin/x"
    assert pack_tree(src).paths == [b"bin/", b"bin/x"]


def test_merged_usr_for_a_file_source(src: Path, tmp_path: Path) -> None:
    """SPEC 4.5: `bin/` would be a parent; also for a whiteout in it."""
    (tmp_path / "f").touch()
    with pytest.raises(ConfigError):
        pack_tree(f"{tmp_path}/f:bin/f")
    with pytest.raises(ConfigError):
        pack_tree(src, selection=Selection(whiteouts=(b"bin/y",)))


def test_whiteouts(src: Path) -> None:
    """SPEC 4.10: empty files of root, before their siblings; opaque directories; each once."""
    make_tree(src, {"etc": {"a": "", "!": ""}})
    selection = Selection(whiteouts=(b"etc/gone", b"old", b"old"), opaques=(b"etc", b"", b"var/cache"))
    packed = pack_tree(src, selection=selection)
    assert packed.paths == [
        b".wh..wh..opq",
        b".wh.old",
        b"etc/",
        b"etc/.wh..wh..opq",
        b"etc/.wh.gone",
        b"etc/!",
        b"etc/a",
        b"var/",
        b"var/cache/",
        b"var/cache/.wh..wh..opq",
    ]
    marked = packed.members["etc/.wh.gone"]
    assert (marked.size, marked.mode, marked.uid, marked.mtime) == (0, 0o644, 0, DEFAULT_MTIME)


def test_whiteout_below_a_file(src: Path) -> None:
    """SPEC 3.3."""
    make_tree(src, {"a": "x"})
    with refused("collision", "a", "--whiteout"):
        pack_tree(src, selection=Selection(whiteouts=(b"a/b",)))


# -- values


def test_source_values(src: Path) -> None:
    """SPEC 4.1 to 4.3: `source` keeps twelve mode bits, owners and whole seconds."""
    make_tree(src, {"f": File(b"", 0o644), "d": {}})
    if os.geteuid() == 0:
        os.chown(src / "f", 1234, NOBODY)
    (src / "f").chmod(0o6711)
    (src / "d").chmod(0o3770)
    os.utime(src / "f", ns=(0, 1700000000_999999999))
    members = pack_tree(src, profile=Profile(mtime=Mtime("source"), owner=None, mode="source")).members
    status = (src / "f").stat()
    assert (members["f"].mode, members["f"].uid, members["f"].gid) == (0o6711, status.st_uid, status.st_gid)
    assert members["f"].mtime == 1700000000
    assert members["d"].mode == 0o3770


def test_time_before_1970(src: Path) -> None:
    """SPEC 4.1: rounded down, and does not fit a header."""
    make_tree(src, {"f": ""})
    os.utime(src / "f", ns=(0, -1))
    assert pack_tree(src).members["f"].mtime == DEFAULT_MTIME
    with refused("mtime-out-of-range", "f: modification time -1 "):
        pack_tree(src, profile=Profile(mtime=Mtime("source")))


def test_xattrs(src: Path) -> None:
    """SPEC 4.6: none by default; by name, sorted; of files, directories, not through links."""
    make_tree(src, {"f": "x", "d": {"g": ""}, "l": Link(b"f")})
    need_user_xattrs(src)
    for name, value in (("user.b", b"1"), ("user.a", b"\xff\0"), ("user.c", b"no")):
        os.setxattr(src / "f", name, value)
    os.setxattr(src / "d", "user.a", b"dir")
    assert all(not member.pax_headers for member in pack_tree(src).members.values())
    entries = {entry.path: entry.xattrs for entry in walk_tree(src, profile=Profile(xattrs=("user.[ab]",)))}
    assert entries == {
        b"d": ((b"user.a", b"dir"),),
        b"d/g": (),
        b"f": ((b"user.a", b"\xff\0"), (b"user.b", b"1")),
        b"l": (),
    }


def test_xattrs_of_destination_and_file_source(src: Path, tmp_path: Path) -> None:
    """SPEC 4.6."""
    make_tree(src, {"f": "x"})
    need_user_xattrs(src)
    os.setxattr(src, "user.a", b"dir")
    os.setxattr(src / "f", "user.a", b"file")
    profile = Profile(xattrs=("user.a",))
    found = {entry.path: entry.xattrs for entry in walk_tree(f"{src}:opt/d", f"{src}/f:g", profile=profile)}
    assert found[b"opt/d"] == ((b"user.a", b"dir"),)
    assert found[b"g"] == found[b"opt/d/f"] == ((b"user.a", b"file"),)
    assert found[b"opt"] == ()


def test_empty_xattr(src: Path) -> None:
    """SPEC 4.6."""
    make_tree(src, {"f": "x"})
    need_user_xattrs(src)
    os.setxattr(src / "f", "user.a", b"")
    with pytest.raises(DetlayerError) as caught:
        pack_tree(src, profile=Profile(xattrs=("*",)))
    assert caught.value.code == "xattr-unwritable"


# -- selection


def test_ignore_file(src: Path) -> None:
    """SPEC 4.9: in a source's root; not packed itself; later patterns may re-include."""
    make_tree(src, {".detlayerignore": "*.o\nsub/\n", "a.o": "", "b.o": "", "c": "", "sub": {"x": ""}})
    assert pack_tree(src).paths == [b"c"]
    assert pack_tree(src, exclude=["!b.o"]).paths == [b"b.o", b"c"]
    assert pack_tree(src, exclude=["!.detlayerignore"]).paths == [b".detlayerignore", b"c"]
    everything = pack_tree(src, use_ignore_file=False).paths
    assert everything == [b".detlayerignore", b"a.o", b"b.o", b"c", b"sub/", b"sub/x"]


def test_ignore_file_is_each_sources_own(tmp_path: Path) -> None:
    """SPEC 4.9: only in its root."""
    one, two = tree_pair(
        tmp_path, {".detlayerignore": "x\n", "x": ""}, {"y": "", "sub": {".detlayerignore": "*", "x": ""}}
    )
    assert pack_tree(one, two).paths == [b"sub/", b"sub/.detlayerignore", b"sub/x", b"y"]


def test_patterns_are_relative_to_the_source(src: Path) -> None:
    """SPEC 4.9: not relative to the destination."""
    make_tree(src, {"a": "", "b": {"a": ""}})
    assert pack_tree(f"{src}:opt", exclude=["/a"]).paths == [b"opt/", b"opt/b/", b"opt/b/a"]
    assert pack_tree(f"{src}:opt", exclude=["/opt/a", "opt"]).layer.entries == 4


def test_nothing_comes_back_from_an_excluded_directory(src: Path) -> None:
    """SPEC 4.9."""
    make_tree(src, {"d": {"keep": "", "other": ""}})
    assert pack_tree(src, exclude=["d/", "!d/keep"]).paths == []
    assert pack_tree(src, exclude=["d/*", "!d/keep"]).paths == [b"d/", b"d/keep"]


def test_ignore_files_in_order(src: Path, tmp_path: Path) -> None:
    """SPEC 4.9: the source's own file, those of options, then patterns."""
    make_tree(src, {".detlayerignore": "a\n", "a": "", "b": ""})
    (tmp_path / "more").write_text("!a\nb\n")
    assert pack_tree(src, ignore_files=[tmp_path / "more"]).paths == [b"a"]
    assert pack_tree(src, ignore_files=[tmp_path / "more"], exclude=["!b", "a"]).paths == [b"b"]


def test_missing_ignore_file(src: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        pack_tree(src, ignore_files=[tmp_path / "none"])
    assert caught.value.code == "ignore-file"


# -- the output among the sources


@pytest.mark.parametrize("name", ["out.tar", "sub/out.tar"])
@pytest.mark.parametrize("option", ["output", "descriptor", "oci_layout"])
def test_output_inside_a_source(src: Path, name: str, option: str) -> None:
    make_tree(src, {"sub": {}})
    with pytest.raises(ConfigError) as caught:
        packer.pack([src], **{option: src / name})  # type: ignore[arg-type]
    assert caught.value.code == "output-in-source"
    assert list_files(src) == ["sub"]


@pytest.mark.parametrize("pattern", ["*.tar", "/sub/out.tar", "sub/", "sub"])
def test_excluded_output_inside_a_source(src: Path, pattern: str) -> None:
    """An excluded output is not packed, nor is the unfinished file next to it."""
    make_tree(src, {"a": "x", "sub": {}})
    results = {
        packer.pack([src], output=src / "sub" / "out.tar", options=PackOptions(exclude=[pattern])).digest
        for _ in range(2)
    }
    assert len(results) == 1
    assert (src / "sub" / "out.tar").exists()


@pytest.mark.parametrize("pattern", ["image", "image/", "/image/"])
def test_excluded_layout_inside_a_source(src: Path, pattern: str) -> None:
    """A layout is a directory: a pattern for directories excludes it."""
    make_tree(src, {"a": "x"})
    results = {
        packer.pack([src], oci_layout=src / "image", options=PackOptions(exclude=[pattern])).digest for _ in range(2)
    }
    assert len(results) == 1


def test_output_over_its_own_source(tmp_path: Path) -> None:
    """The next run would pack the layer, and overwrite the file itself."""
    (tmp_path / "f").write_text("precious")
    with pytest.raises(ConfigError) as caught:
        packer.pack([f"{tmp_path}/f:x"], output=tmp_path / "f")
    assert caught.value.code == "output-in-source"
    assert (tmp_path / "f").read_text() == "precious"


def test_output_through_a_symlink_into_a_source(src: Path, tmp_path: Path) -> None:
    (tmp_path / "door").symlink_to(src)
    with pytest.raises(ConfigError):
        packer.pack([src], output=tmp_path / "door" / "out.tar")
    with pytest.raises(ConfigError):
        packer.pack([tmp_path / "door"], output=src / "out.tar")


def test_takes_knows_what_a_source_would_pack(src: Path, tmp_path: Path) -> None:
    source = Source(os.fsencode(src))
    assert takes(source, os.fsencode(src / "a" / "b"))
    assert not takes(source, os.fsencode(tmp_path / "src2"))
    assert not takes(source, os.fsencode(tmp_path))


def test_reporter_hears_warnings_once(src: Path) -> None:
    words = Words()
    make_tree(src, {"A": "", "a": ""})
    packer.pack([src], options=PackOptions(reporter=words))
    assert len(words.warnings) == 1


def test_pack_without_output_only_computes(src: Path) -> None:
    make_tree(src, {"a": "x"})
    made: Packed = pack_tree(src, compression="gzip")
    assert packer.pack([src]) == made.layer

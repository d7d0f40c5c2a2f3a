"""Entries, and the profile that gives them the same values everywhere (SPEC 3, 4). No file system, no clock."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Literal, Protocol

import msgspec

from detlayer.errors import ConfigError, LayerError, TreeError, printable

EntryKind = Literal["dir", "file", "symlink", "hardlink"]

DEFAULT_MTIME = 946684800  # 2000-01-01T00:00:00Z; SPEC 4.1
MAX_MTIME = 0o77777777777  # what eleven octal digits hold
MAX_OWNER = 2**32 - 2  # the kernel keeps 2**32-1 for "no change" (chown(2))
PATH_MAX_BYTES = 4095  # Linux PATH_MAX without its NUL: an engine can't create a longer path
WHITEOUT_PREFIX = b".wh."  # image-spec layer.md, "Whiteouts"
OPAQUE_WHITEOUT = b".wh..wh..opq"

# Unfinished outputs, also those of other processes: never a part of a tree. SPEC 4.9
TEMPORARY_NAME = ".detlayer-%s.tmp"  # with twelve hexadecimal digits
_TEMPORARY_PREFIX = b".detlayer-"
_TEMPORARY = re.compile(rb"\.detlayer-[0-9a-f]{12}\.tmp")

# Directories whose modes programs in the container rely on. A directory in a layer replaces the base's attributes,
# so a layer that merely passes through /tmp must not take the sticky bit away. SPEC 4.4
WELL_KNOWN_DIRS: dict[bytes, int] = {b"tmp": 0o1777, b"var/tmp": 0o1777, b"root": 0o700}

# Directories that are symlinks on merged-/usr bases: a directory entry in a layer would replace the link. SPEC 4.5
MERGED_DIRS: frozenset[bytes] = frozenset(
    (b"bin", b"sbin", b"lib", b"lib32", b"lib64", b"libx32", b"var/run", b"var/lock")
)

# Attributes of the machine, not of the tree. SPEC 4.6
_NEVER_XATTRS = ("security.selinux", "system.nfs4_acl", "trusted.overlay.*", "com.apple.*")


class ContentReader(Protocol):
    """An open content. Use from one thread; always `close`."""

    def read_into(self, buffer: memoryview) -> int:
        """Fill `buffer` from where the last call stopped; fewer bytes only at the end. Raises TreeError."""

    def finish(self) -> bool:
        """Confirm that what was read is one state of the content, and what its entry says.

        False if that is doubtful: it has to be read a second time, from the start, and confirmed again. Raises
        TreeError if it changed.
        """

    def close(self) -> None:
        """Release what was opened; may be called again."""


class Content(Protocol):
    """A file's bytes, opened on demand: before the next entry is asked for."""

    def open(self) -> ContentReader:
        """Open for one pass; raises TreeError."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One tar entry. `path` is relative, `/`-separated, without a trailing slash even for a directory.

    A struct rather than a dataclass: a million are made in a pass, and its constructor takes a tenth of the time.
    """

    path: bytes
    kind: EntryKind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = DEFAULT_MTIME
    size_bytes: int = 0
    target: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    content: Content | None = None

    @property
    def written_path(self) -> bytes:
        """The path as the tar has it: a directory's ends in `/` (SPEC 3.1)."""
        return self.path + b"/" if self.kind == "dir" else self.path


class Mtime(msgspec.Struct, frozen=True):
    """Where an entry's mtime comes from: `fixed` at, `source` unchanged, or `clamp` to at most `seconds` since 1970."""

    policy: Literal["fixed", "source", "clamp"] = "fixed"
    seconds: int = DEFAULT_MTIME


class Owner(msgspec.Struct, frozen=True):
    """Numeric owner and group, each 0 to 4294967294."""

    uid: int = 0
    gid: int = 0


def parse_mtime(text: str, epoch: str | None) -> Mtime:
    """Read `SECONDS`, `source`, `clamp:SECONDS`, or `clamp`, which takes its seconds from `epoch` (SOURCE_DATE_EPOCH).

    Raises ConfigError.
    """
    if text == "source":
        return Mtime("source", DEFAULT_MTIME)
    clamp = text == "clamp" or text.startswith("clamp:")
    seconds = text.removeprefix("clamp").removeprefix(":")
    if text == "clamp":
        if epoch is None:
            raise ConfigError("mtime-invalid", "clamp without a time needs SOURCE_DATE_EPOCH", "write clamp:SECONDS")
        seconds = epoch
    if re.fullmatch(r"[0-9]{1,11}", seconds) is None or int(seconds) > MAX_MTIME:
        raise ConfigError(
            "mtime-invalid",
            f"{seconds!r} is no time" + (" (SOURCE_DATE_EPOCH)" if text == "clamp" else ""),
            f"give whole seconds since 1970, 0 to {MAX_MTIME}, or source, clamp or clamp:SECONDS",
        )
    return Mtime("clamp" if clamp else "fixed", int(seconds))


ModeRule = Callable[[bytes, bool], int | None]
OwnerRule = Callable[[bytes, bool], Owner | None]


class Profile(msgspec.Struct, frozen=True):
    """How values are normalised (SPEC 4). The default brings nothing of the machine into the layer.

    `owner` None takes the source's owner. `xattrs` is an allow-list of shell patterns on attribute names. The rules get
    the path (no trailing slash) and whether it is a directory, and answer None where they have nothing to say.
    """

    mtime: Mtime = Mtime()
    owner: Owner | None = Owner()
    mode: Literal["canonical", "source"] = "canonical"
    xattrs: tuple[str, ...] = ()
    mode_rule: ModeRule | None = None
    owner_rule: OwnerRule | None = None

    def wants_xattr(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.xattrs) and not any(
            fnmatchcase(name, pattern) for pattern in _NEVER_XATTRS
        )

    def time_of(self, seconds: int, path: bytes) -> int:
        """Normalise an mtime in whole seconds since 1970; raises TreeError where the header has no room for it."""
        if self.mtime.policy == "fixed":
            return self.mtime.seconds
        if self.mtime.policy == "clamp" and seconds > self.mtime.seconds:
            return self.mtime.seconds
        if not 0 <= seconds <= MAX_MTIME:
            raise TreeError(
                "mtime-out-of-range",
                f"{printable(path)}: its modification time {seconds} does not fit a tar header (0 to {MAX_MTIME})",
                "touch the file, or use --mtime with a number of seconds",
            )
        return seconds


def normalise(entry: Entry, profile: Profile) -> Entry:
    """Give `entry` the values of `profile`; pure and idempotent. A hard link must carry its target's values already."""
    path, kind = entry.path, entry.kind
    is_dir = kind == "dir"
    if kind == "symlink":
        mode = 0o777
    elif profile.mode == "source":
        mode = entry.mode & 0o7777
    elif is_dir:
        mode = WELL_KNOWN_DIRS.get(path, 0o755)
    else:
        mode = 0o755 if entry.mode & 0o100 else 0o644
    owner = profile.owner
    uid, gid = (entry.uid, entry.gid) if owner is None else (owner.uid, owner.gid)
    return _ruled(entry, profile, mode, uid, gid, profile.time_of(entry.mtime, path))


def parent(path: bytes, profile: Profile) -> Entry:
    """Make the directory that a destination implies (SPEC 4.4): known mode, root's, with only the rules applied."""
    entry = Entry(path, "dir")
    return _ruled(entry, profile, WELL_KNOWN_DIRS.get(path, 0o755), 0, 0, _fixed_time(profile))


def marker(path: bytes, profile: Profile) -> Entry:
    """Make a whiteout or opaque marker (image-spec layer.md): an empty file, root's."""
    return Entry(path, "file", 0o644, 0, 0, _fixed_time(profile))


def is_whiteout(path: bytes, kind: str) -> bool:
    """Tell whether an entry is a whiteout or opaque marker: by its name alone, however it is stored (SPEC 4.10)."""
    return kind != "dir" and path.rpartition(b"/")[2].startswith(WHITEOUT_PREFIX)


def _fixed_time(profile: Profile) -> int:
    return DEFAULT_MTIME if profile.mtime.policy == "source" else profile.mtime.seconds


def _ruled(entry: Entry, profile: Profile, mode: int, uid: int, gid: int, mtime: int) -> Entry:
    path, kind = entry.path, entry.kind
    if profile.mode_rule is not None and kind != "symlink":
        ruled = profile.mode_rule(path, kind == "dir")
        if ruled is not None:
            mode = ruled
    if profile.owner_rule is not None:
        owner = profile.owner_rule(path, kind == "dir")
        if owner is not None:
            uid, gid = owner.uid, owner.gid
    return Entry(path, kind, mode, uid, gid, mtime, entry.size_bytes, entry.target, entry.xattrs, entry.content)


_BAD_COMPONENTS = frozenset((b"", b".", b".."))


def check_path(path: bytes) -> None:
    """Hold SPEC 3.2 for a path; raises LayerError."""
    if not _BAD_COMPONENTS.isdisjoint(path.split(b"/")) or b"\0" in path:
        raise LayerError(
            "entry-path",
            f"{printable(path)!r} is no path for a layer entry",
            "paths are relative, with no empty, '.' or '..' component and no NUL",
        )
    if not path.isascii():
        check_utf8(path, "entry path")
    if len(path) > PATH_MAX_BYTES:
        raise TreeError(
            "path-too-long",
            f"{printable(path[:60])}… has {len(path)} bytes; no engine can create a path over {PATH_MAX_BYTES}",
            "exclude it, or choose a shorter destination",
        )


def check_utf8(raw: bytes, what: str) -> None:
    """Raise TreeError unless `raw` is valid UTF-8 (PAX records are UTF-8 by definition; POSIX pax, SPEC 3.2)."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        raise TreeError(
            "name-not-utf8",
            f"{what} {printable(raw)} is not valid UTF-8",
            "rename it (convmv -f latin1 -t utf-8 …) or exclude it",
        ) from None


def is_temporary(name: bytes) -> bool:
    """Tell whether a name is that of an unfinished output."""
    return _TEMPORARY.fullmatch(name) is not None


def without_temporaries(names: list[bytes]) -> list[bytes]:
    """Drop the names of unfinished outputs from a sorted list."""
    at = bisect_left(names, _TEMPORARY_PREFIX)
    if at == len(names) or not names[at].startswith(_TEMPORARY_PREFIX):
        return names
    return [name for name in names if not is_temporary(name)]


def fold_name(name: bytes) -> bytes:
    """Bring a name to what names that are one file on macOS or Windows have in common: no case, one Unicode form."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", _composed(name).casefold()).encode("utf-8", "surrogateescape")


def collision_code(name: bytes, twin: bytes) -> Literal["case-collision", "unicode-collision"]:
    """Name what alone tells two names apart that fold to one."""
    return "unicode-collision" if _composed(name) == _composed(twin) else "case-collision"


def _composed(name: bytes) -> str:
    return unicodedata.normalize("NFC", name.decode("utf-8", "surrogateescape"))

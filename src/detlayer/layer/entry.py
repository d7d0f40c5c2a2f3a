"""Entries, and the profile that normalizes their values (SPEC 3, 4). No file system, no clock."""

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
MAX_MTIME = 0o77777777777  # the maximum of eleven octal digits
MAX_OWNER = 2**32 - 2  # the kernel reserves 2**32-1 for "no change" (chown(2))
PATH_MAX_BYTES = 4095  # Linux PATH_MAX without its NUL: an engine can't create a longer path
WHITEOUT_PREFIX = b".wh."  # image-spec layer.md, "Whiteouts"
OPAQUE_WHITEOUT = b".wh..wh..opq"

# Unfinished outputs, also of other processes: never part of a tree. SPEC 4.9
TEMPORARY_NAME = ".detlayer-%s.tmp"  # with twelve hexadecimal digits
_TEMPORARY_PREFIX = b".detlayer-"
_TEMPORARY = re.compile(rb"\.detlayer-[0-9a-f]{12}\.tmp")

# Directories whose modes programs in the container rely on. A directory in a layer replaces the base's attributes,
# so a layer with entries below /tmp must not remove its sticky bit. SPEC 4.4
WELL_KNOWN_DIRS: dict[bytes, int] = {b"tmp": 0o1777, b"var/tmp": 0o1777, b"root": 0o700}

# Directories that are symlinks in merged-/usr base images: a directory entry would replace the link. SPEC 4.5
MERGED_DIRS: frozenset[bytes] = frozenset(
    (b"bin", b"sbin", b"lib", b"lib32", b"lib64", b"libx32", b"var/run", b"var/lock")
)

# Attributes of the machine, not of the tree. SPEC 4.6
_NEVER_XATTRS = ("security.selinux", "system.nfs4_acl", "trusted.overlay.*", "com.apple.*")


class ContentReader(Protocol):
    """An open content. Use from one thread; always `close`."""

    def read_into(self, buffer: memoryview) -> int:
        """Fill `buffer` from the current position; fewer bytes only at the end. Raises TreeError."""

    def finish(self) -> bool:
        """Confirm that the bytes read are one state of the content and match its entry.

        False if that is doubtful: then read it a second time, from the start, and confirm again. Raises TreeError if it
        changed.
        """

    def close(self) -> None:
        """Release resources; may be called again."""


class Content(Protocol):
    """A file's bytes, opened on demand until the next entry is requested."""

    def open(self) -> ContentReader:
        """Open for one pass; raises TreeError."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One tar entry. `path` is relative, `/`-separated, without a trailing slash even for a directory.

    A struct and not a dataclass: a million are created per pass, and its constructor is ten times as fast.
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
        """The path in the tar: a directory's ends in `/` (SPEC 3.1)."""
        return self.path + b"/" if self.kind == "dir" else self.path


class Mtime(msgspec.Struct, frozen=True):
    """The origin of an entry's mtime: `fixed`, `source` (unchanged), or `clamp` to at most `seconds` since 1970."""

    policy: Literal["fixed", "source", "clamp"] = "fixed"
    seconds: int = DEFAULT_MTIME


class Owner(msgspec.Struct, frozen=True):
    """Numeric owner and group, each 0 to 4294967294."""

    uid: int = 0
    gid: int = 0


def parse_mtime(text: str, epoch: str | None) -> Mtime:
    """Parse `SECONDS`, `source`, `clamp:SECONDS`, or `clamp`, which uses `epoch` (SOURCE_DATE_EPOCH).

    Raises ConfigError.
    """
    if text == "source":
        return Mtime("source", DEFAULT_MTIME)
    clamp = text == "clamp" or text.startswith("clamp:")
    seconds = text.removeprefix("clamp").removeprefix(":")
    if text == "clamp":
        if epoch is None:
            raise ConfigError("mtime-invalid", "clamp without a time needs SOURCE_DATE_EPOCH", "use clamp:SECONDS")
        seconds = epoch
    if re.fullmatch(r"[0-9]{1,11}", seconds) is None or int(seconds) > MAX_MTIME:
        raise ConfigError(
            "mtime-invalid",
            f"invalid time {seconds!r}" + (" (SOURCE_DATE_EPOCH)" if text == "clamp" else ""),
            f"use whole seconds since 1970, 0 to {MAX_MTIME}, or source, clamp or clamp:SECONDS",
        )
    return Mtime("clamp" if clamp else "fixed", int(seconds))


ModeRule = Callable[[bytes, bool], int | None]
OwnerRule = Callable[[bytes, bool], Owner | None]


class Profile(msgspec.Struct, frozen=True):
    """How values are normalized (SPEC 4). By default, the layer contains nothing specific to the machine.

    `owner` None takes the source's owner. `xattrs` is an allow-list of shell patterns for attribute names. The rules
    get the path (no trailing slash) and whether it is a directory; None means that a rule does not apply.
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
        """Normalize an mtime in whole seconds since 1970; raises TreeError if it does not fit the header."""
        if self.mtime.policy == "fixed":
            return self.mtime.seconds
        if self.mtime.policy == "clamp" and seconds > self.mtime.seconds:
            return self.mtime.seconds
        if not 0 <= seconds <= MAX_MTIME:
            raise TreeError(
                "mtime-out-of-range",
                f"{printable(path)}: modification time {seconds} does not fit a tar header (0 to {MAX_MTIME})",
                f"touch {printable(path)}, or use --mtime SECONDS",
            )
        return seconds


def normalize(entry: Entry, profile: Profile) -> Entry:
    """Apply `profile` to `entry`; pure and idempotent. A hard link must already have its target's values."""
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
    """Make the directory that a destination implies (SPEC 4.4): known mode, root's; only the rules apply."""
    entry = Entry(path, "dir")
    return _ruled(entry, profile, WELL_KNOWN_DIRS.get(path, 0o755), 0, 0, _fixed_time(profile))


def marker(path: bytes, profile: Profile) -> Entry:
    """Make a whiteout or opaque marker (image-spec layer.md): an empty file, root's."""
    return Entry(path, "file", 0o644, 0, 0, _fixed_time(profile))


def is_whiteout(path: bytes, kind: str) -> bool:
    """Tell whether an entry is a whiteout or opaque marker: by its name alone (SPEC 4.10)."""
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
    """Check a path against SPEC 3.2; raises LayerError."""
    if not _BAD_COMPONENTS.isdisjoint(path.split(b"/")) or b"\0" in path:
        raise LayerError(
            "entry-path",
            f"invalid entry path {printable(path)!r}",
            "paths are relative, with no empty, '.' or '..' component and no NUL",
        )
    if not path.isascii():
        check_utf8(path, "entry path")
    if len(path) > PATH_MAX_BYTES:
        raise TreeError(
            "path-too-long",
            f"{printable(path[:60])}… has {len(path)} bytes, the limit of engines is {PATH_MAX_BYTES}",
            "exclude it, or choose a shorter destination",
        )


def check_utf8(raw: bytes, what: str) -> None:
    """Raise TreeError unless `raw` is valid UTF-8, as PAX records must be (POSIX pax, SPEC 3.2)."""
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
    """Remove the names of unfinished outputs from a sorted list."""
    at = bisect_left(names, _TEMPORARY_PREFIX)
    if at == len(names) or not names[at].startswith(_TEMPORARY_PREFIX):
        return names
    return [name for name in names if not is_temporary(name)]


def fold_name(name: bytes) -> bytes:
    """Fold a name so that names of the same file on macOS or Windows are equal: no case, one Unicode form."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", _composed(name).casefold()).encode("utf-8", "surrogateescape")


def collision_code(name: bytes, twin: bytes) -> Literal["case-collision", "unicode-collision"]:
    """Name the only difference between two names that fold to one."""
    return "unicode-collision" if _composed(name) == _composed(twin) else "case-collision"


def _composed(name: bytes) -> str:
    return unicodedata.normalize("NFC", name.decode("utf-8", "surrogateescape"))

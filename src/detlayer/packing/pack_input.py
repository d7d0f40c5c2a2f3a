"""The input of a pack: its sources with everything that decides their entries, and a scan or walk of them as a key."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from blake3 import blake3

from detlayer.layer import tar
from detlayer.layer.entry import Profile
from detlayer.layer.key import KEY_FORMAT
from detlayer.layer.ports import Reporter, Silence
from detlayer.store import is_racy
from detlayer.tree import Scan, Selection, Snapshot, Source, Walk, scan
from detlayer.tree.patterns import ModeRules, OwnerRules, Pattern

_ROUNDED_NS = 1_000_000_000  # a ctime without a fraction may stay the same for up to this long


class InputState(msgspec.Struct, frozen=True):
    """A snapshot of the input, taken without making entries."""

    key: bytes
    """Identifies everything that decides the entries; empty if unknown."""
    about: str
    """Number of files and their total size."""


class PackInput:
    """The sources of a pack, with everything that decides their entries."""

    def __init__(
        self, sources: Sequence[Source], profile: Profile, selection: Selection, *, keep_paths: bool = False
    ) -> None:
        self._sources = sources
        self._profile = profile
        self._selection = selection
        self._keeps_paths = keep_paths
        # Without a walk there are no paths.
        self._options = None if keep_paths else _describe(sources, profile, selection)

    def scan(self) -> Scan | None:
        """Scan what a walk looks at; None if only a walk can tell."""
        return scan(self._sources)

    def walk(self, scanned: Scan | None, reporter: Reporter | None = None) -> Walk:
        """Start a walk, based on a scan from a moment ago if there is one."""
        return Walk(
            self._sources,
            profile=self._profile,
            selection=self._selection,
            reporter=reporter or Silence(),
            scanned=scanned,
            keep_snapshot=True,
            keep_paths=self._keeps_paths,
        )

    def state_of_scan(self, scanned: Scan) -> InputState:
        return self._state(scanned.snapshot, self._options is not None)

    def state_after(self, walk: Walk, started_ns: int) -> InputState:
        """Return a snapshot of the walk; without a key if a later scan might look the same with other contents."""
        # A walk has to repeat its warnings. The file system's clock is unknown, so the ctime is rounded up.
        newest_ns = -(-walk.snapshot.newest_ns // _ROUNDED_NS) * _ROUNDED_NS
        is_sure = self._options is not None and not walk.warnings
        return self._state(walk.snapshot, is_sure and not is_racy((0, 0, newest_ns, 0, 0), started_ns))

    def _state(self, snapshot: Snapshot, is_sure: bool) -> InputState:
        about = f"{snapshot.count} of {snapshot.size_bytes} bytes"
        if not is_sure:
            return InputState(b"", about)
        return InputState(blake3((self._options or b"") + snapshot.digest(self._sources)).digest(), about)


def _describe(sources: Sequence[Source], profile: Profile, selection: Selection) -> bytes | None:
    """Serialize everything except the disk that decides entries; None if a scan does not see all of it."""
    if profile.xattrs or not isinstance(profile.mode_rule, ModeRules | None):
        return None
    if not isinstance(profile.owner_rule, OwnerRules | None):
        return None
    modes = [(_pattern(one), mode) for one, mode in profile.mode_rule.rules] if profile.mode_rule else []
    owners = [(_pattern(one), owner) for one, owner in profile.owner_rule.rules] if profile.owner_rule else []
    named = [(one.path, one.dest, [_pattern(each) for each in one.patterns]) for one in sources]
    values = (profile.mtime, profile.owner, profile.mode, modes, owners)
    taken = (
        selection.hardlinks,
        selection.special,
        selection.retime_pyc,
        selection.whiteouts,
        selection.opaques,
        sorted(selection.allowed_parents),
    )
    return blake3(repr((tar.FORMAT, KEY_FORMAT, named, values, taken)).encode("utf-8", "surrogatepass")).digest()


def _pattern(pattern: Pattern) -> tuple[str, bool, bool, str]:
    return pattern.text, pattern.negated, pattern.dirs_only, pattern.regex.pattern

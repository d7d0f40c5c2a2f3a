"""The sources of one pack: walked, scanned, and what a walk saw condensed to a key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from blake3 import blake3

from detlayer.layer import tar
from detlayer.layer.entry import Entry, Profile
from detlayer.layer.key import KEY_FORMAT
from detlayer.layer.ports import Reporter
from detlayer.store import is_racy
from detlayer.tree import Listing, Selection, Source, Witness, scan, walk
from detlayer.tree.patterns import ModeRules, OwnerRules, Pattern

_ROUNDED_NS = 1_000_000_000  # a ctime without a fraction gets the longest time in which it may not move


class Glance(msgspec.Struct, frozen=True):
    """What can be told of sources without making entries: a key of all that decides them, empty if that can't be told;
    and how many things there are, of how many bytes."""

    key: bytes
    about: str


class Sources:
    """The sources of a pack, with all that decides their entries. `visited` is as `tree.walk` has it."""

    def __init__(
        self,
        sources: Sequence[Source],
        profile: Profile,
        selection: Selection,
        *,
        visited: list[bytes] | None = None,
    ) -> None:
        self._sources = sources
        self._profile = profile
        self._selection = selection
        self._visited = visited
        self._options = None if visited is not None else _describe(sources, profile, selection)
        self._witness = Witness()
        self._listings: dict[Source, Listing] | None = None
        self.warnings: list[tuple[str, str]] = []
        """What the last walk warned of."""
        self.reporter: Reporter | None = None
        """Hears warnings at once, if it is there."""

    def entries(self) -> Iterable[Entry]:
        """Walk them: where there was a scan, by what it saw, of which its witness has heard already."""
        self.warnings.clear()
        if self._visited is not None:
            self._visited.clear()
        if self._listings is None:
            self._witness = Witness()
        return walk(
            self._sources,
            profile=self._profile,
            selection=self._selection,
            reporter=self,
            visited=self._visited.append if self._visited is not None else None,
            witness=self._witness if self._listings is None else None,
            listings=self._listings,
        )

    def scan(self) -> Glance | None:
        """Condense what a walk would see; None if only a walk can tell."""
        found = scan(self._sources)
        if found is None:
            return None
        self._witness, self._listings = found.witness, found.listings
        return self._glance(found.witness, self._options is not None)

    def witnessed(self, started_ns: int) -> Glance:
        """Condense what the last walk saw; without a key if a later one could see the same, and other contents."""
        # Warnings must be said again, by a walk.
        is_sure = self._options is not None and not self.warnings
        return self._glance(self._witness, is_sure and not is_racy((0, 0, self._newest(), 0, 0), started_ns))

    def progress(self, entries: int, tar_bytes: int) -> None:
        return

    def warning(self, code: str, message: str) -> None:
        self.warnings.append((code, message))
        if self.reporter is not None:
            self.reporter.warning(code, message)

    def _newest(self) -> int:
        """The latest ctime, rounded up: among many files it is not known which file system's clock made it."""
        return -(-self._witness.newest_ns // _ROUNDED_NS) * _ROUNDED_NS

    def _glance(self, witness: Witness, is_sure: bool) -> Glance:
        about = f"{witness.count} of {witness.size_bytes} bytes"
        if not is_sure:
            return Glance(b"", about)
        return Glance(blake3((self._options or b"") + witness.digest(self._sources)).digest(), about)


def _describe(sources: Sequence[Source], profile: Profile, selection: Selection) -> bytes | None:
    """Write down all but the disk that decides entries; None if a scan would not see all of it."""
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

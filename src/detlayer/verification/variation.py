"""What is varied in a run although it must not matter: the environment, and a copy of the tree.

Variations follow from their number alone, so that a run can be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from zlib import crc32

# Written out to work without zone files: fourteen hours ahead, and twelve and a half behind.
_ZONES = ("<+14>-14", "<-1230>12:30", "UTC0")
_LOCALES = ("C", "C.UTF-8", "tr_TR.UTF-8")
_UMASKS = (0o077, 0o002, 0o027)
_ORDERS = ("descending", "ascending", "shuffled")
# Different lengths, a space and non-ASCII letters make a path in the output visible.
_PLACES = ("b", "a place/with a longer name", "déjà/vu")
_LONG_AGO_S = 10_000_000


@dataclass(frozen=True, slots=True)
class Variation:
    """One perturbed run, by its number from 1."""

    number: int

    def _pick(self, choices: tuple[str, ...]) -> str:
        return choices[(self.number - 1) % len(choices)]

    @property
    def zone(self) -> str:
        return self._pick(_ZONES)

    @property
    def locale(self) -> str:
        return self._pick(_LOCALES)

    @property
    def order(self) -> str:
        """How names of a directory are listed: `descending`, `ascending` or `shuffled`."""
        return self._pick(_ORDERS)

    @property
    def place(self) -> str:
        """Path of the copy, below a temporary directory."""
        return f"{self.number}/{self._pick(_PLACES)}"

    @property
    def umask(self) -> int:
        return _UMASKS[(self.number - 1) % len(_UMASKS)]

    @property
    def jobs(self) -> int:
        return (1, 3, 8)[(self.number - 1) % 3]

    @property
    def hash_seed(self) -> str:
        return str(self.number * 7919 % 4294967296)

    @property
    def owner(self) -> tuple[int, int]:
        return 1000 + self.number, 60000 + self.number

    @property
    def links(self) -> bool:
        """Whether files of equal content are hard links to each other."""
        return self.number % 2 == 1

    @property
    def is_relative(self) -> bool:
        """Whether sources are named relative to the working directory."""
        return self.number % 2 == 0

    def random(self) -> Random:
        return Random(self.number)

    def shift_s(self, path: bytes) -> int:
        """Return how many seconds a file's time differs from its source's: different for each path."""
        return -self.number * _LONG_AGO_S - crc32(path) % 1_000_000

    def nanoseconds(self, path: bytes) -> int:
        """Return the part of a file's time below a second, which no policy uses."""
        return crc32(path, self.number) % 1_000_000_000

    def file_mode(self, mode: int) -> int:
        """Return another mode with the same execute bit for the owner, as this run's umask produces it."""
        return (0o777 if mode & 0o100 else 0o666) & ~self.umask

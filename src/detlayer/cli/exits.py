"""From an error to the exit code: one table, documented in docs/errors.md."""

from __future__ import annotations

from detlayer.errors import (
    ConfigError,
    DetlayerError,
    IntegrityError,
    LayerError,
    OutputError,
    RegistryError,
    TreeError,
    UnavailableError,
)

NO = 1  # checked, and the answer is no
USAGE = 2
INTEGRITY = 6
OUTPUT = 7
BUG = 70
INTERRUPTED = 130  # 128 and the number of the signal

_TABLE: tuple[tuple[type[DetlayerError], int], ...] = (
    (ConfigError, USAGE),
    (TreeError, 3),
    (LayerError, 3),
    (UnavailableError, 5),
    (RegistryError, 4),
    (IntegrityError, INTEGRITY),
    (OutputError, OUTPUT),
)


def exit_code(error: DetlayerError) -> int:
    return next((code for family, code in _TABLE if isinstance(error, family)), BUG)

"""Exit codes, as documented in docs/errors.md."""

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

NO = 1  # a negative result, such as `not reproducible`
USAGE = 2
INTEGRITY = 6
OUTPUT = 7
BUG = 70
INTERRUPTED = 130  # 128 plus the signal number

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

"""The options of `verify`."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from detlayer.packing.options import PackOptions

DEFAULT_RUNS = 3
DEFAULT_MAX_EXPANSION = 200


class VerifyOptions(msgspec.Struct, frozen=True):
    """How targets are verified. The defaults are those of the command line."""

    pack: PackOptions = PackOptions()
    """How sources and the output of a rebuild are packed. A finished layer is checked against the profile."""
    runs: int = DEFAULT_RUNS
    """How many times sources are packed under varied conditions, in addition to the plain run."""
    strict: bool = False
    """Count suspicious contents as failures."""
    max_expansion: int = DEFAULT_MAX_EXPANSION
    """Reject a layer that expands to more than 1 GiB plus this multiple of its size."""
    environment: Mapping[str, str] = {}
    """The environment of processes, such as `os.environ`; by default only the varied values."""

"""The packing options that `pack`, `normalize` and `verify` share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from detlayer.errors import ConfigError, printable
from detlayer.layer.codec import DEFAULT_CODEC, Codec, parse_compression
from detlayer.layer.entry import Profile
from detlayer.layer.ports import Reporter
from detlayer.tree import Selection

if TYPE_CHECKING:
    from detlayer.packing.explanation import Explanation

MAX_DEFAULT_JOBS = 8  # one thread reads: more workers wait for it, and each costs memory

_SUFFIXES = {".tar": "none", ".gz": "gzip", ".tgz": "gzip", ".zst": "zstd", ".tzst": "zstd"}
_OTHER_SUFFIXES = (".bz2", ".tbz2", ".xz", ".txz", ".lz4", ".lzma", ".br", ".Z", ".zip", ".7z")

Path = str | os.PathLike[str]


class PackOptions(msgspec.Struct, frozen=True):
    """How to pack sources. The defaults are those of the command line."""

    compression: str | Codec | None = None
    """A codec, or text as on the command line; by default it follows from the suffix of the output."""
    profile: Profile = Profile()
    """The values of entries."""
    selection: Selection = Selection()
    """Which files of the sources are packed, and which markers are added."""
    exclude: Sequence[str] = ()
    """Gitignore lines (`!` re-includes), applied after the ignore files."""
    ignore_files: Sequence[Path] = ()
    """Files of gitignore lines that apply to all sources."""
    use_ignore_file: bool = True
    """Whether the `.detlayerignore` of each source applies to it."""
    jobs: int | None = None
    """Number of threads that compress, which never changes the bytes; by default one per CPU, at most 8."""
    paranoid: bool = False
    """Read and compress everything, and report errors of the cache."""
    reporter: Reporter | None = None
    """Receives progress and warnings."""
    explain: Callable[[Explanation], None] | None = None
    """Is called with what was reused from the cache, and why not the rest."""

    def codec_for(self, output: object = None) -> Codec:
        """Return the codec for a layer in `output`, whose suffix counts if it is a path; raises ConfigError."""
        name = os.path.basename(os.fspath(output)).lower() if isinstance(output, str | os.PathLike) else ""
        implied = next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None)
        if implied is None and name.endswith(_OTHER_SUFFIXES):
            raise ConfigError(
                "compression-contradicts",
                f"OCI layers do not support the compression of {printable(name)}",
                "use .tar, .tar.gz or .tar.zst",
            )
        if self.compression is None:
            return parse_compression(implied) if implied else DEFAULT_CODEC
        codec = self.compression if isinstance(self.compression, Codec) else parse_compression(self.compression)
        if implied is not None and codec.family != implied:
            raise ConfigError(
                "compression-contradicts",
                f"{codec.name} does not match the suffix of {printable(name)}",
                "change either, or use another suffix than those of tars",
            )
        return codec

    def count_jobs(self) -> int:
        """Return the number of threads that compress; raises ConfigError."""
        if self.jobs is not None and self.jobs < 1:
            raise ConfigError(
                "jobs-invalid", f"invalid number of jobs: {self.jobs}", "use --jobs 1 or more, or omit it"
            )
        return self.jobs or default_jobs()


DEFAULT_OPTIONS = PackOptions()


def default_jobs() -> int:
    """Return the number of CPUs that this process may use, at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MAX_DEFAULT_JOBS)

"""Select the manifest of an index for a platform by os, architecture, variant and os.version.

Source: image-index.md; containerd for the variants that a processor can run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from detlayer.errors import ConfigError, printable
from detlayer.oci.types import Descriptor, Platform

_PLATFORM = re.compile(r"([a-z0-9]+)/([a-z0-9_]+)(?:/([a-z0-9.]+))?(?::([0-9.]+))?\Z")
_ALIASES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "i386": ("386", ""),
}
# The default variants of images without one.
_USUAL_VARIANT = {"arm64": "v8", "arm": "v7", "amd64": "v1"}
_VARIANT = re.compile(r"v([0-9]+)(?:\.([0-9]+))?\Z")


def parse_platform(text: str) -> Platform:
    """Parse `os/architecture[/variant][:os.version]`; raises ConfigError."""
    match = _PLATFORM.match(text.lower())
    if match is None:
        raise ConfigError(
            "platform-invalid",
            f"invalid platform {printable(text)!r}",
            "expected os/architecture[/variant], such as linux/arm64",
        )
    architecture, variant = _ALIASES.get(match[2], (match[2], ""))
    return Platform(match[1], architecture, match[3] or variant, match[4] or "")


def select(children: Iterable[Descriptor], wanted: Platform) -> Descriptor | None:
    """Return the best manifest for a platform; None if none matches. The first of equals wins.

    A variant also runs manifests for lesser variants of the same architecture, the greatest preferred. The parts of
    os.version must match where both have them, except the last one (Windows' revision).
    """
    ranked = [
        (rank, -index, child)
        for index, child in enumerate(children)
        if child.platform is not None and (rank := _rank(child.platform, wanted)) is not None
    ]
    return max(ranked, key=lambda item: item[:2])[2] if ranked else None


def listed(children: Iterable[Descriptor]) -> Sequence[Platform]:
    """Return the platforms of an index, each once, without those for no platform (attestations)."""
    found = {child.platform: None for child in children if child.platform is not None}
    return [one for one in found if (one.os, one.architecture) != ("unknown", "unknown")]


def _rank(offered: Platform, wanted: Platform) -> tuple[int, int, int] | None:
    if (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return None
    if not _suits_version(offered.os_version, wanted.os_version):
        return None
    usual = _USUAL_VARIANT.get(wanted.architecture, "")
    has, needs = _number(offered.variant or usual), _number(wanted.variant or usual)
    if has is None or needs is None:
        return (0, 0, 0) if (offered.variant or usual) == (wanted.variant or usual) else None
    exact = int(offered.os_version == wanted.os_version)
    return (*has, exact) if has <= needs else None


def _number(variant: str) -> tuple[int, int] | None:
    match = _VARIANT.match(variant)
    return (int(match[1]), int(match[2] or 0)) if match else None


def _suits_version(offered: str, wanted: str) -> bool:
    if not offered or not wanted or offered == wanted:
        return True
    return offered.split(".")[:3] == wanted.split(".")[:3]


_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm/v7", "i686": "386"}


def host_platform(machine: str) -> Platform:
    """Return the platform of a Linux machine by its uname(2) name, as container engines name it."""
    return parse_platform(f"linux/{_MACHINES.get(machine, machine)}")

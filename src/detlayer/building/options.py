"""The options of a build: outputs, and how bases are resolved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import msgspec

from detlayer.building.lock_file import Lock
from detlayer.building.settings import ImageSettings
from detlayer.errors import ConfigError, printable
from detlayer.oci.references import Reference, parse_reference
from detlayer.oci.types import Platform

Policy = Literal["always", "locked", "offline"]
"""Bases are resolved on every build, taken from the lock, or taken from the lock or cache."""

OutputKind = Literal["oci", "oci-archive", "docker-archive", "docker", "podman"]
Stage = Literal["resolve", "fetch", "pack", "configure", "assemble", "index", "download", "publish", "write"]
STAGES: tuple[Stage, ...] = get_args(Stage)

_PLACEHOLDER = "{image}"


class BuildOutput(msgspec.Struct, frozen=True):
    """A destination other than a registry. `{image}` in `path` is the image's name; engines have no path."""

    kind: OutputKind
    path: str = ""

    def path_for(self, image: str) -> str:
        return self.path.replace(_PLACEHOLDER, image)

    @property
    def is_for_one(self) -> bool:
        """Whether it can contain only one image."""
        return self.kind in ("oci-archive", "docker-archive") and _PLACEHOLDER not in self.path


def parse_output(text: str) -> BuildOutput:
    """Parse `oci:DIR`, `oci-archive:FILE`, `docker-archive:FILE`, `docker` or `podman`; raises ConfigError."""
    for engine in ("docker", "podman"):
        if text == engine:
            return BuildOutput(engine)
    kind, _, path = text.partition(":")
    for known in ("oci", "oci-archive", "docker-archive"):
        if kind == known and path:
            return BuildOutput(known, path)
    raise ConfigError(
        "output-invalid",
        f"invalid output {printable(text)!r}",
        "use oci:DIR, oci-archive:FILE, docker-archive:FILE, docker or podman",
    )


class BuildOptions(msgspec.Struct, frozen=True):
    """How images are built.

    `push` publishes to their repositories; `outputs` are other destinations. `until` stops after a stage;
    `only_layers` only packs layers. `scope` identifies the project in a shared store, to report what changed since its
    last build. `host` is the platform of this machine, for outputs that contain one platform.
    """

    push: bool = False
    outputs: tuple[BuildOutput, ...] = ()
    policy: Policy = "always"
    lock: Lock | None = None
    until: Stage | None = None
    only_layers: bool = False
    scope: str = ""
    host: Platform | None = None
    is_offline: bool = False
    """Send no requests, regardless of the policy."""
    check_registry: bool = False
    """Check every blob and manifest in the registry, even if the tags are up to date."""
    is_dry: bool = False
    """Report what would run; change nothing."""
    jobs: int | None = None
    """Number of steps at a time; by default the number of CPUs, but at least four."""

    def check(self, images: Sequence[ImageSettings]) -> None:
        """Check that images can be built with these options; raises ConfigError."""
        if self.push and self.is_offline:
            raise ConfigError("offline-push", "--offline can't be used with --push", "omit one of them")
        if self.check_registry and not self.push:
            raise ConfigError("usage", "--check needs --push", "add --push, or omit --check")
        for image in images if self.push else ():
            if not image.repositories:
                raise ConfigError(
                    "no-reference",
                    f"{printable(image.location.file)}: image {image.name} has no repositories to push to",
                    'add: repositories = ["registry/team/app"]',
                    file=image.location.file,
                    key=(image.location / "repositories").key,
                )
        if len(images) > 1 and any(one.is_for_one for one in self.outputs):
            raise ConfigError(
                "outputs-collide", "an archive contains only one image", "put {image} in its name, or build one image"
            )
        if self.policy == "locked" and self.lock is None:
            raise ConfigError("lock-missing", "detlayer.lock not found", "create it with `detlayer lock`")
        names: dict[Reference, str] = {}
        for image in images if self.push else ():
            for reference in image.references:
                if names.setdefault(reference, image.name) != image.name:
                    raise ConfigError(
                        "references-collide",
                        f"{names[reference]} and {image.name} both go to {reference}",
                        "give each image its own repository or tag",
                    )


def local_references(image: ImageSettings, kind: OutputKind) -> tuple[Reference, ...]:
    """Return an image's names in an engine: its published names, or its own name."""
    if image.references:
        return image.references
    prefix = "localhost/" if kind == "podman" else ""
    return tuple(parse_reference(f"{prefix}{image.name}:{tag}") for tag in image.tags)


def label(platform: Platform) -> str:
    """Return the unique name of a platform: Windows platforms may differ only in os.version."""
    return f"{platform}:{platform.os_version}" if platform.os_version else str(platform)

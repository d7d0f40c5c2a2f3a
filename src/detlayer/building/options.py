"""The options of a build: images, where they go, and how bases are looked up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import msgspec

from detlayer.building.lock import Lock
from detlayer.building.settings import ImageSettings
from detlayer.errors import ConfigError, printable
from detlayer.oci.references import Reference, parse_reference
from detlayer.oci.types import Platform

Policy = Literal["always", "locked", "offline"]
"""Bases are asked for anew in every build, taken from the lock, or from the lock and what is remembered."""

OutputKind = Literal["oci", "oci-archive", "docker-archive", "docker", "podman"]
Stage = Literal["resolve", "fetch", "pack", "configure", "assemble", "index", "download", "publish", "write"]
STAGES: tuple[Stage, ...] = get_args(Stage)

_PLACEHOLDER = "{image}"


class BuildOutput(msgspec.Struct, frozen=True):
    """Where images go beside registries. `path` may have the image's name in it, as {image}; engines have none."""

    kind: OutputKind
    path: str = ""

    def path_for(self, image: str) -> str:
        return self.path.replace(_PLACEHOLDER, image)

    @property
    def is_for_one(self) -> bool:
        """Whether it holds one image only."""
        return self.kind in ("oci-archive", "docker-archive") and _PLACEHOLDER not in self.path


def parse_output(text: str) -> BuildOutput:
    """Read `oci:DIR`, `oci-archive:FILE`, `docker-archive:FILE`, `docker` or `podman`; raises ConfigError."""
    for engine in ("docker", "podman"):
        if text == engine:
            return BuildOutput(engine)
    kind, _, path = text.partition(":")
    for known in ("oci", "oci-archive", "docker-archive"):
        if kind == known and path:
            return BuildOutput(known, path)
    raise ConfigError(
        "output-invalid",
        f"{printable(text)!r} is no output",
        "write oci:DIR, oci-archive:FILE, docker-archive:FILE, docker or podman",
    )


class BuildOptions(msgspec.Struct, frozen=True):
    """How images are built.

    `push` publishes them to their repositories; `outputs` are other destinations. `until` stops after a stage, and
    `only_layers` packs layers and nothing else. `scope` names the project among others that share a store: what changed
    since its last build is reported. `host` is the platform of this machine, for outputs that hold one platform.
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
    """Send no request, whatever the policy."""
    check_registry: bool = False
    """Ask the registry for every blob and manifest, even where a tag names the image."""
    is_dry: bool = False
    """Find out what would run, and change nothing."""
    jobs: int | None = None
    """How many steps run at a time; by default as many as there are CPUs, and at least four."""

    def check(self, images: Sequence[ImageSettings]) -> None:
        """Check that images can be built with these options; raises ConfigError."""
        if self.push and self.is_offline:
            raise ConfigError("offline-push", "--offline and --push exclude each other", "leave one of them out")
        if self.check_registry and not self.push:
            raise ConfigError("usage", "--check needs --push", "add --push, or leave --check out")
        for image in images if self.push else ():
            if not image.repositories:
                raise ConfigError(
                    "no-reference",
                    f"{printable(image.location.file)}: image {image.name} has no repositories to push to",
                    'write them: repositories = ["registry/team/app"]',
                    file=image.location.file,
                    key=(image.location / "repositories").key,
                )
        if len(images) > 1 and any(one.is_for_one for one in self.outputs):
            raise ConfigError(
                "outputs-collide", "an archive holds one image", "put {image} into its name, or name one image"
            )
        if self.policy == "locked" and self.lock is None:
            raise ConfigError("lock-missing", "there is no detlayer.lock", "write it with `detlayer lock`")
        names: dict[Reference, str] = {}
        for image in images if self.push else ():
            for reference in image.references:
                if names.setdefault(reference, image.name) != image.name:
                    raise ConfigError(
                        "references-collide",
                        f"{names[reference]} and {image.name} both go to {reference}",
                        "give each a repository or tag of its own",
                    )


def local_references(image: ImageSettings, kind: OutputKind) -> tuple[Reference, ...]:
    """Name an image for an engine: as it is published, or else by its own name."""
    if image.references:
        return image.references
    prefix = "localhost/" if kind == "podman" else ""
    return tuple(parse_reference(f"{prefix}{image.name}:{tag}") for tag in image.tags)


def label(platform: Platform) -> str:
    """Name a platform as it is written: two for Windows may differ in os.version only."""
    return f"{platform}:{platform.os_version}" if platform.os_version else str(platform)

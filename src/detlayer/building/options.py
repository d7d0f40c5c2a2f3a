"""What a build is asked for: images, where they go, how bases are looked up; and what became of it. Values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import msgspec

from detlayer.building.graph import Outcome
from detlayer.building.lock import Lock
from detlayer.building.settings import ImageSettings
from detlayer.errors import ConfigError, DetlayerError, printable
from detlayer.oci.ports import SilentTransfers, TransferReporter
from detlayer.oci.references import Reference, parse_reference
from detlayer.oci.types import Digest, Platform

Policy = Literal["always", "locked", "offline"]
"""Bases are asked for anew in every build, taken from the lock, or from the lock and what is remembered."""

Kind = Literal["oci", "oci-archive", "docker-archive", "docker", "podman"]
Stage = Literal["resolve", "fetch", "pack", "configure", "assemble", "index", "download", "publish", "write"]
STAGES: tuple[Stage, ...] = get_args(Stage)

_PLACEHOLDER = "{image}"


class Output(msgspec.Struct, frozen=True):
    """Where images go beside registries. `path` may have the image's name in it, as {image}; engines have none."""

    kind: Kind
    path: str = ""

    def path_for(self, image: str) -> str:
        return self.path.replace(_PLACEHOLDER, image)

    @property
    def is_for_one(self) -> bool:
        """Whether it holds one image only."""
        return self.kind in ("oci-archive", "docker-archive") and _PLACEHOLDER not in self.path


def parse_output(text: str) -> Output:
    """Read `oci:DIR`, `oci-archive:FILE`, `docker-archive:FILE`, `docker` or `podman`; raises ConfigError."""
    for engine in ("docker", "podman"):
        if text == engine:
            return Output(engine)
    kind, _, path = text.partition(":")
    for known in ("oci", "oci-archive", "docker-archive"):
        if kind == known and path:
            return Output(known, path)
    raise ConfigError(
        "output-invalid",
        f"{printable(text)!r} is no output",
        "write oci:DIR, oci-archive:FILE, docker-archive:FILE, docker or podman",
    )


class Request(msgspec.Struct, frozen=True):
    """A build. `scope` names the project among others that share a store, `host` is the platform of this machine."""

    images: tuple[ImageSettings, ...]
    push: bool = False
    outputs: tuple[Output, ...] = ()
    policy: Policy = "always"
    lock: Lock | None = None
    until: Stage | None = None
    only_layers: bool = False
    scope: str = ""
    host: Platform | None = None
    is_offline: bool = False
    """Whether the network is out of bounds, whatever the policy."""
    check_registry: bool = False
    """Whether a push asks the registry for every blob and manifest, also where a tag names the image."""

    def check(self) -> None:
        """Hold what was asked for together; raises ConfigError."""
        if self.push and self.is_offline:
            raise ConfigError("offline-push", "--offline and --push exclude each other", "leave one of them out")
        if self.check_registry and not self.push:
            raise ConfigError("usage", "--check needs --push", "add --push, or leave --check out")
        for image in self.images if self.push else ():
            if not image.repositories:
                raise ConfigError(
                    "no-reference",
                    f"{printable(image.file)}: image {image.name} has no repositories to push to",
                    'write them: repositories = ["registry/team/app"]',
                )
        if len(self.images) > 1 and any(one.is_for_one for one in self.outputs):
            raise ConfigError(
                "outputs-collide", "an archive holds one image", "put {image} into its name, or name one image"
            )
        if self.policy == "locked" and self.lock is None:
            raise ConfigError("lock-missing", "there is no detlayer.lock", "write it with `detlayer lock`")
        places: dict[Reference, str] = {}
        for image in self.images if self.push else ():
            for reference in image.references:
                if places.setdefault(reference, image.name) != image.name:
                    raise ConfigError(
                        "references-collide",
                        f"{places[reference]} and {image.name} both go to {reference}",
                        "give each a repository or tag of its own",
                    )


class BuildReporter(TransferReporter, Protocol):
    """Hears of a build from several threads: of what is sent and fetched, of warnings, and of packs."""

    def progress(self, step: str, tar_bytes: int) -> None:
        """Say how far a pack has come, in total; called about once a chunk."""


class SilentBuild(SilentTransfers):
    """A reporter of builds that says nothing."""

    def progress(self, step: str, tar_bytes: int) -> None:
        return


class BuiltImage(msgspec.Struct, frozen=True):
    """What became of one image. `digest` is None where it was not made."""

    name: str
    digest: Digest | None
    manifests: Mapping[str, Digest] = {}
    references: tuple[Reference, ...] = ()
    error: DetlayerError | None = None

    def to_document(self) -> dict[str, Any]:
        return {
            "image": self.name,
            **({"digest": str(self.digest)} if self.digest else {}),
            "platforms": {platform: str(digest) for platform, digest in self.manifests.items()},
            "references": [str(one) for one in self.references],
            **({"error": self.error.code} if self.error else {}),
        }


class BuildReport(msgspec.Struct, frozen=True):
    """What became of a build: its images in order, each step, and what it cost."""

    images: tuple[BuiltImage, ...]
    outcome: Outcome
    requests: int = 0
    sent_bytes: int = 0

    @property
    def would_do(self) -> bool:
        """Whether there is anything to do, as far as a run that changes nothing can tell."""
        return bool(self.outcome.would_run)

    @property
    def errors(self) -> Sequence[BaseException]:
        return self.outcome.errors


def local_reference(image: ImageSettings, kind: Kind) -> tuple[Reference, ...]:
    """Name an image for an engine: as it is published, or else by its own name."""
    if image.references:
        return image.references
    prefix = "localhost/" if kind == "podman" else ""
    return tuple(parse_reference(f"{prefix}{image.name}:{tag}") for tag in image.tags)


def label(platform: Platform) -> str:
    """Name a platform as it is written: two for Windows may differ in os.version only."""
    return f"{platform}:{platform.os_version}" if platform.os_version else str(platform)

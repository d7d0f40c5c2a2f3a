"""What became of a build, and who follows it while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from detlayer.building.graph import Outcome
from detlayer.errors import DetlayerError
from detlayer.oci.ports import SilentTransfers, TransferReporter
from detlayer.oci.references import Reference
from detlayer.oci.types import Digest


class BuildReporter(TransferReporter, Protocol):
    """Follows a build, from several threads: transfers, warnings and the progress of packs."""

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

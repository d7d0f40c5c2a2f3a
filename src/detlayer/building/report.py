"""The report of a build, and the reporter that follows it."""

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
        """Report the total progress of a pack; called about once per chunk."""


class SilentBuild(SilentTransfers):
    """A build reporter that does nothing."""

    def progress(self, step: str, tar_bytes: int) -> None:
        return


class BuiltImage(msgspec.Struct, frozen=True):
    """The result of one image. `digest` is None if it was not built."""

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
    """The result of a build: its images in order, its steps, and its registry traffic."""

    images: tuple[BuiltImage, ...]
    outcome: Outcome
    requests: int = 0
    sent_bytes: int = 0

    @property
    def would_do(self) -> bool:
        """Whether a dry run found work to do."""
        return bool(self.outcome.would_run)

    @property
    def errors(self) -> Sequence[BaseException]:
        return self.outcome.errors

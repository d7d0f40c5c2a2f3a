"""Results of a push, by repository and tag."""

from __future__ import annotations

from typing import Any

import msgspec

from detlayer.errors import DetlayerError
from detlayer.oci.references import RepositoryName
from detlayer.oci.types import Digest
from detlayer.transfer.plan import Plan


class TagResult(msgspec.Struct, frozen=True):
    """The result for a tag: `present` (up to date), `pushed`, or `failed` with an error."""

    tag: str
    state: str
    error: DetlayerError | None = None


class PushResult(msgspec.Struct, frozen=True):
    """The result of a push to one repository."""

    name: RepositoryName
    digest: Digest
    tags: tuple[TagResult, ...]
    plan: Plan | None = None
    error: DetlayerError | None = None
    """The error that stopped all tags."""
    moved: tuple[str, ...] = ()
    """Tags that moved since the plan was made."""

    @property
    def first_error(self) -> DetlayerError | None:
        return self.error or next((tag.error for tag in self.tags if tag.error is not None), None)

    def to_document(self) -> dict[str, Any]:
        return {
            "repository": str(self.name),
            "digest": str(self.digest),
            "tags": [
                {"tag": one.tag, "state": one.state, **(_what(one.error) if one.error else {})} for one in self.tags
            ],
            **(_what(self.error) if self.error else {}),
            **({"moved": list(self.moved)} if self.moved else {}),
        }


def _what(error: DetlayerError) -> dict[str, Any]:
    return {"error": error.code, "message": error.message}


class PushReport(msgspec.Struct, frozen=True):
    """The result of a push: one for each repository, in the order of the references."""

    results: tuple[PushResult, ...]
    requests: int
    sent_bytes: int

    @property
    def first_error(self) -> DetlayerError | None:
        return next((one.first_error for one in self.results if one.first_error is not None), None)

    @property
    def has_moved(self) -> bool:
        return any(one.moved for one in self.results)

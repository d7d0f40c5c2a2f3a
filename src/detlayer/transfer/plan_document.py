"""Plans as JSON: printed by `plan --json` and executed by `push --plan` (SPEC 11.5). Untrusted input.

A plan must match the image and the destinations. Its blobs marked as present are treated as inferred: the registry may
still report them missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from detlayer.errors import ConfigError, printable
from detlayer.oci.documents import Wanted
from detlayer.oci.references import RepositoryName, is_tag, parse_repository
from detlayer.oci.types import Digest, parse_digest
from detlayer.transfer.plan import Action, BlobStep, ManifestStep, Plan, TagStep

FORMAT = "detlayer-plan/1"
_Size = Annotated[int, msgspec.Meta(ge=0)]


def plans_document(plans: Sequence[Plan]) -> dict[str, Any]:
    """Return the JSON document of plans (SPEC 11.5)."""
    return {"format": FORMAT, "plans": [one.to_document() for one in plans]}


def parse_plans(data: bytes, name: str) -> list[Plan]:
    """Parse the JSON document of plans; raises ConfigError."""
    try:
        read = msgspec.json.decode(data, type=_Plans)
        if read.format != FORMAT:
            raise ValueError(f"expected format {FORMAT!r}, found {read.format!r}")
        return [_plan(one) for one in read.plans]
    except (msgspec.MsgspecError, ValueError, RecursionError, ConfigError) as error:
        raise ConfigError(
            "plan-invalid",
            f"invalid plan {name}: {printable(str(error))}",
            "make one: detlayer plan IMAGE REFERENCE --json > plan.json",
        ) from error


def agree(plan: Plan, wanted: Wanted, tags: Sequence[str]) -> None:
    """Check that a plan is for this image and these tags; raises ConfigError."""
    blobs = {blob.digest: (blob.size_bytes, blob.is_foreign) for blob in wanted.blobs}
    documents = {one.digest: len(one.data) for one in wanted.documents[:-1]}
    if (
        plan.root != wanted.root.digest
        or sorted(step.tag for step in plan.tags) != sorted(tags)
        or {step.digest: step.size_bytes for step in plan.manifests} != documents
        or {step.digest: step.size_bytes for step in plan.blobs} != {one: size for one, (size, _) in blobs.items()}
        or len(plan.blobs) + len(plan.manifests) != len(blobs) + len(documents)
        or any(step.action == "foreign" and not blobs[step.digest][1] for step in plan.blobs)
        or plan.root_bytes != len(wanted.root.data)
    ):
        raise ConfigError(
            "plan-differs",
            f"the plan for {plan.name} is not for this image under {', '.join(tags[:5])}",
            "make the plan again for this image and these references: detlayer plan IMAGE REFERENCE --json",
        )


class _Blob(msgspec.Struct):
    digest: str
    size: _Size
    mediaType: str
    action: Action
    reason: str
    source: str = msgspec.field(default="", name="from")


class _ManifestItem(msgspec.Struct):
    digest: str
    size: _Size
    mediaType: str
    action: Literal["present", "put"]
    reason: str


class _Tag(msgspec.Struct):
    tag: str
    action: Literal["present", "put"]
    reason: str
    seen: str = ""


class _Plan(msgspec.Struct):
    repository: str
    root: str
    rootBytes: _Size
    blobs: list[_Blob]
    manifests: list[_ManifestItem]
    tags: list[_Tag]
    asked: _Size = 0


class _Plans(msgspec.Struct):
    format: str
    plans: list[_Plan]


def _plan(raw: _Plan) -> Plan:
    name = parse_repository(raw.repository)
    root = parse_digest(raw.root)
    return Plan(
        name,
        root,
        tuple(_blob(one, name) for one in raw.blobs),
        tuple(
            ManifestStep(parse_digest(one.digest), one.size, one.mediaType, one.action, one.reason)
            for one in raw.manifests
        ),
        tuple(_tag(one, root) for one in raw.tags),
        raw.rootBytes,
        raw.asked,
    )


def _blob(raw: _Blob, name: RepositoryName) -> BlobStep:
    source = parse_repository(raw.source) if raw.source else None
    if (raw.action == "mount") != (source is not None) or (source is not None and source.registry != name.registry):
        raise ValueError(f"invalid source {raw.source!r} to mount {raw.digest} from")
    return BlobStep(parse_digest(raw.digest), raw.size, raw.mediaType, raw.action, raw.reason, source)


def _tag(raw: _Tag, root: Digest) -> TagStep:
    if not is_tag(raw.tag) and raw.tag != str(root):
        raise ValueError(f"invalid tag {raw.tag!r}")
    seen = parse_digest(raw.seen) if raw.seen else None
    if raw.action == "present" and is_tag(raw.tag) and seen != root:
        raise ValueError(f"tag {raw.tag} is marked as present but named another digest")
    return TagStep(raw.tag, raw.action, raw.reason, seen)

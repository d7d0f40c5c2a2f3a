"""Plans as documents: what `plan --json` prints and `push --plan` carries out (SPEC 11.5). Never trusted as it stands.

What is read may have been written by anybody. It has to agree with the image and with what is to be pushed where; that
blobs are there is believed only as an inference is, which a registry may still deny.
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
    """Make the document that `plan --json` prints and `push --plan` carries out (SPEC 11.5)."""
    return {"format": FORMAT, "plans": [one.to_document() for one in plans]}


def parse_plans(data: bytes, name: str) -> list[Plan]:
    """Read such a document; raises ConfigError."""
    try:
        read = msgspec.json.decode(data, type=_Plans)
        if read.format != FORMAT:
            raise ValueError(f"its format is {read.format!r}, not {FORMAT!r}")
        return [_plan(one) for one in read.plans]
    except (msgspec.MsgspecError, ValueError, RecursionError, ConfigError) as error:
        raise ConfigError(
            "plan-invalid", f"{name} is no plan: {printable(str(error))}", "make it with `detlayer plan --json`"
        ) from error


def agree(plan: Plan, wanted: Wanted, tags: Sequence[str]) -> None:
    """Hold a plan that was read against the image, and the tags that it is to be pushed under; raises ConfigError."""
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
            "make the plan anew, for the same image and the same references",
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
        raise ValueError(f"{raw.digest} can't be mounted from {raw.source or 'nowhere'}")
    return BlobStep(parse_digest(raw.digest), raw.size, raw.mediaType, raw.action, raw.reason, source)


def _tag(raw: _Tag, root: Digest) -> TagStep:
    if not is_tag(raw.tag) and raw.tag != str(root):
        raise ValueError(f"{raw.tag!r} is no tag")
    seen = parse_digest(raw.seen) if raw.seen else None
    if raw.action == "present" and is_tag(raw.tag) and seen != root:
        raise ValueError(f"the tag {raw.tag} is said to be present, and named something else")
    return TagStep(raw.tag, raw.action, raw.reason, seen)

"""Implement `plan` and `push`: send the parts of an image that repositories lack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from detlayer.errors import ConfigError, DetlayerError
from detlayer.oci.documents import Document, Wanted
from detlayer.oci.ports import Body, Memory, SilentTransfers, TransferReporter
from detlayer.oci.references import Reference, RepositoryName
from detlayer.oci.types import Descriptor, Digest
from detlayer.transfer.knowledge import Knowledge
from detlayer.transfer.plan import Plan
from detlayer.transfer.remote import gather
from detlayer.transfer.results import PushReport, PushResult, TagResult
from detlayer.transfer.survey import Survey

if TYPE_CHECKING:
    from detlayer.registry.client import Registries

__all__ = [
    "Knowledge",
    "PushOptions",
    "PushReport",
    "PushResult",
    "PushSource",
    "Survey",
    "TagResult",
    "open_surveys",
    "plan_image",
    "plan_surveyed",
    "push_image",
]


class PushSource(Protocol):
    """An image to push: its root document, its contents, and the repository of its missing blobs."""

    @property
    def root(self) -> Document: ...

    @property
    def origin(self) -> RepositoryName | None: ...

    def document(self, descriptor: Descriptor) -> bytes: ...

    def body(self, descriptor: Descriptor) -> Body | None: ...


class PushOptions(msgspec.Struct, frozen=True):
    """Options of a push.

    `sources` are repositories to mount or fetch blobs from. With `check`, the registry is asked for every blob and
    manifest, even if a tag names the image. `plans` are executed unless a tag has moved since; in that case nothing
    is pushed to that repository, and the result lists the tags.
    """

    sources: tuple[RepositoryName, ...] = ()
    check: bool = False
    plans: tuple[Plan, ...] | None = None


def plan_image(
    image: PushSource,
    references: Sequence[Reference],
    registries: Registries,
    *,
    options: PushOptions | None = None,
    memory: Memory | None = None,
) -> list[Plan]:
    """Plan a push without changing anything; raises RegistryError, IntegrityError, LayerError and ConfigError."""
    options = options or PushOptions()
    surveys = open_surveys(image.root, references, registries, Knowledge(memory), check=options.check)
    return plan_surveyed(image, surveys, sources=options.sources)


def open_surveys(
    root: Document,
    references: Sequence[Reference],
    registries: Registries,
    knowledge: Knowledge,
    *,
    check: bool = False,
) -> dict[RepositoryName, Survey]:
    """Resolve the tags of each repository, one request per tag; raises RegistryError and ConfigError."""
    surveys = {}
    for name, tags in _by_repository(references, root.digest).items():
        surveys[name] = Survey(registries.repository(name), tags, knowledge, check=check)
        surveys[name].ask_tags(Wanted((root,)))
    return surveys


def plan_surveyed(
    image: PushSource, surveys: Mapping[RepositoryName, Survey], *, sources: Sequence[RepositoryName] = ()
) -> list[Plan]:
    """Plan a push to surveyed repositories; raises as `plan_image`."""
    sources = _with_origin(image, sources)
    wanted = gather(image, image.root)
    plans = []
    for survey in surveys.values():
        survey.investigate(wanted, sources)
        plans.append(survey.plan(wanted))
    return plans


def push_image(
    image: PushSource,
    references: Sequence[Reference],
    registries: Registries,
    *,
    options: PushOptions | None = None,
    memory: Memory | None = None,
    surveys: Mapping[RepositoryName, Survey] | None = None,
    reporter: TransferReporter | None = None,
) -> PushReport:
    """Push an image to repositories one after the other; a failing one does not stop the others.

    `surveys` are optional results of `open_surveys`. Raises ConfigError, and the source's errors.
    """
    options = options or PushOptions()
    if options.check and options.plans is not None:
        raise ConfigError(
            "usage", "--check cannot be used with an existing plan", "make the plan with `detlayer plan --check`"
        )
    tags = _by_repository(references, image.root.digest)
    plans = _check_plans(options.plans, tags, image.root.digest) if options.plans is not None else {}
    knowledge, pusher = Knowledge(memory), _Pusher(image, registries, options.sources, reporter or SilentTransfers())
    results = []
    for name, wanted_tags in tags.items():
        survey = (surveys or {}).get(name)
        if survey is None:
            survey = Survey(registries.repository(name), wanted_tags, knowledge, check=options.check)
        results.append(pusher.push(survey, plans.get(name)))
    counts = registries.transport.counts
    return PushReport(tuple(results), counts.requests, counts.sent_bytes)


class _Pusher:
    """Pushes one image to one repository after the other; later ones can mount blobs from earlier ones."""

    def __init__(
        self,
        image: PushSource,
        registries: Registries,
        sources: Sequence[RepositoryName],
        reporter: TransferReporter,
    ) -> None:
        self._image = image
        self._root = image.root
        self._reporter = reporter
        self._sources = _with_origin(image, sources)
        own = (image.origin,) if image.origin is not None else ()
        self._origins = tuple(registries.repository(one) for one in dict.fromkeys((*own, *self._sources)))
        self._whole: Wanted | None = None

    def push(self, survey: Survey, plan: Plan | None) -> PushResult:
        """Push to one repository; errors are in the result."""
        name, digest = survey.repository.name, self._root.digest
        try:
            is_repair = survey.check or (plan is not None and plan.is_repair)
            if survey.ask_tags(Wanted((self._root,))) and not is_repair:
                tags, plan = self._confirm_present(survey), None
            elif moved := _moved(plan, survey):
                return PushResult(name, digest, (), plan, moved=moved)
            else:
                whole = self._whole = self._whole or gather(self._image, self._root)
                plan = self._plan(survey, plan, whole)
                tags = self._carry_out(survey, plan, whole)
        except DetlayerError as error:
            return PushResult(name, digest, tuple(TagResult(tag, "failed", error) for tag in survey.tags), plan, error)
        self._sources = (*self._sources, name)
        return PushResult(name, digest, tags, plan)

    def _confirm_present(self, survey: Survey) -> tuple[TagResult, ...]:
        """Confirm that all tags are up to date. A tag does not tell whether the image is listed as a referrer."""
        if self._root.subject is not None:
            from detlayer.transfer.referrers import confirm_referrers

            confirm_referrers(survey.repository, (self._root,))
        return tuple(TagResult(tag, "present") for tag in survey.tags)

    def _plan(self, survey: Survey, plan: Plan | None, whole: Wanted) -> Plan:
        if plan is not None:
            from detlayer.transfer.plan_document import agree

            agree(plan, whole, survey.tags)
            if survey.adopt(plan, whole):
                return plan
        survey.investigate(whole, self._sources)
        return survey.plan(whole)

    def _carry_out(self, survey: Survey, plan: Plan, whole: Wanted) -> tuple[TagResult, ...]:
        from detlayer.transfer.carry import Carrier  # most pushes have nothing to send

        return tuple(Carrier(survey, self._image, whole, self._reporter, self._origins).carry_out(plan))


def _with_origin(image: PushSource, sources: Sequence[RepositoryName]) -> tuple[RepositoryName, ...]:
    origin = (image.origin,) if image.origin is not None else ()
    return tuple(dict.fromkeys((*sources, *origin)))


def _by_repository(references: Sequence[Reference], root: Digest) -> dict[RepositoryName, list[str]]:
    """Group references by repository; raises ConfigError for a wrong digest."""
    if not references:
        raise ConfigError("no-reference", "no destination to push to", "add a reference: registry/repository:tag")
    tags_by_name: dict[RepositoryName, list[str]] = {}
    for reference in references:
        if reference.digest is not None and reference.digest != root:
            raise ConfigError(
                "digest-differs",
                f"digest mismatch: the image has {root}, not that of {reference}",
                "remove the digest, or push the image that has it",
            )
        tags = tags_by_name.setdefault(reference.name, [])
        tag = reference.tag or str(root)
        if tag not in tags:
            tags.append(tag)
    return tags_by_name


def _check_plans(
    plans: Sequence[Plan], tags: Mapping[RepositoryName, Sequence[str]], root: Digest
) -> dict[RepositoryName, Plan]:
    given = {one.name: one for one in plans}
    for name in {**tags, **given}:
        if name not in given or name not in tags:
            raise ConfigError(
                "plan-differs",
                f"the plan is {'not ' if name in tags else ''}for {name}",
                "make the plan again for these references: detlayer plan IMAGE REFERENCE --json",
            )
        if given[name].root != root:
            raise ConfigError(
                "plan-differs", f"the plan is for {given[name].root}, but the image is {root}", "make the plan again"
            )
    return given


def _moved(plan: Plan | None, survey: Survey) -> tuple[str, ...]:
    """Return the tags that moved since the plan was made."""
    if plan is None:
        return ()
    seen = {step.tag: step.seen for step in plan.tags}
    return tuple(
        tag
        for tag in survey.tags
        if tag in seen and seen[tag] != (named.digest if (named := survey.facts.tags[tag]) else None)
    )

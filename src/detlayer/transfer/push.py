"""`plan` and `push`: an image, and where it goes. Joins image sources, registries and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from detlayer.errors import ConfigError, DetlayerError
from detlayer.oci.documents import Document, Wanted
from detlayer.oci.ports import Body, Memory, SilentTransfers, TransferReporter
from detlayer.oci.references import Reference, RepositoryName
from detlayer.oci.types import Descriptor, Digest
from detlayer.transfer.knowledge import Knowledge
from detlayer.transfer.plan import Plan
from detlayer.transfer.remote import gather
from detlayer.transfer.results import PushReport, PushResult, TagResult
from detlayer.transfer.survey import Hints, Survey

if TYPE_CHECKING:
    from detlayer.registry.client import Registries

__all__ = [
    "Hints",
    "Image",
    "Knowledge",
    "PushReport",
    "PushResult",
    "Survey",
    "TagResult",
    "open_surveys",
    "plan_push",
    "plan_surveyed",
    "push",
]


class Image(Protocol):
    """An image to push: its root document, its contents, and the repository that has what is not here."""

    @property
    def root(self) -> Document: ...

    @property
    def origin(self) -> RepositoryName | None: ...

    def document(self, descriptor: Descriptor) -> bytes: ...

    def body(self, descriptor: Descriptor) -> Body | None: ...


def plan_push(
    image: Image,
    references: Sequence[Reference],
    registries: Registries,
    *,
    memory: Memory | None = None,
    hints: Hints | None = None,
    check: bool = False,
) -> list[Plan]:
    """Say what a push would do, changing nothing; raises RegistryError, IntegrityError, LayerError and ConfigError."""
    surveys = open_surveys(image.root, references, registries, Knowledge(memory), check=check)
    return plan_surveyed(image, surveys, hints=hints)


def open_surveys(
    root: Document,
    references: Sequence[Reference],
    registries: Registries,
    knowledge: Knowledge,
    *,
    check: bool = False,
) -> dict[RepositoryName, Survey]:
    """Ask what the tags of each repository name now, one request each; raises RegistryError and ConfigError."""
    surveys = {}
    for name, tags in _by_repository(references, root.digest).items():
        surveys[name] = Survey(registries.repository(name), tags, knowledge, check=check)
        surveys[name].ask_tags(Wanted((root,)))
    return surveys


def plan_surveyed(
    image: Image,
    surveys: Mapping[RepositoryName, Survey],
    *,
    hints: Hints | None = None,
) -> list[Plan]:
    """Say what a push would do where the tags have been asked for; raises as `plan_push`."""
    hints = _with_origin(image, hints)
    wanted = gather(image, image.root)
    plans = []
    for survey in surveys.values():
        survey.investigate(wanted, hints)
        plans.append(survey.plan(wanted))
    return plans


def push(
    image: Image,
    references: Sequence[Reference],
    registries: Registries,
    *,
    memory: Memory | None = None,
    hints: Hints | None = None,
    plans: Sequence[Plan] | None = None,
    surveys: Mapping[RepositoryName, Survey] | None = None,
    fresh: frozenset[Digest] = frozenset(),
    check: bool = False,
    reporter: TransferReporter | None = None,
) -> PushReport:
    """Push an image under references, one repository after the other; what fails for one does not stop the others.

    With `plans` those are carried out, unless the registry has moved since: then nothing is done for that repository,
    and the result says which tags. `surveys` have asked what the tags name already. `fresh` names blobs that were made
    just now. With `check` the registry is asked for every blob and manifest, also where a tag names the image. Raises
    ConfigError, and what the image raises.
    """
    if check and plans is not None:
        raise ConfigError(
            "usage", "a plan that was made already can't be checked", "make the plan with `detlayer plan --check`"
        )
    knowledge, reporter = Knowledge(memory), reporter or SilentTransfers()
    hints = _with_origin(image, hints)
    own = (image.origin,) if image.origin is not None else ()
    origins = tuple(registries.repository(source) for source in dict.fromkeys((*own, *hints.sources)))
    root = image.root
    places = _by_repository(references, root.digest)
    given = _check_plans(plans, places, root.digest) if plans is not None else {}
    whole: Wanted | None = None
    results = []
    for name, tags in places.items():
        survey = (surveys or {}).get(name) or Survey(registries.repository(name), tags, knowledge, check=check)
        plan = given.get(name)
        try:
            is_repair = survey.check or (plan is not None and plan.is_repair)
            if survey.ask_tags(Wanted((root,))) and not is_repair:
                if root.subject is not None:
                    # Whether it is listed is not said by a tag, and a push that ended early may have left it unlisted.
                    from detlayer.transfer.referrers import confirm_referrers

                    confirm_referrers(survey.repository, (root,))
                results.append(PushResult(name, root.digest, tuple(TagResult(tag, "present") for tag in tags)))
                hints = Hints((*hints.sources, name))
                continue
            if moved := _moved(plan, survey):
                results.append(PushResult(name, root.digest, (), plan, moved=moved))
                continue
            whole = whole or Wanted(gather(image, root).documents, fresh)
            if plan is not None:
                from detlayer.transfer.plan_document import agree

                agree(plan, whole, tags)
            if plan is None or not survey.adopt(plan, whole):
                survey.investigate(whole, hints)
                plan = survey.plan(whole)
            from detlayer.transfer.carry import Carrier  # most pushes have nothing to carry

            carrier = Carrier(
                survey.repository,
                image,
                whole,
                survey.facts,
                survey.knowledge,
                reporter,
                origins,
            )
            done = carrier.carry_out(plan)
            results.append(PushResult(name, root.digest, tuple(done), plan))
            hints = Hints((*hints.sources, name))  # the next repository of this registry can mount from here
        except DetlayerError as error:
            failed = tuple(TagResult(tag, "failed", error) for tag in tags)
            results.append(PushResult(name, root.digest, failed, plan, error))
    counts = registries.transport.counts
    return PushReport(tuple(results), counts.requests, counts.sent_bytes)


def _with_origin(image: Image, hints: Hints | None) -> Hints:
    named = hints.sources if hints is not None else ()
    origin = (image.origin,) if image.origin is not None else ()
    return Hints(tuple(dict.fromkeys((*named, *origin))))


def _by_repository(references: Sequence[Reference], root: Digest) -> dict[RepositoryName, list[str]]:
    """Group references; raises ConfigError for a digest that is another one."""
    if not references:
        raise ConfigError("no-reference", "there is nowhere to push to", "name one: registry/repository:tag")
    places: dict[RepositoryName, list[str]] = {}
    for reference in references:
        if reference.digest is not None and reference.digest != root:
            raise ConfigError(
                "digest-differs",
                f"{reference} names another digest than the image has: {root}",
                "leave the digest out, or push the image that has it",
            )
        tags = places.setdefault(reference.name, [])
        tag = reference.tag or str(root)
        if tag not in tags:
            tags.append(tag)
    return places


def _check_plans(
    plans: Sequence[Plan], places: dict[RepositoryName, list[str]], root: Digest
) -> dict[RepositoryName, Plan]:
    given = {one.name: one for one in plans}
    for name in {**places, **given}:
        if name not in given or name not in places:
            raise ConfigError(
                "plan-differs",
                f"the plan is {'not ' if name in places else ''}for {name}",
                "make the plan for the same references",
            )
        if given[name].root != root:
            raise ConfigError(
                "plan-differs", f"the plan is for {given[name].root}, and the image is {root}", "make the plan anew"
            )
    return given


def _moved(plan: Plan | None, survey: Survey) -> tuple[str, ...]:
    """Tags that name something else now than the plan saw."""
    if plan is None:
        return ()
    seen = {step.tag: step.seen for step in plan.tags}
    return tuple(
        tag
        for tag in survey.tags
        if tag in seen and seen[tag] != (named.digest if (named := survey.facts.tags[tag]) else None)
    )

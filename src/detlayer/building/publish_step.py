"""The step that publishes an image: to all its repositories, where their tags name something else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from threading import Event as Flag
from threading import Lock
from typing import TYPE_CHECKING

from detlayer.building.context import BuildContext, Made
from detlayer.building.graph import Call, Reason, Step
from detlayer.building.results import MadeImage
from detlayer.building.settings import ImageSettings
from detlayer.building.step_versions import VERSIONS
from detlayer.oci.ports import TransferReporter
from detlayer.oci.references import RepositoryName
from detlayer.oci.types import Digest

if TYPE_CHECKING:
    from detlayer.transfer.push import Survey

_LARGE_BYTES = 64 << 10  # a smaller layer is sooner sent twice than waited for
_POLL_S = 0.2


class Turns:
    """Lets one publish of a build send a large layer to a registry, and the others wait: they mount it from there."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, Digest], Flag] = {}
        self._lock = Lock()

    @contextmanager
    def turn(self, layers: Collection[tuple[str, Digest]], check: Callable[[], None]) -> Iterator[None]:
        """Wait for those who came first with any of these, and be the first with the others.

        Whoever waits came later than whom it waits for, so all get their turn.
        """
        mine = Flag()
        with self._lock:
            before = {self._first.setdefault(one, mine) for one in layers} - {mine}
        try:
            for flag in before:
                while not flag.wait(_POLL_S):
                    check()
            yield
        finally:
            mine.set()


def publish_step(
    image: ImageSettings,
    root: Step[MadeImage],
    context: BuildContext,
    turns: Turns,
    reporter: TransferReporter,
    *,
    is_dry: bool,
    check: bool,
) -> Step[MadeImage]:
    """Push an image to all its repositories and tags, of which each is asked first, once.

    With `check` the registry is asked for every blob and manifest, too.
    """
    surveys: dict[RepositoryName, Survey] = {}

    def made(call: Call) -> Made:
        return Made(context, context.document(call.result(root).digest), image.base)

    def settled(call: Call) -> MadeImage | tuple[Reason, ...]:
        from detlayer.transfer.push import open_surveys, plan_surveyed

        whole = made(call)
        found = open_surveys(whole.root, image.references, context.registries, context.knowledge, check=check)
        surveys.update(found)
        reasons = []
        for reference in image.references:
            named = found[reference.name].facts.tags[reference.tag]
            if named is None or named.digest != whole.root.digest:
                reasons.append(
                    Reason("target", str(reference), str(named.digest) if named else "", str(whole.root.digest))
                )
        if check or (reasons and is_dry):
            for plan in plan_surveyed(whole, found):
                if is_dry:
                    call.add("bytes", plan.upload_bytes)
                if plan.is_repair:
                    reasons.append(Reason("output", str(plan.name)))
        return tuple(reasons) or call.result(root)

    def run(call: Call) -> MadeImage:
        from detlayer.transfer.push import push
        from detlayer.transfer.remote import gather

        whole = made(call)
        documents = gather(whole, whole.root).documents
        large = {blob.digest for one in documents for blob in one.layers if blob.size_bytes >= _LARGE_BYTES}
        with turns.turn({(name.registry, digest) for name in image.repositories for digest in large}, call.check):
            report = push(
                whole,
                image.references,
                context.registries,
                surveys=surveys,
                reporter=reporter,
            )
        call.add("bytes", sum(one.plan.upload_bytes for one in report.results if one.plan is not None))
        if report.first_error is not None:
            raise report.first_error
        return call.result(root)

    return Step(
        f"publish {image.name}",
        "publish",
        VERSIONS["publish"],
        run,
        MadeImage.from_texts,
        {"references": " ".join(map(str, image.references))},
        {"image": root.name},
        settled=settled,
    )

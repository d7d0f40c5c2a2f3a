"""The step that pushes an image to all its repositories, unless all tags are up to date."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from threading import Event as Flag
from threading import Lock
from typing import TYPE_CHECKING

from detlayer.building.context import BuildContext, BuiltSource
from detlayer.building.graph import Call, Reason, Step
from detlayer.building.results import MadeImage
from detlayer.building.settings import ImageSettings
from detlayer.building.step_versions import VERSIONS
from detlayer.oci.ports import TransferReporter
from detlayer.oci.references import RepositoryName
from detlayer.oci.types import Digest

if TYPE_CHECKING:
    from detlayer.transfer.push import Survey

_LARGE_BYTES = 64 << 10  # sending a smaller layer twice is faster than waiting
_POLL_S = 0.2


class Turns:
    """Lets one publish step send a large layer to a registry, while others wait and then mount it."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, Digest], Flag] = {}
        self._lock = Lock()

    @contextmanager
    def turn(self, layers: Collection[tuple[str, Digest]], check: Callable[[], None]) -> Iterator[None]:
        """Wait for earlier steps that send any of these layers, and claim the others.

        A step waits only for steps that came earlier, so there is no deadlock.
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


class Publisher:
    """Pushes an image of a build to all its repositories and tags, after resolving each tag once."""

    def __init__(
        self,
        image: ImageSettings,
        root: Step[MadeImage],
        context: BuildContext,
        turns: Turns,
        reporter: TransferReporter,
        *,
        is_dry: bool,
        check: bool,
    ) -> None:
        """`root` is the step that makes the image. With `check`, every blob and manifest is checked, too."""
        self._image = image
        self._root = root
        self._context = context
        self._turns = turns
        self._reporter = reporter
        self._is_dry = is_dry
        self._check = check
        self._surveys: dict[RepositoryName, Survey] = {}

    @property
    def step(self) -> Step[MadeImage]:
        return Step(
            f"publish {self._image.name}",
            "publish",
            VERSIONS["publish"],
            self._push,
            MadeImage.from_texts,
            {"references": " ".join(map(str, self._image.references))},
            {"image": self._root.name},
            settled=self._find,
        )

    def _made(self, call: Call) -> BuiltSource:
        return BuiltSource(self._context, self._context.document(call.result(self._root).digest), self._image.base)

    def _find(self, call: Call) -> MadeImage | tuple[Reason, ...]:
        """Resolve each tag; return the image if all tags point to it, else the reasons to push."""
        from detlayer.transfer.push import open_surveys, plan_surveyed

        made, context = self._made(call), self._context
        wanted = made.root.digest
        surveys = open_surveys(
            made.root, self._image.references, context.registries, context.knowledge, check=self._check
        )
        self._surveys |= surveys
        reasons = []
        for reference in self._image.references:
            named = surveys[reference.name].facts.tags[reference.tag]
            if named is None or named.digest != wanted:
                reasons.append(Reason("target", str(reference), str(named.digest) if named else "", str(wanted)))
        if self._check or (reasons and self._is_dry):
            for plan in plan_surveyed(made, surveys):
                if self._is_dry:
                    call.add("bytes", plan.upload_bytes)
                if plan.is_repair:
                    reasons.append(Reason("output", str(plan.name)))
        return tuple(reasons) or call.result(self._root)

    def _push(self, call: Call) -> MadeImage:
        from detlayer.transfer.push import push_image
        from detlayer.transfer.remote import gather

        made, image = self._made(call), self._image
        documents = gather(made, made.root).documents
        large = {blob.digest for one in documents for blob in one.layers if blob.size_bytes >= _LARGE_BYTES}
        with self._turns.turn({(name.registry, one) for name in image.repositories for one in large}, call.check):
            report = push_image(
                made,
                image.references,
                self._context.registries,
                surveys=self._surveys,
                reporter=self._reporter,
            )
        call.add("bytes", sum(one.plan.upload_bytes for one in report.results if one.plan is not None))
        if report.first_error is not None:
            raise report.first_error
        return call.result(self._root)

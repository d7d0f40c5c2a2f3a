"""The step that publishes an image: to all its repositories, where their tags name something else."""

from __future__ import annotations

from detlayer.building.desk import Desk, Made
from detlayer.building.versions import VERSIONS
from detlayer.config import ImageSettings
from detlayer.graph import Call, Reason, Step, Values
from detlayer.names import RepositoryName
from detlayer.oci import parse_digest
from detlayer.ports import TransferReporter
from detlayer.publishing import Survey, open_surveys, plan_surveyed, push


def publish_step(image: ImageSettings, root: str, desk: Desk, reporter: TransferReporter, *, is_dry: bool) -> Step:
    """Push an image to all its repositories and tags, of which each is asked first, once."""
    surveys: dict[RepositoryName, Survey] = {}

    def made(call: Call) -> Made:
        return Made(desk, desk.document(parse_digest(call["image"]["digest"])), image.base)

    def settled(call: Call) -> Values | tuple[Reason, ...]:
        whole = made(call)
        found = open_surveys(whole.root, image.references, desk.registries, memory=desk.store.memory)
        surveys.update(found)
        reasons = []
        for reference in image.references:
            named = found[reference.name].facts.tags[reference.tag]
            if named is None or named.digest != whole.root.digest:
                reasons.append(
                    Reason("target", str(reference), str(named.digest) if named else "", str(whole.root.digest))
                )
        if reasons and is_dry:
            for plan in plan_surveyed(whole, found):
                call.add("bytes", plan.upload_bytes)
        return tuple(reasons) or call["image"]

    def run(call: Call) -> Values:
        whole = made(call)
        report = push(
            whole,
            image.references,
            desk.registries,
            memory=desk.store.memory,
            surveys=surveys,
            reporter=reporter,
        )
        call.add("bytes", sum(one.plan.upload_bytes for one in report.results if one.plan is not None))
        if report.first_error is not None:
            raise report.first_error
        return call["image"]

    return Step(
        f"publish {image.name}",
        "publish",
        VERSIONS["publish"],
        run,
        {"references": " ".join(map(str, image.references))},
        {"image": root},
        settled=settled,
    )

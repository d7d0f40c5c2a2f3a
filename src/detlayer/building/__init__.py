"""Image builds: steps from references and trees to images in registries, layouts, archives and engines.

`files` finds a project and `settings` reads it; `request` is what is asked for and what became of it; `steps`,
`base_steps`, `pack_step`, `publish_step` and `write_step` wire the `graph`, whose threads share a `context`; `rounds`
runs it; `lock` pins; `single` makes an image of files alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from detlayer.building.context import Desk
from detlayer.building.graph import Done, Event, Step, closure, execute
from detlayer.building.lock import ANY_PLATFORM, Lock, LockedBase, LockedLayer, differences
from detlayer.building.publish_step import Turns, publish_step
from detlayer.building.request import STAGES, BuildReport, BuildReporter, BuiltImage, Request, SilentBuild, label
from detlayer.building.rounds import Rounds
from detlayer.building.settings import ImageSettings
from detlayer.building.steps import Wiring, locked_layer
from detlayer.errors import DetlayerError
from detlayer.oci.references import Reference
from detlayer.oci.types import parse_digest
from detlayer.packing.packer import default_jobs
from detlayer.store import Store

if TYPE_CHECKING:
    from detlayer.registry.client import Registries

__all__ = ["Build", "BuildReport", "BuildReporter", "BuiltImage", "Lock", "Request", "compare_layers"]

MIN_JOBS = 4  # most steps wait for the network or the disk

Report = Callable[[Event], None]


class Build:
    """A build that is wired and not yet run. A context: what it opened is closed with it."""

    def __init__(
        self,
        request: Request,
        store: Store,
        registries: Callable[[], Registries] | None,
        *,
        jobs: int | None = None,
        is_dry: bool = False,
        reporter: BuildReporter | None = None,
    ) -> None:
        """Wire the steps; raises ConfigError for what can't be built together.

        `registries` opens the network when it is first needed. `jobs` bounds how many steps run at a time.
        """
        request.check()
        self.request = request
        self.desk = Desk(store, None if request.is_offline else registries)
        self._is_dry = is_dry
        self._jobs = max(MIN_JOBS, default_jobs()) if jobs is None else jobs
        self._hears = reporter or SilentBuild()
        pack_jobs = max(1, (default_jobs() if jobs is None else jobs) // max(1, min(self._jobs, _count_packs(request))))
        self._about = {image.name: _describe(image) for image in request.images if image.git}
        self._wiring = Wiring(request, self.desk, self._hears, pack_jobs=pack_jobs, is_dry=is_dry, about=self._about)
        self._turns = Turns()
        self._roots: dict[str, str] = {}
        self._manifests: dict[str, dict[str, str]] = {}
        self._packs: dict[str, dict[str, dict[str, str]]] = {}
        self._goals: dict[str, list[str]] = {}
        for image in request.images:
            self._wire(image)

    def __enter__(self) -> Build:
        return self

    def __exit__(self, *failed: object) -> None:
        self.desk.__exit__(*failed)

    def _wire(self, image: ImageSettings) -> None:
        wiring, request = self._wiring, self.request
        root, manifests, packs = wiring.image(image)
        self._roots[image.name], self._manifests[image.name], self._packs[image.name] = root, manifests, packs
        goals = self._goals[image.name] = [root]
        if request.push:
            publish = publish_step(
                image, root, self.desk, self._turns, self._hears, is_dry=self._is_dry, check=request.check_registry
            )
            goals.append(wiring.add(publish))
        for output in request.outputs:
            from detlayer.building.write_step import platforms_of, write_step  # most builds only push

            platforms = platforms_of(image, output, request.host)
            downloads = [wiring.bases.download(image.base, one) for one in platforms] if image.base is not None else []
            made = root if platforms == image.platforms else manifests[label(platforms[0])]
            is_alone = len(request.images) == 1 or "{image}" in output.path
            step = write_step(image, output, made, downloads, self.desk, is_alone=is_alone)
            goals.append(wiring.add(step))

    @property
    def steps(self) -> list[Step]:
        """The steps, as far as they were asked for."""
        every = list(self._wiring.steps.values())
        until = self.request.until
        if self.request.only_layers:
            return [step for step in every if step.kind == "pack"]
        if until is None:
            return every
        return closure(every, [step.name for step in every if STAGES.index(step.kind) <= STAGES.index(until)])

    def run(self, *, report: Report | None = None, clock: Callable[[], float] | None = None) -> BuildReport:
        """Run the steps that have to; what fails for one image does not stop the others.

        A step that finds a layer corrupt in the store drops it. The steps then run once more: those that made it, and
        those that need it. An exception in the calling thread, such as a signal's, ends the run; the next build
        continues from there.
        """
        rounds = Rounds(report)
        while not rounds.is_over(
            execute(
                self.steps,
                traces=self.desk.traces,
                scope=self.request.scope,
                jobs=self._jobs,
                is_dry=self._is_dry,
                report=rounds.hear,
                clock=clock,
                stop=self.desk.cancel,
            )
        ):
            pass
        outcome = rounds.outcome
        requests, sent_bytes = self.desk.counts
        images = tuple(self._built(image, outcome.steps) for image in self.request.images)
        return BuildReport(images, outcome, requests, sent_bytes)

    def _built(self, image: ImageSettings, known: Mapping[str, Done]) -> BuiltImage:
        root = known.get(self._roots[image.name])
        digest = parse_digest(root.values["digest"]) if root is not None and "digest" in root.values else None
        manifests = {
            platform: parse_digest(known[name].values["digest"])
            for platform, name in self._manifests[image.name].items()
            if name in known and "digest" in known[name].values
        }
        error = next((found for name in self._goals[image.name] if (found := _error(known, name)) is not None), None)
        published = known.get(f"publish {image.name}")
        is_published = published is not None and published.state in ("hit", "ran")
        return BuiltImage(image.name, digest, manifests, image.references if is_published else (), error)

    def locked(self, report: BuildReport) -> Lock:
        """Write down what the images stood on, and what their layers were; only of a build that is good."""
        steps = report.outcome.steps
        bases: dict[str, LockedBase] = {}
        for image in self.request.images:
            if image.base is not None and not isinstance(image.base, str):
                name = str(image.base)
                root = parse_digest(steps[f"resolve {name}"].values["digest"])
                known = dict(bases[name].platforms) if name in bases else {}
                for platform in image.platforms:
                    known[label(platform)] = parse_digest(steps[f"fetch {name} {label(platform)}"].values["manifest"])
                bases[name] = LockedBase(root, known)
        return Lock(bases, self._locked_layers(steps))

    def _locked_layers(self, steps: Mapping[str, Done]) -> dict[str, dict[str, dict[str, LockedLayer]]]:
        return {
            image.name: {
                layer: {platform: locked_layer(steps[step].values) for platform, step in platforms.items()}
                for layer, platforms in self._packs[image.name].items()
            }
            for image in self.request.images
        }

    def compare(self, lock: Lock, report: BuildReport) -> list[str]:
        """Say in what the layers that were made, and the bases that are asked for, differ from a lock; a line each."""
        found = []
        for image in self.request.images:
            for platform in image.platforms if isinstance(image.base, Reference) else ():
                base = lock.bases.get(str(image.base))
                if base is None or label(platform) not in base.platforms:
                    found.append(f"base {image.base} of {image.name} for {platform}: not locked")
        return found + compare_layers(lock, self._locked_layers(report.outcome.steps))


def _describe(image: ImageSettings) -> dict[str, str]:
    from detlayer.building.revision import describe

    return describe(image.directory)


def compare_layers(locked: Lock, made: Mapping[str, Mapping[str, Mapping[str, LockedLayer]]]) -> list[str]:
    """Say in what layers differ from those of a lock, a line each; empty if in nothing."""
    found = []
    for image, layers in made.items():
        for layer, platforms in layers.items():
            for platform, one in platforms.items():
                before_layer = locked.layers.get(image, {}).get(layer, {}).get(platform)
                where = f"layer {layer} of {image}" + ("" if platform == ANY_PLATFORM else f" {platform}")
                if before_layer is None:
                    found.append(f"{where}: not locked")
                else:
                    found += [f"{where}: {what} {was} → {now}" for what, was, now in differences(before_layer, one)]
        gone = locked.layers.get(image, {}).keys() - layers.keys()
        found += [f"layer {layer} of {image}: locked, and not built any more" for layer in sorted(gone)]
    found += [f"image {image}: locked, and not built" for image in sorted(locked.layers.keys() - made.keys())]
    return found


def _error(steps: Mapping[str, Done], name: str) -> DetlayerError | None:
    done = steps.get(name)
    if done is None:
        return None
    if done.state == "blocked":
        return _error(steps, done.blocked_by)
    return done.error if isinstance(done.error, DetlayerError) else None


def _count_packs(request: Request) -> int:
    return sum(1 if layer.is_common else len(image.platforms) for image in request.images for layer in image.layers)

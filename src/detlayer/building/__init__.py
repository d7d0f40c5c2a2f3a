"""Image builds: steps from references and trees to images in registries, layouts, archives and engines.

`project_files` finds a project, and `settings` reads it. `steps` creates the steps of the `graph`, with `base_steps`,
`pack_step`, `publish_step` and `write_step`; their threads share a `context`. `lost_layers` repeats a run if a layer
is lost from the cache. `lock` pins bases; `image_from_files` assembles an image without a project.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from detlayer.building.context import BuildContext
from detlayer.building.graph import Done, Event, Monitor, Outcome, Step, closure, execute
from detlayer.building.lock_file import ANY_PLATFORM, Lock, LockedBase, LockedLayer, differences
from detlayer.building.lost_layers import Rounds
from detlayer.building.options import STAGES, BuildOptions, label
from detlayer.building.publish_step import Publisher, Turns
from detlayer.building.report import BuildReport, BuildReporter, BuiltImage, SilentBuild
from detlayer.building.results import MadeImage, WrittenImage
from detlayer.building.settings import ImageSettings
from detlayer.building.steps import BuildSteps, ImageSteps, locked_layer, output_paths
from detlayer.errors import DetlayerError
from detlayer.oci.references import Reference
from detlayer.packing.options import default_jobs
from detlayer.store import Store

if TYPE_CHECKING:
    from detlayer.registry.client import Registries

__all__ = ["Build", "BuildOptions", "BuildReport", "BuildReporter", "BuiltImage", "Lock", "compare_layers"]

MIN_JOBS = 4  # most steps wait for the network or the disk

Report = Callable[[Event], None]


class Build:
    """A build that has not run yet, as a context manager that closes everything the build opened."""

    def __init__(
        self,
        images: Sequence[ImageSettings],
        options: BuildOptions,
        store: Store,
        registries: Callable[[], Registries] | None,
        *,
        reporter: BuildReporter | None = None,
    ) -> None:
        """Check the options; raises ConfigError for images that can't be built together.

        `registries` opens the network on first use; None means a build without network.
        """
        options.check(images)
        self.images = tuple(images)
        self.options = options
        self.context = BuildContext(store, None if options.is_offline else registries)
        self._jobs = max(MIN_JOBS, default_jobs()) if options.jobs is None else options.jobs
        self._reporter = reporter or SilentBuild()
        pack_jobs = (options.jobs or default_jobs()) // max(1, min(self._jobs, _count_packs(images)))
        paths = output_paths(images, options)
        self._steps = BuildSteps(options, paths, self.context, self._reporter, pack_jobs=max(1, pack_jobs))
        self._turns = Turns()
        self._images: dict[str, ImageSteps] = {}
        self._published: dict[str, Step[MadeImage]] = {}
        self._written: dict[str, list[Step[WrittenImage]]] = {}

    def __enter__(self) -> Build:
        return self

    def __exit__(self, *failed: object) -> None:
        self.context.__exit__(*failed)

    def _add_image(self, image: ImageSettings) -> None:
        steps, options = self._steps, self.options
        made = self._images[image.name] = steps.image(image)
        if options.push:
            publisher = Publisher(
                image,
                made.root,
                self.context,
                self._turns,
                self._reporter,
                is_dry=self.options.is_dry,
                check=options.check_registry,
            )
            self._published[image.name] = steps.add(publisher.step)
        for output in options.outputs:
            from detlayer.building.write_step import ImageWriter, platforms_of  # most builds only push

            platforms = platforms_of(image, output, options.host)
            downloads = [steps.bases.download(image.base, one) for one in platforms] if image.base is not None else []
            root = made.root if platforms == image.platforms else made.manifests[label(platforms[0])]
            is_alone = len(self.images) == 1 or "{image}" in output.path
            writer = ImageWriter(image, output, root, downloads, self.context, is_alone=is_alone)
            self._written.setdefault(image.name, []).append(steps.add(writer.step))

    @property
    def steps(self) -> list[Step[Any]]:
        """The requested steps, created on first use, which may run git; raises ConfigError."""
        for image in self.images:
            if image.name not in self._images:
                self._add_image(image)
        every = list(self._steps.steps.values())
        until = self.options.until
        if self.options.only_layers:
            return [step for step in every if step.kind == "pack"]
        if until is None:
            return every
        return closure(every, [step.name for step in every if STAGES.index(step.kind) <= STAGES.index(until)])

    def run(self, *, report: Report | None = None, clock: Callable[[], float] | None = None) -> BuildReport:
        """Run the steps that need to run; an image that fails does not stop the others.

        A step that finds a corrupt layer in the store removes it. Then the steps that made the layer or need it run
        again. An exception in the calling thread, such as a signal's, stops the build; the next build resumes it.
        """
        rounds = Rounds(report)
        monitor = Monitor(rounds.report, clock or float, self.context.cancel)
        while not rounds.is_over(
            execute(
                self.steps,
                traces=self.context.traces,
                scope=self.options.scope,
                jobs=self._jobs,
                is_dry=self.options.is_dry,
                monitor=monitor,
            )
        ):
            pass
        outcome = rounds.outcome
        requests, sent_bytes = self.context.counts
        images = tuple(self._built(image, outcome) for image in self.images)
        return BuildReport(images, outcome, requests, sent_bytes)

    def _built(self, image: ImageSettings, outcome: Outcome) -> BuiltImage:
        steps = self._images[image.name]
        root = outcome.result(steps.root)
        made = {platform: outcome.result(step) for platform, step in steps.manifests.items()}
        published = self._published.get(image.name)
        goals: list[Step[Any]] = [
            steps.root,
            *([published] if published is not None else []),
            *self._written.get(image.name, []),
        ]
        return BuiltImage(
            image.name,
            root.digest if root is not None else None,
            {platform: manifest.digest for platform, manifest in made.items() if manifest is not None},
            image.references if published is not None and outcome.result(published) is not None else (),
            next((error for step in goals if (error := _error(outcome.steps, step.name)) is not None), None),
        )

    def locked(self, report: BuildReport) -> Lock:
        """Return the lock of a build without errors: the digests of its bases, and its layers."""
        outcome = report.outcome
        bases: dict[str, LockedBase] = {}
        for image in self.images:
            steps = self._images[image.name]
            resolved = outcome.result(steps.resolved) if steps.resolved is not None else None
            if resolved is not None and isinstance(image.base, Reference):
                name = str(image.base)
                fetched = {platform: outcome.result(step) for platform, step in steps.bases.items()}
                known = dict(bases[name].platforms) if name in bases else {}
                known |= {platform: one.manifest for platform, one in fetched.items() if one is not None}
                bases[name] = LockedBase(resolved.digest, known)
        return Lock(bases, self._locked_layers(outcome))

    def _locked_layers(self, outcome: Outcome) -> dict[str, dict[str, dict[str, LockedLayer]]]:
        return {
            image.name: {
                layer: {
                    platform: locked_layer(made)
                    for platform, step in platforms.items()
                    if (made := outcome.result(step)) is not None
                }
                for layer, platforms in self._images[image.name].layers.items()
            }
            for image in self.images
        }

    def compare(self, lock: Lock, report: BuildReport) -> list[str]:
        """Return the differences of the built layers and configured bases from a lock, one line each."""
        found = []
        for image in self.images:
            for platform in image.platforms if isinstance(image.base, Reference) else ():
                base = lock.bases.get(str(image.base))
                if base is None or label(platform) not in base.platforms:
                    found.append(f"base {image.base} of {image.name} for {platform}: not locked")
        return found + compare_layers(lock, self._locked_layers(report.outcome))


def compare_layers(locked: Lock, made: Mapping[str, Mapping[str, Mapping[str, LockedLayer]]]) -> list[str]:
    """Return the differences of layers from a lock, one line each."""
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
        found += [f"layer {layer} of {image}: locked, but no longer built" for layer in sorted(gone)]
    found += [f"image {image}: locked, but not built" for image in sorted(locked.layers.keys() - made.keys())]
    return found


def _error(steps: Mapping[str, Done], name: str) -> DetlayerError | None:
    done = steps.get(name)
    if done is None:
        return None
    if done.state == "blocked":
        return _error(steps, done.blocked_by)
    return done.error if isinstance(done.error, DetlayerError) else None


def _count_packs(images: Sequence[ImageSettings]) -> int:
    return sum(1 if layer.is_common else len(image.platforms) for image in images for layer in image.layers)

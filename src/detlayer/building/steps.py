"""Create the steps of a build for each image and platform. Common steps are shared.

    resolve ── fetch ──┬── configure ── assemble ── index ──┬── publish
              pack ────┘                                    └── write
              (download, if an output needs the layers of the base)

Steps pass digests to each other; the context has the documents and blobs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec.structs import replace

from detlayer.building.base_steps import BaseSteps
from detlayer.building.bases import read_base
from detlayer.building.context import BaseName, BuildContext
from detlayer.building.graph import Call, Step
from detlayer.building.graph.step import ResultT
from detlayer.building.lock_file import ANY_PLATFORM, LockedLayer, check
from detlayer.building.options import BuildOptions, label
from detlayer.building.pack_step import Packer
from detlayer.building.report import BuildReporter
from detlayer.building.results import FetchedBase, MadeConfig, MadeImage, PackedLayer, ResolvedBase
from detlayer.building.settings import ImageSettings, LayerSettings
from detlayer.building.step_versions import VERSIONS
from detlayer.oci.assembly import Base, Part, assemble, configure, index, runs_on, scratch
from detlayer.oci.references import Reference
from detlayer.oci.types import BASE_DIGEST, BASE_NAME, Digest, Platform


class BuildSteps:
    """Creates the steps of a build, each once."""

    def __init__(
        self,
        options: BuildOptions,
        outputs: tuple[tuple[str, bool], ...],
        context: BuildContext,
        reporter: BuildReporter,
        *,
        pack_jobs: int,
    ) -> None:
        self._options = options
        self._outputs = outputs
        self._context = context
        self._reporter = reporter
        self._pack_jobs = pack_jobs
        self._revisions: dict[str, dict[str, str]] = {}
        self.steps: dict[str, Step[Any]] = {}
        self.bases = BaseSteps(options, context, reporter, self.add)
        self._packs: dict[LayerSettings, Step[PackedLayer]] = {}

    def add(self, step: Step[ResultT], /) -> Step[ResultT]:
        """Add a step; return the existing step if the name is taken."""
        return self.steps.setdefault(step.name, step)

    def _revision(self, image: ImageSettings) -> dict[str, str]:
        """Return the labels that git provides for an image; raises ConfigError."""
        if not image.git:
            return {}
        if image.directory not in self._revisions:
            from detlayer.building.git_revision import describe

            with (image.location / "git").located():
                self._revisions[image.directory] = describe(image.directory)
        return self._revisions[image.directory]

    # -- layers

    def pack(self, image: ImageSettings, layer: LayerSettings, platform: Platform) -> Step[PackedLayer]:
        """Return the step that packs a layer. Layers with equal settings share a step, also across platforms."""
        context = self._context
        named = layer.on(platform)
        same = replace(named, name="", directory=os.path.realpath(named.directory or "."))
        if same in self._packs:
            return self._packs[same]
        is_common = layer.is_common
        name = f"pack {image.name}/{layer.name}" + ("" if is_common else f" {label(platform)}")

        packer = Packer(
            named,
            context,
            jobs=self._pack_jobs,
            warn=self._reporter.warning,
            outputs=self._outputs,
            is_dry=self._options.is_dry,
            progress=partial(self._reporter.progress, name),
        )
        step = self._packs[same] = self.add(
            Step(
                name,
                "pack",
                VERSIONS["pack"],
                packer.pack,
                PackedLayer.from_texts,
                settings_of(named),
                settled=packer.find,
                keeps=False,
            )
        )
        return step

    # -- images

    def image(self, image: ImageSettings) -> ImageSteps:
        """Create the steps of an image, up to its manifest or index."""
        made = {label(platform): self._manifest(image, platform) for platform in image.platforms}
        manifests = {platform: one.manifest for platform, one in made.items()}
        packs: dict[str, dict[str, Step[PackedLayer]]] = {}
        for platform, one in made.items():
            for layer, step in zip(image.layers, one.layers, strict=True):
                packs.setdefault(layer.name, {})[ANY_PLATFORM if layer.is_common else platform] = step
        return ImageSteps(
            root=next(iter(manifests.values())) if len(manifests) == 1 else self._index(image, manifests),
            manifests=manifests,
            layers=packs,
            resolved=self.bases.resolve(image.base) if image.base is not None else None,
            bases={platform: one.base for platform, one in made.items() if one.base is not None},
        )

    def _manifest(self, image: ImageSettings, platform: Platform) -> _ManifestSteps:
        layers = tuple(self.pack(image, one, platform) for one in image.layers)
        base = self.bases.fetch(image.base, platform) if image.base is not None else None
        needs = {"base": base.name} if base is not None else {}
        needs |= {
            f"layer {at} {layer.name}": step.name
            for at, (layer, step) in enumerate(zip(image.layers, layers, strict=True))
        }
        inputs = _ManifestInputs(self._context, image, platform, base, layers)
        config = self._configure(inputs, needs)
        return _ManifestSteps(self._assemble(inputs, config, {**needs, "config": config.name}), layers, base)

    def _configure(self, inputs: _ManifestInputs, needs: Mapping[str, str]) -> Step[MadeConfig]:
        context, image, platform = inputs.context, inputs.image, inputs.platform
        lock = self._options.lock if self._options.policy == "locked" else None
        runtime = replace(image.runtime, labels={**self._revision(image), **image.runtime.labels})

        def run(call: Call) -> MadeConfig:
            settings = runtime
            if image.format == "docker":  # which has no annotations
                settings = replace(runtime, labels={**inputs.base_annotations(call), **runtime.labels})
            base, parts = inputs.read_base(call), inputs.parts(call)
            return MadeConfig(context.put(configure(base, parts, settings, platform=platform, created=image.created)))

        def check_lock(call: Call) -> None:
            for layer, step in zip(image.layers, inputs.layers, strict=True) if lock is not None else ():
                locked = lock.layer(image.name, layer.name, label(platform))  # type: ignore[union-attr]
                check(locked, locked_layer(call.result(step)), f"layer {layer.name} of {image.name}")

        texts = {"runtime": text_of(runtime), "created": str(image.created), "platform": label(platform)}
        if image.format == "docker":
            texts["base"] = str(image.base or "scratch")
        return self.add(
            Step(
                f"configure {image.name} {label(platform)}",
                "configure",
                VERSIONS["configure"],
                run,
                MadeConfig.from_texts,
                texts,
                needs,
                frozenset(("manifest", "config", "diff-id")),
                check=check_lock,
                is_intact=lambda made: context.known(made.config) is not None,
                is_free=True,
            )
        )

    def _assemble(self, inputs: _ManifestInputs, config: Step[MadeConfig], needs: Mapping[str, str]) -> Step[MadeImage]:
        context, image, platform = inputs.context, inputs.image, inputs.platform
        annotations = {**self._revision(image), **image.annotations}

        def run(call: Call) -> MadeImage:
            base = inputs.read_base(call)
            made = assemble(
                context.data(call.result(config).config),
                (*base.parts, *inputs.parts(call)),
                format=image.format,
                annotations={**inputs.base_annotations(call), **annotations},
            )
            context.put(made.data)
            return MadeImage(made.digest, runs_on(base, platform))

        return self.add(
            Step(
                f"assemble {image.name} {label(platform)}",
                "assemble",
                VERSIONS["assemble"],
                run,
                MadeImage.from_texts,
                {
                    "format": image.format,
                    "annotations": text_of(annotations),
                    "base": str(image.base or "scratch"),
                    "platform": label(platform),
                },
                needs,
                frozenset(("manifest", "config", "digest", "media-type")),
                is_intact=lambda made: context.known(made.digest) is not None,
                is_free=True,
            )
        )

    def _index(self, image: ImageSettings, manifests: Mapping[str, Step[MadeImage]]) -> Step[MadeImage]:
        context = self._context
        base = self.bases.resolve(image.base) if image.base is not None else None
        needs = {f"manifest {at}": step.name for at, step in enumerate(manifests.values())}
        if base is not None:
            needs["base"] = base.name
        annotations = {**self._revision(image), **image.annotations}

        def run(call: Call) -> MadeImage:
            made = [call.result(step) for step in manifests.values()]
            pairs = [(context.document(one.digest), one.platform) for one in made if one.platform is not None]
            own = base_annotations(image.base, call.result(base).digest) if base is not None else {}
            document = index(pairs, format=image.format, annotations={**own, **annotations})
            context.put(document.data)
            return MadeImage(document.digest)

        return self.add(
            Step(
                f"index {image.name}",
                "index",
                VERSIONS["index"],
                run,
                MadeImage.from_texts,
                {"format": image.format, "annotations": text_of(annotations), "base": str(image.base or "scratch")},
                needs,
                is_intact=lambda made: context.known(made.digest) is not None,
                is_free=True,
            )
        )


class ImageSteps(msgspec.Struct, frozen=True, eq=False):
    """The steps of an image. `root` makes the document that is tagged: the index, or the only manifest.

    Manifests and bases are keyed by platform, layers by name and platform (`any` if common to all).
    """

    root: Step[MadeImage]
    manifests: Mapping[str, Step[MadeImage]]
    layers: Mapping[str, Mapping[str, Step[PackedLayer]]]
    resolved: Step[ResolvedBase] | None
    bases: Mapping[str, Step[FetchedBase]]


class _ManifestSteps(msgspec.Struct, frozen=True, eq=False):
    manifest: Step[MadeImage]
    layers: tuple[Step[PackedLayer], ...]
    base: Step[FetchedBase] | None


class _ManifestInputs(msgspec.Struct, frozen=True, eq=False):
    """The inputs of a config and a manifest."""

    context: BuildContext
    image: ImageSettings
    platform: Platform
    base: Step[FetchedBase] | None
    layers: tuple[Step[PackedLayer], ...]

    def read_base(self, call: Call) -> Base:
        if self.base is None or self.image.base is None:
            return scratch(self.platform)
        manifest = self.context.document(call.result(self.base).manifest)
        return read_base(manifest, self.platform, str(self.image.base), self.context.base_source(self.image.base))

    def base_annotations(self, call: Call) -> dict[str, str]:
        return base_annotations(self.image.base, call.result(self.base).manifest) if self.base is not None else {}

    def parts(self, call: Call) -> list[Part]:
        made = (call.result(step) for step in self.layers)
        return [
            Part(one.descriptor, one.diff_id, f"detlayer build {layer.name}")
            for layer, one in zip(self.image.layers, made, strict=True)
        ]


def output_paths(images: Sequence[ImageSettings], options: BuildOptions) -> tuple[tuple[str, bool], ...]:
    """Return the paths that a build writes, and whether each is a directory. No layer may contain them."""
    return tuple(
        (path, one.kind == "oci") for one in options.outputs for each in images if (path := one.path_for(each.name))
    )


def base_annotations(base: BaseName | None, digest: Digest) -> dict[str, str]:
    """Return the annotations for a base (image-spec annotations.md), without the path of a local layout."""
    if base is None:
        return {}
    name = {BASE_NAME: str(replace(base, digest=None))} if isinstance(base, Reference) else {}
    return {**name, BASE_DIGEST: str(digest)}


def locked_layer(made: PackedLayer) -> LockedLayer:
    """Return the lock entry of a layer."""
    return LockedLayer(made.key, str(made.diff_id), str(made.digest), made.codec_class)


def settings_of(layer: LayerSettings) -> dict[str, str]:
    """Return a layer's settings as step inputs by key, so that a change can be reported."""
    document = {**msgspec.to_builtins(layer), "codec": layer.codec.name}
    return {name: text_of(value) for name, value in document.items() if name != "name"}


def text_of(value: Any) -> str:
    """Encode a setting canonically, keeping its order."""
    return msgspec.json.encode(value).decode()

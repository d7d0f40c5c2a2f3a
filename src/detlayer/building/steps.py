"""The steps of a build, wired for each image and platform. What is common to several is one step.

    resolve ── fetch ──┬── configure ── assemble ── index ──┬── publish
              pack ────┘                                    └── write
              (download, where bytes of the base are wanted)

Steps hand each other digests; documents and blobs are on the desk.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec
from msgspec.structs import replace

from detlayer.building.base_steps import BaseSteps
from detlayer.building.bases import read_base
from detlayer.building.context import BaseName, Desk
from detlayer.building.graph import Call, Step, Values
from detlayer.building.lock import LockedLayer, check
from detlayer.building.pack_step import Packer, part_of
from detlayer.building.request import BuildReporter, Request, label
from detlayer.building.settings import ImageSettings, LayerSettings
from detlayer.building.versions import VERSIONS
from detlayer.oci.assembly import Base, Part, assemble, configure, index, runs_on, scratch
from detlayer.oci.references import Reference
from detlayer.oci.types import BASE_DIGEST, BASE_NAME, Platform, canonical_json, parse_digest


class Wiring:
    """Makes steps, each once."""

    def __init__(
        self,
        request: Request,
        desk: Desk,
        hears: BuildReporter,
        *,
        pack_jobs: int,
        is_dry: bool,
        about: Mapping[str, Mapping[str, str]],
    ) -> None:
        self._request = request
        self._desk = desk
        self._hears = hears
        self._pack_jobs = pack_jobs
        self._is_dry = is_dry
        self._about = about
        self.steps: dict[str, Step] = {}
        self.bases = BaseSteps(request, desk, hears, self.add)
        self._packs: dict[LayerSettings, str] = {}

    def add(self, step: Step) -> str:
        self.steps.setdefault(step.name, step)
        return step.name

    # -- layers

    def pack(self, image: ImageSettings, layer: LayerSettings, platform: Platform) -> str:
        """Pack a layer; one that names no platform is packed for all, and what is the same is packed once."""
        desk = self._desk
        named = layer.on(platform)
        same = replace(named, name="", directory=os.path.realpath(named.directory or "."))
        if same in self._packs:
            return self._packs[same]
        is_common = layer.is_common
        name = f"pack {image.name}/{layer.name}" + ("" if is_common else f" {label(platform)}")

        packer = Packer(
            named,
            desk,
            jobs=self._pack_jobs,
            warn=self._hears.warning,
            outputs=_paths(self._request),
            is_dry=self._is_dry,
            progress=partial(self._hears.progress, name),
        )
        self._packs[same] = name
        return self.add(
            Step(name, "pack", VERSIONS["pack"], packer.pack, settings_of(named), settled=packer.find, keeps=False)
        )

    # -- images

    def image(self, image: ImageSettings) -> tuple[str, dict[str, str], dict[str, dict[str, str]]]:
        """Wire an image: the step that it is the result of, those of its manifests, and those of its layers."""
        manifests: dict[str, str] = {}
        packs: dict[str, dict[str, str]] = {}
        for platform in image.platforms:
            layers = {one.name: self.pack(image, one, platform) for one in image.layers}
            for one in image.layers:
                packs.setdefault(one.name, {})["any" if one.is_common else label(platform)] = layers[one.name]
            needs = {f"layer {at} {name}": step for at, (name, step) in enumerate(layers.items())}
            base: dict[str, str] = {}
            if image.base is not None:
                base = {"base": self.bases.fetch(image.base, platform)}
            config = self._configure(image, platform, {**base, **needs})
            manifests[label(platform)] = self._assemble(image, platform, {**base, **needs, "config": config})
        if len(manifests) == 1:
            return next(iter(manifests.values())), manifests, packs
        return self._index(image, manifests), manifests, packs

    def _base(self, image: ImageSettings, platform: Platform, call: Call) -> Base:
        if "base" not in call or image.base is None:
            return scratch(platform)
        manifest = self._desk.document(parse_digest(call["base"]["manifest"]))
        return read_base(manifest, platform, str(image.base), self._desk.base_source(image.base))

    def _parts(self, image: ImageSettings, call: Call) -> list[Part]:
        return [
            part_of(call[f"layer {at} {one.name}"], f"detlayer build {one.name}") for at, one in enumerate(image.layers)
        ]

    def _configure(self, image: ImageSettings, platform: Platform, needs: Mapping[str, str]) -> str:
        desk, lock = self._desk, self._request.lock if self._request.policy == "locked" else None
        runtime = replace(image.runtime, labels={**self._about.get(image.name, {}), **image.runtime.labels})

        def run(call: Call) -> Values:
            settings = runtime
            if image.format == "docker" and "base" in call:  # it has no annotations
                own = base_annotations(image.base, call["base"]["manifest"])
                settings = replace(runtime, labels={**own, **runtime.labels})
            config = configure(
                self._base(image, platform, call),
                self._parts(image, call),
                settings,
                platform=platform,
                created=image.created,
            )
            return {"config": str(desk.put(config))}

        def observe(call: Call) -> Values:
            for at, one in enumerate(image.layers) if lock is not None else ():
                made = locked_layer(call[f"layer {at} {one.name}"])
                assert lock is not None
                check(lock.layer(image.name, one.name, label(platform)), made, f"layer {one.name} of {image.name}")
            return {}

        inputs = {"runtime": text_of(runtime), "created": str(image.created), "platform": label(platform)}
        if image.format == "docker":
            inputs["base"] = str(image.base or "scratch")
        return self.add(
            Step(
                f"configure {image.name} {label(platform)}",
                "configure",
                VERSIONS["configure"],
                run,
                inputs,
                needs,
                frozenset(("manifest", "config", "diff-id")),
                observe=observe,
                is_intact=lambda values: desk.known(parse_digest(values["config"])) is not None,
                is_free=True,
            )
        )

    def _assemble(self, image: ImageSettings, platform: Platform, needs: Mapping[str, str]) -> str:
        desk = self._desk
        annotations = {**self._about.get(image.name, {}), **image.annotations}

        def run(call: Call) -> Values:
            base = self._base(image, platform, call)
            own = base_annotations(image.base, call["base"]["manifest"]) if "base" in call else {}
            config = desk.data(parse_digest(call["config"]["config"]))
            parts = (*base.parts, *self._parts(image, call))
            made = assemble(config, parts, format=image.format, annotations={**own, **annotations})
            desk.put(made.data)
            return {
                "digest": str(made.digest),
                "platform": canonical_json(runs_on(base, platform).to_document()).decode(),
            }

        return self.add(
            Step(
                f"assemble {image.name} {label(platform)}",
                "assemble",
                VERSIONS["assemble"],
                run,
                {
                    "format": image.format,
                    "annotations": text_of(annotations),
                    "base": str(image.base or "scratch"),
                    "platform": label(platform),
                },
                needs,
                frozenset(("manifest", "config", "digest", "media-type")),
                is_intact=lambda values: desk.known(parse_digest(values["digest"])) is not None,
                is_free=True,
            )
        )

    def _index(self, image: ImageSettings, manifests: Mapping[str, str]) -> str:
        desk = self._desk
        needs = {f"manifest {at}": name for at, name in enumerate(manifests.values())}
        if image.base is not None:
            needs["base"] = self.bases.resolve(image.base)
        annotations = {**self._about.get(image.name, {}), **image.annotations}

        def run(call: Call) -> Values:
            pairs = []
            for role in needs:
                if role != "base":
                    on = msgspec.json.decode(call[role]["platform"], type=dict[str, str])
                    platform = Platform(on["os"], on["architecture"], on.get("variant", ""), on.get("os.version", ""))
                    pairs.append((desk.document(parse_digest(call[role]["digest"])), platform))
            own = base_annotations(image.base, call["base"]["digest"]) if "base" in call else {}
            made = index(pairs, format=image.format, annotations={**own, **annotations})
            desk.put(made.data)
            return {"digest": str(made.digest)}

        return self.add(
            Step(
                f"index {image.name}",
                "index",
                VERSIONS["index"],
                run,
                {"format": image.format, "annotations": text_of(annotations), "base": str(image.base or "scratch")},
                needs,
                is_intact=lambda values: desk.known(parse_digest(values["digest"])) is not None,
                is_free=True,
            )
        )


def _paths(request: Request) -> tuple[tuple[str, bool], ...]:
    """Name what a build writes, and whether it is a directory: no layer may hold it."""
    return tuple(
        (path, one.kind == "oci")
        for one in request.outputs
        for each in request.images
        if (path := one.path_for(each.name))
    )


def base_annotations(base: BaseName | None, digest: str) -> dict[str, str]:
    """Say what an image stands on (image-spec annotations.md); a layout has no name that means anything elsewhere."""
    if base is None:
        return {}
    name = {BASE_NAME: str(replace(base, digest=None))} if isinstance(base, Reference) else {}
    return {**name, BASE_DIGEST: digest}


def locked_layer(values: Values) -> LockedLayer:
    """Read the results of a pack as a lock has them."""
    return LockedLayer(values["key"], values["diff-id"], values["digest"], values["codec-class"])


def settings_of(layer: LayerSettings) -> dict[str, str]:
    """Give a layer's settings as inputs of a step, by key, so that what changed can be named."""
    document = {**msgspec.to_builtins(layer), "codec": layer.codec.name}
    return {name: text_of(value) for name, value in document.items() if name != "name"}


def text_of(value: Any) -> str:
    """Spell a value of settings, with its order, in one way."""
    return msgspec.json.encode(value).decode()

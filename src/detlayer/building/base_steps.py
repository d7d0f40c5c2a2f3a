"""The steps that a base takes: what it is now, which manifest a platform gets, and its layers where they are wanted."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from detlayer.building.bases import choose_manifest, read_base
from detlayer.building.context import BaseName, BuildContext
from detlayer.building.fetch import download_layer, resolve_now
from detlayer.building.graph import Call, Step
from detlayer.building.graph.step import ResultT
from detlayer.building.options import BuildOptions, label
from detlayer.building.results import DownloadedBase, FetchedBase, ResolvedBase
from detlayer.building.step_versions import VERSIONS
from detlayer.errors import IntegrityError
from detlayer.oci.documents import parse_document
from detlayer.oci.ports import TransferReporter
from detlayer.oci.references import Reference
from detlayer.oci.types import Descriptor, Digest, Platform
from detlayer.transfer.workers import Job, work_off


class AddStep(Protocol):
    """Adds a step to a build; returns the one of the same name if there is one already."""

    def __call__(self, step: Step[ResultT], /) -> Step[ResultT]: ...


class BaseSteps:
    """Makes the steps of bases."""

    def __init__(self, options: BuildOptions, context: BuildContext, reporter: TransferReporter, add: AddStep) -> None:
        self._options = options
        self._context = context
        self._reporter = reporter
        self._add = add

    def resolve(self, base: BaseName) -> Step[ResolvedBase]:
        """Resolve a base to a digest, once for all images on it."""
        context, options = self._context, self._options

        def run(call: Call) -> ResolvedBase:
            return ResolvedBase(find())

        def find() -> Digest:
            if isinstance(base, str):
                root = context.layout(base).root
                context.put(root.data)
                return root.digest
            if base.digest is not None:
                return base.digest
            lock = options.lock
            if lock is not None and (options.policy == "locked" or str(base) in lock.bases):
                return lock.base(str(base)).digest
            return resolve_now(context, base)

        return self._add(
            Step(
                f"resolve {base}",
                "resolve",
                VERSIONS["resolve"],
                run,
                ResolvedBase.from_texts,
                {"base": str(base)},
                is_free=True,
                keeps=False,
            )
        )

    def fetch(self, base: BaseName, platform: Platform) -> Step[FetchedBase]:
        """Fetch the manifest and config of a base for a platform."""
        context, lock = self._context, self._options.lock if self._options.policy == "locked" else None
        source = context.base_source(base)
        locked = ""
        if lock is not None and isinstance(base, Reference) and not self._options.only_layers:
            locked = str(lock.manifest(str(base), label(platform)))

        resolved = self.resolve(base)

        def run(call: Call) -> FetchedBase:
            name = str(base)
            digest = call.result(resolved).digest
            data = context.known(digest)
            if data is None:
                assert isinstance(base, Reference)  # a layout's index was put when it was resolved
                data = context.repository(base.name).get_manifest(str(digest)).data
                context.put(data)
            manifest = choose_manifest(parse_document(data, name), platform, name, source.document)
            if locked not in ("", str(manifest.digest)):
                raise IntegrityError(
                    "lock-differs",
                    f"{name} has {manifest.digest} for {platform}, not {locked} as the lock says",
                    "`detlayer lock` writes it anew",
                )
            read_base(manifest, platform, name, source)  # it has to be one, and its config be here
            context.put(manifest.data)
            assert manifest.config is not None  # read_base has read it
            return FetchedBase(manifest.digest, manifest.config.digest)

        def is_intact(fetched: FetchedBase) -> bool:
            # If the lock says otherwise, the step runs again and fails.
            return locked in ("", str(fetched.manifest)) and all(
                context.known(one) is not None for one in (fetched.manifest, fetched.config)
            )

        return self._add(
            Step(
                f"fetch {base} {label(platform)}",
                "fetch",
                VERSIONS["fetch"],
                run,
                FetchedBase.from_texts,
                {"base": str(base), "platform": label(platform)},
                {"base": resolved.name},
                is_intact=is_intact,
                is_free=True,
            )
        )

    def download(self, base: BaseName, platform: Platform) -> Step[DownloadedBase]:
        """Download the layers of a base into the store, for outputs that need their bytes."""
        context = self._context
        source = context.base_source(base)

        fetched = self.fetch(base, platform)

        def layers(manifest: Digest) -> list[Descriptor]:
            return [one for one in context.document(manifest).layers if not one.is_foreign]

        def run(call: Call) -> DownloadedBase:
            manifest = call.result(fetched).manifest
            missing = [one for one in layers(manifest) if context.body(one) is None]
            work_off(
                [
                    Job(partial(download_layer, one, source, context, self._reporter, call.check), is_data=True)
                    for one in missing
                ]
            )
            call.add("bytes", sum(one.size_bytes for one in missing))
            return DownloadedBase(manifest)

        def is_intact(downloaded: DownloadedBase) -> bool:
            return context.known(downloaded.manifest) is not None and all(
                context.body(blob) is not None for blob in layers(downloaded.manifest)
            )

        return self._add(
            Step(
                f"download {base} {label(platform)}",
                "download",
                VERSIONS["download"],
                run,
                DownloadedBase.from_texts,
                needs={"base": fetched.name},
                is_intact=is_intact,
            )
        )

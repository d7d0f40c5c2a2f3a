"""The steps for a base image: resolve its tag, fetch the manifest of each platform, download layers if needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Protocol

from detlayer.building.bases import choose_manifest, read_base
from detlayer.building.context import BaseName, BaseSource, BuildContext
from detlayer.building.graph import Call, Step
from detlayer.building.graph.step import ResultT
from detlayer.building.options import BuildOptions, label
from detlayer.building.results import DownloadedBase, FetchedBase, ResolvedBase
from detlayer.building.step_versions import VERSIONS
from detlayer.errors import IntegrityError, LayerError, OutputError, UnavailableError
from detlayer.oci.documents import parse_document
from detlayer.oci.ports import TransferReporter
from detlayer.oci.references import Reference
from detlayer.oci.types import Descriptor, Digest, Platform, parse_digest
from detlayer.transfer.workers import Job, work_off

_PIECE_BYTES = 1 << 20


class AddStep(Protocol):
    """Adds a step to a build; returns the existing step if the name is taken."""

    def __call__(self, step: Step[ResultT], /) -> Step[ResultT]: ...


class BaseSteps:
    """Creates the steps of bases."""

    def __init__(self, options: BuildOptions, context: BuildContext, reporter: TransferReporter, add: AddStep) -> None:
        self._options = options
        self._context = context
        self._reporter = reporter
        self._add = add

    def resolve(self, base: BaseName) -> Step[ResolvedBase]:
        """Resolve a base to a digest, once for all images that use it."""
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
            return _resolve_now(context, base)

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
            data = source.document(Descriptor("", call.result(resolved).digest, 0))
            manifest = choose_manifest(parse_document(data, name), platform, name, source.document)
            if locked not in ("", str(manifest.digest)):
                raise IntegrityError(
                    "lock-differs",
                    f"{name} has {manifest.digest} for {platform}, but detlayer.lock has {locked}",
                    "run `detlayer lock` to update it",
                )
            read_base(manifest, platform, name, source)  # checks the base and puts its config in the store
            context.put(manifest.data)
            assert manifest.config is not None  # checked by read_base
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
                    Job(partial(_download_layer, one, source, context, self._reporter, call.check), is_data=True)
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


def _resolve_now(context: BuildContext, base: Reference) -> Digest:
    """Resolve a reference at its registry, with one request if the digest is cached. Raises RegistryError.

    Without network, returns the digest of the last build; raises UnavailableError if there was none.
    """
    last = _last_digest(context, base)
    if context.is_offline:
        if last is None:
            raise UnavailableError(
                "offline", f"{base} is not in the cache, and the build is offline", "build once without --offline"
            )
        return last
    repository = context.repository(base.name)
    if last is not None and context.known(last) is not None:
        named = repository.head_manifest(base.target)
        if named is not None and context.known(named.digest) is not None:
            if named.digest != last:
                context.traces.put(f"resolved {base}", str(named.digest).encode())
            return named.digest
    document = repository.get_manifest(base.target)
    context.put(document.data)
    context.traces.put(f"resolved {base}", str(document.digest).encode())
    return document.digest


def _last_digest(context: BuildContext, base: Reference) -> Digest | None:
    data = context.traces.get(f"resolved {base}")
    try:
        return parse_digest(data.decode()) if data is not None else None
    except ValueError:
        return None


def _download_layer(
    blob: Descriptor, source: BaseSource, context: BuildContext, reporter: TransferReporter, check: Callable[[], None]
) -> None:
    """Download a layer into the store and verify its digest.

    Raises RegistryError, LayerError, IntegrityError, and OutputError if the store can't be written.
    """
    body = source.body(blob)
    if body is None:
        raise LayerError("blob-missing", f"layer {blob.digest} of the base is missing", "pull the whole base again")
    name = str(blob.digest)
    reporter.transfer(name, blob.size_bytes)
    sha, count = hashlib.sha256(), 0
    try:
        incoming = context.store.blobs.incoming()
        try:
            with body.open() as file:
                while piece := file.read(_PIECE_BYTES):
                    check()
                    sha.update(piece)
                    count += len(piece)
                    incoming.write(piece)
                    reporter.advance(name, len(piece))
            if count != blob.size_bytes or sha.hexdigest() != blob.digest.hex:
                raise IntegrityError("blob-digest", f"the data of {blob.digest} is corrupt", "pull the base again")
            incoming.commit(blob.digest)
            reporter.done(name, "pulled")
        finally:
            incoming.discard()
    except OSError as error:
        raise OutputError(
            "output-write",
            f"can't cache {blob.digest}: {error.strerror}",
            "free some space, or use another --cache-dir",
        ) from error

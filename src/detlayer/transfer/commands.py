"""Python API for transfers: push, plan, pull and resolve, with the same strings as on the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from detlayer.errors import ConfigError, printable
from detlayer.images.layout_writer import LayoutWriter
from detlayer.oci.ports import Memory, TransferReporter
from detlayer.oci.references import Reference, is_tag, parse_reference
from detlayer.oci.types import Platform
from detlayer.registry.client import Registries
from detlayer.transfer.plan import Plan
from detlayer.transfer.pull import Pulled, PullOptions, Resolved, pull_image, resolve_reference
from detlayer.transfer.push import PushOptions, PushReport, PushSource, plan_image, push_image

if TYPE_CHECKING:
    from detlayer.store import Store

REMOTE = "docker://"
_LAYOUT = "oci:"

References = str | Reference | Sequence[str | Reference]


def push(
    image: str | PushSource,
    references: References,
    *,
    options: PushOptions | None = None,
    registries: Registries | None = None,
    store: Store | None = None,
    reporter: TransferReporter | None = None,
) -> PushReport:
    """Push an image under references such as `registry.example/team/app:1.2`, sending only missing blobs.

    The image is `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:NAME]`, `docker://REFERENCE`, or an
    open image. Uses the user's proxies and credentials by default. A `store` keeps facts about registries between
    pushes. Errors of repositories and tags are in the report. Raises ConfigError, and the source's errors.
    """
    parsed = _parse(references)
    memory = store.memory if store is not None else None
    with _opened(registries, parsed) as opened, open_push_source(image, opened, memory) as source:
        return push_image(source, parsed, opened, options=options, memory=memory, reporter=reporter)


def plan(
    image: str | PushSource,
    references: References,
    *,
    options: PushOptions | None = None,
    registries: Registries | None = None,
    store: Store | None = None,
) -> list[Plan]:
    """Plan a push without changing anything; returns one plan per repository. Raises RegistryError, and as `push`."""
    parsed = _parse(references)
    memory = store.memory if store is not None else None
    with _opened(registries, parsed) as opened, open_push_source(image, opened, memory) as source:
        return plan_image(source, parsed, opened, options=options, memory=memory)


def pull(
    reference: str | Reference,
    target: str,
    *,
    options: PullOptions | None = None,
    registries: Registries | None = None,
    store: Store | None = None,
    reporter: TransferReporter | None = None,
) -> Pulled:
    """Pull an image into a layout, `oci:DIR` or `oci:DIR:TAG`.

    Skips existing blobs and resumes interrupted ones. Raises ConfigError, RegistryError, IntegrityError, OutputError,
    LayerError.
    """
    (parsed,) = _parse(reference)
    path, tag = parse_layout_target(target)
    options = options or PullOptions(tag)
    memory = store.memory if store is not None else None
    with _opened(registries, (parsed,)) as opened:
        return pull_image(parsed, LayoutWriter(path), opened, options=options, memory=memory, reporter=reporter)


def resolve(
    reference: str | Reference,
    *,
    platform: str | Platform | None = None,
    registries: Registries | None = None,
    reporter: TransferReporter | None = None,
) -> Resolved:
    """Return digest, media type and platforms of a reference; with a platform, those of its manifest.

    Raises ConfigError, RegistryError, IntegrityError and LayerError.
    """
    from detlayer.oci.platforms import parse_platform

    (parsed,) = _parse(reference)
    wanted = parse_platform(platform) if isinstance(platform, str) else platform
    with _opened(registries, (parsed,)) as opened:
        return resolve_reference(parsed, opened, platform=wanted, reporter=reporter)


def parse_layout_target(text: str) -> tuple[str, str]:
    """Split `oci:DIR[:TAG]` into directory and tag, which may be empty; raises ConfigError."""
    path, _, tag = text.removeprefix(_LAYOUT).partition(":")
    if not text.startswith(_LAYOUT) or not path:
        raise ConfigError("output-invalid", f"invalid OCI layout {printable(text)!r}", "write oci:DIR or oci:DIR:TAG")
    if tag and not is_tag(tag):
        raise ConfigError("output-invalid", f"invalid tag {printable(tag)!r}", "write oci:DIR:TAG")
    return path, tag


@contextmanager
def open_push_source(
    image: str | PushSource,
    registries: Registries,
    memory: Memory | None,
    *,
    whole_index: bool = False,
    as_blob: bool = False,
) -> Iterator[PushSource]:
    """Open an image by its name; raises ConfigError, TreeError, LayerError, IntegrityError and RegistryError."""
    if not isinstance(image, str):
        yield image
        return
    if image.startswith(REMOTE):
        from detlayer.oci.ports import Amnesia
        from detlayer.transfer.remote import RemoteImage

        for is_set, flag in ((whole_index, "--index"), (as_blob, "--as-blob")):
            if is_set:
                raise ConfigError("usage", f"{flag} cannot be used with {REMOTE}", f"remove {flag}")
        reference = parse_reference(image.removeprefix(REMOTE))
        repository = registries.repository(reference.name)
        yield RemoteImage(repository, repository.get_manifest(reference.target), memory or Amnesia())
        return
    from detlayer.images.source import open_image

    with open_image(image, whole_index=whole_index, as_blob=as_blob) as opened:
        yield opened


def _parse(references: References) -> list[Reference]:
    listed = [references] if isinstance(references, str | Reference) else references
    return [parse_reference(one) if isinstance(one, str) else one for one in listed]


@contextmanager
def _opened(registries: Registries | None, references: Sequence[Reference]) -> Iterator[Registries]:
    if registries is not None:
        yield registries
        return
    with Registries.from_environment(given_for=references) as own:
        yield own

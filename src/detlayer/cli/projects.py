"""What the commands that build projects are all told: which file, which images, and where things are remembered."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from detlayer.cli.common import cache_directory, with_options
from detlayer.cli.console import Console
from detlayer.errors import ConfigError, printable

if TYPE_CHECKING:
    from detlayer.building.lock import Lock
    from detlayer.building.settings import ImageSettings, Project
    from detlayer.oci.types import Platform
    from detlayer.store import Store

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm/v7", "i686": "386"}

_PROJECT = (
    click.argument("images", metavar="IMAGE...", nargs=-1),
    click.option("-f", "--file", metavar="FILE", help="The detlayer.toml or pyproject.toml; else found upwards."),
    click.option("--platform", metavar="OS/ARCH", multiple=True, help="Only these platforms."),
)


def project_options(command: _Decorated) -> _Decorated:
    """Add the options that say what is built."""
    return with_options(_PROJECT, command)


def read_project(options: dict[str, Any]) -> tuple[Project, tuple[ImageSettings, ...]]:
    """Read the project, and the images that were named, for the platforms that were; raises ConfigError."""
    from detlayer.building.project_files import ProjectFiles, find_project
    from detlayer.building.settings import load
    from detlayer.oci.platforms import parse_platform

    path = options["file"] or find_project()
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    project = load(path, ProjectFiles(), environment=os.environ, epoch=epoch)
    images = project.choose(tuple(options["images"]))
    wanted = tuple(map(parse_platform, options.get("platform", ())))
    return project, tuple(_narrow(image, wanted) for image in images) if wanted else images


def _narrow(image: ImageSettings, wanted: tuple[Platform, ...]) -> ImageSettings:
    from msgspec.structs import replace

    for one in wanted:
        if one not in image.platforms:
            raise ConfigError(
                "platform-unlisted",
                f"image {image.name} is not built for {one}",
                f"it is for {', '.join(map(str, image.platforms))}: see its `platforms`",
            )
    return replace(image, platforms=tuple(one for one in image.platforms if one in wanted))


def retag(images: tuple[ImageSettings, ...], tags: tuple[str, ...]) -> tuple[ImageSettings, ...]:
    """Give images other tags; raises ConfigError."""
    from msgspec.structs import replace

    from detlayer.oci.references import is_tag

    for tag in tags:
        if not is_tag(tag):
            raise ConfigError("tag-invalid", f"{printable(tag)!r} is no tag", "see docs/build.md for what a tag may be")
    return tuple(replace(image, tags=tuple(dict.fromkeys(tags))) for image in images) if tags else images


def lock_path(project: Project) -> str:
    """Say where the lock of a project lies: beside its file."""
    from detlayer.building.lock import FILE_NAME

    return os.path.join(os.path.dirname(project.file), FILE_NAME)


def read_lock(project: Project) -> Lock | None:
    """Read the lock of a project; None if there is none. Raises ConfigError."""
    from detlayer.building.lock import parse_lock
    from detlayer.building.project_files import ProjectFiles

    path = lock_path(project)
    data = ProjectFiles().read(path)
    return parse_lock(data, path) if data is not None else None


def host_platform() -> Platform:
    """Name the platform of this machine, as engines on it see it."""
    from detlayer.oci.platforms import parse_platform

    machine = os.uname().machine
    return parse_platform(f"linux/{_MACHINES.get(machine, machine)}")


@contextmanager
def open_workshop(options: dict[str, Any], console: Console) -> Iterator[Store]:
    """Open the store; without a cache that can be used, one that ends with the command: layers have to be somewhere."""
    from detlayer.store import Store

    with ExitStack() as stack:
        if not options["no_cache"]:
            store = stack.enter_context(Store(cache_directory(options), reporter=console))
            if store.index.is_usable:
                yield store
                return
        import tempfile

        try:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="detlayer-"))
        except OSError as error:
            raise ConfigError("cache-temporary", f"no temporary directory: {error}", "set TMPDIR") from error
        yield stack.enter_context(Store(os.path.join(directory, "store"), reporter=console))

"""Options of commands that build projects: the project file, the images and the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from detlayer.cli.common import cache_directory, with_options
from detlayer.cli.console import Console
from detlayer.errors import ConfigError, printable

if TYPE_CHECKING:
    from detlayer.building.settings import ImageSettings, Project
    from detlayer.oci.types import Platform
    from detlayer.store import Store

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])

project_file_option = click.option(
    "-f", "--file", metavar="FILE", help="Project file. [default: detlayer.toml here or in a parent]"
)
_PROJECT = (
    click.argument("images", metavar="IMAGE...", nargs=-1),
    project_file_option,
    click.option("--platform", metavar="OS/ARCH", multiple=True, help="Limit to this platform. Repeatable."),
)


def project_options(command: _Decorated) -> _Decorated:
    """Add the options that select what is built."""
    return with_options(_PROJECT, command)


def read_project(options: dict[str, Any]) -> tuple[Project, tuple[ImageSettings, ...]]:
    """Read the project and its selected images, limited to the selected platforms; raises ConfigError."""
    from detlayer.building.commands import load_project
    from detlayer.oci.platforms import parse_platform

    project = load_project(options["file"])
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
                f"use {', '.join(map(str, image.platforms))}, or add it to `platforms`",
            )
    return replace(image, platforms=tuple(one for one in image.platforms if one in wanted))


def retag(images: tuple[ImageSettings, ...], tags: tuple[str, ...]) -> tuple[ImageSettings, ...]:
    """Override the tags of images; raises ConfigError."""
    from msgspec.structs import replace

    from detlayer.oci.references import is_tag

    for tag in tags:
        if not is_tag(tag):
            raise ConfigError("tag-invalid", f"invalid tag {printable(tag)!r}", "see `detlayer explain tag-invalid`")
    return tuple(replace(image, tags=tuple(dict.fromkeys(tags))) for image in images) if tags else images


@contextmanager
def open_build_store(options: dict[str, Any], console: Console) -> Iterator[Store]:
    """Open the store; without a usable cache, a temporary one."""
    from detlayer.building.commands import open_store
    from detlayer.store import Store

    cache = None if options["no_cache"] else lambda: Store(cache_directory(options), reporter=console)
    with open_store(cache, console) as store:
        yield store

"""Options that many commands share, and the console that they make. Imports little: every command starts with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from detlayer.cli.console import Console, ProgressKind

if TYPE_CHECKING:
    from detlayer.store import Store

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])

progress_option = click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "plain", "none"]),
    default="auto",
    show_default=True,
    help="How to show progress; auto is a bar on a terminal.",
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Only warnings and errors.")
_CONSOLE = (progress_option, quiet_option, click.option("-v", "--verbose", is_flag=True, help="Say more."))


expansion_option = click.option(
    "--max-expansion",
    metavar="N",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="Refuse a layer that grows to more than N times its size, beyond the first GiB.",
)


def with_options(options: tuple[Callable[[_Decorated], _Decorated], ...], command: _Decorated) -> _Decorated:
    for option in reversed(options):
        command = option(command)
    return command


def console_options(command: _Decorated) -> _Decorated:
    """Add the options that decide what is said meanwhile."""
    return with_options(_CONSOLE, command)


_CACHE = (
    click.option("--cache-dir", metavar="DIR", help="Keep what is remembered here; else $DETLAYER_CACHE_DIR."),
    click.option("--no-cache", is_flag=True, help="Remember nothing, and recall nothing."),
)


def cache_options(command: _Decorated) -> _Decorated:
    """Add the options that say where things are remembered."""
    return with_options(_CACHE, command)


def make_console(options: dict[str, Any], *, json: bool) -> Console:
    """Make the console of a command with all or some of `console_options`."""
    console = Console(
        json=json,
        quiet=options["quiet"],
        verbose=options.get("verbose", False),
        progress=cast(ProgressKind, options.get("progress", "auto")),
    )
    console.use_colour(os.environ.get("NO_COLOR"))
    return console


def cache_directory(options: dict[str, Any]) -> str:
    """Return the directory of the cache: --cache-dir, else the user's."""
    if options["cache_dir"]:
        return str(options["cache_dir"])
    from detlayer.store import default_directory

    return default_directory()


@contextmanager
def open_store(options: dict[str, Any], console: Console) -> Iterator[Store | None]:
    """Open what is kept from run to run, unless --no-cache; nothing is opened in earnest before it is asked."""
    if options["no_cache"]:
        yield None
        return
    from detlayer.store import Store

    with Store(cache_directory(options), reporter=console) as store:
        yield store

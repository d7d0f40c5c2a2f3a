"""Options that many commands share, and their console. Imports little, for a fast start of every command."""

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
    help="Progress display; auto is a bar on a terminal.",
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print only warnings and errors.")
_CONSOLE = (progress_option, quiet_option, click.option("-v", "--verbose", is_flag=True, help="Print more details."))


expansion_option = click.option(
    "--max-expansion",
    metavar="N",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="Reject a layer that expands to more than 1 GiB plus N times its size.",
)


class RenamedOption(click.Option):
    """An option whose first name is shown; the others are its earlier names, which still work."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        names, self.opts = self.opts, self.opts[:1]
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = names


def with_options(options: tuple[Callable[[_Decorated], _Decorated], ...], command: _Decorated) -> _Decorated:
    for option in reversed(options):
        command = option(command)
    return command


def console_options(command: _Decorated) -> _Decorated:
    """Add the options for progress and verbosity."""
    return with_options(_CONSOLE, command)


cache_directory_option = click.option(
    "--cache-dir", metavar="DIR", help="Cache directory. [default: $DETLAYER_CACHE_DIR, else the platform's]"
)
_CACHE = (
    cache_directory_option,
    click.option("--no-cache", is_flag=True, help="Neither read nor write the cache."),
)


def cache_options(command: _Decorated) -> _Decorated:
    """Add the options for the cache."""
    return with_options(_CACHE, command)


def make_console(options: dict[str, Any], *, json: bool) -> Console:
    """Create the console of a command that has all or some of `console_options`."""
    console = Console(
        json=json,
        quiet=options["quiet"],
        verbose=options.get("verbose", False),
        progress=cast(ProgressKind, options.get("progress", "auto")),
    )
    console.use_colour(os.environ.get("NO_COLOR"))
    return console


def cache_directory(options: dict[str, Any]) -> str:
    """Return --cache-dir, else the default cache directory."""
    if options["cache_dir"]:
        return str(options["cache_dir"])
    from detlayer.store import default_directory

    return default_directory()


@contextmanager
def open_store(options: dict[str, Any], console: Console) -> Iterator[Store | None]:
    """Open the store on first use; yield None with --no-cache."""
    if options["no_cache"]:
        yield None
        return
    from detlayer.store import Store

    with Store(cache_directory(options), reporter=console) as store:
        yield store

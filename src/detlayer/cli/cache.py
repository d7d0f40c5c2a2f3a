"""`detlayer cache`: show, clean, check, export and import the cache."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click
from msgspec.structs import asdict

from detlayer.cli.common import cache_directory, cache_directory_option, console_options, make_console
from detlayer.cli.console import Console, size, stdin_stream, stdout_stream
from detlayer.cli.exits import NO
from detlayer.errors import ConfigError, OutputError, printable
from detlayer.filesystem import look
from detlayer.oci.types import Digest, canonical_json, parse_digest

if TYPE_CHECKING:
    from detlayer.store import Store

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SPANS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@click.group()
def cache() -> None:
    """Show, clean, export or import the cache.

    It is always safe to delete the cache: later builds only take longer. It is in --cache-dir, $DETLAYER_CACHE_DIR,
    or the platform's cache directory.

    \b
    Example:
      detlayer cache gc --max-size 2G --max-age 2w
    """


def _options(command: _Decorated) -> _Decorated:
    as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    return cache_directory_option(as_json(console_options(command)))


@contextmanager
def _opened(options: dict[str, Any]) -> Iterator[tuple[Store, Console]]:
    """Open the cache; raises OutputError if it is unusable."""
    from detlayer.store import Store

    console = make_console(options, json=options["as_json"])
    with Store(cache_directory(options), reporter=console) as store:
        if not store.index.is_usable:
            raise OutputError(
                "cache-closed",
                f"can't use the cache directory {printable(store.directory)}: see the warning",
                "choose another --cache-dir",
            )
        yield store, console


def _show(console: Console, options: dict[str, Any], document: dict[str, Any], lines: list[str]) -> None:
    if options["as_json"]:
        console.result(canonical_json({"type": "result", **document}).decode())
    else:
        console.result("\n".join(lines))


@cache.command()
@_options
def info(**options: Any) -> None:
    """Show where the cache is and what it contains."""
    from detlayer.store.maintenance import MAX_BYTES, measure

    with _opened(options) as (store, console):
        found = measure(store)
        lines = [
            f"directory  {printable(found.directory)}",
            f"blobs      {found.blobs:,}, {size(found.blob_bytes)} (packs remove old ones above {size(MAX_BYTES)})",
            f"index      {size(found.index_bytes)}",
            f"traces     {found.traces:,}, with {found.chunks:,} chunks",
            f"trees      {found.trees:,}, with {found.directories:,} directories",
            f"registries {found.facts:,} facts, {found.uploads:,} uploads to resume",
            f"in use     {found.in_use:,} blobs",
        ]
        _show(console, options, asdict(found), lines)


@cache.command()
@click.option("--max-size", metavar="SIZE", help="Maximum total size, such as 500M or 2G.")
@click.option("--max-age", metavar="AGE", help="Maximum time since the last use, such as 12h or 2w. [default: 30d]")
@_options
def gc(**options: Any) -> None:
    """Remove old entries, except those that a running process uses."""
    from detlayer.store.maintenance import MAX_AGE_S, collect

    most = _size(options["max_size"]) if options["max_size"] is not None else None
    age = _age(options["max_age"]) if options["max_age"] is not None else None
    if most is None and age is None:
        age = MAX_AGE_S
    with _opened(options) as (store, console):
        done = collect(store, max_bytes=most, max_age_s=age)
        _show(console, options, asdict(done), [_collected(done.blobs, done.freed_bytes, done.left, done.left_bytes)])
        if done.in_use:
            console.note(f"{done.in_use:,} more blobs are in use and were kept")


@cache.command()
@_options
@click.pass_context
def verify(ctx: click.Context, /, **options: Any) -> None:
    """Remove corrupt entries, and exit with 1 if there were any."""
    from detlayer.store.maintenance import examine

    with _opened(options) as (store, console):
        found = examine(store)
        lines = [f"corrupt, removed: {digest}" for digest in found.corrupt]
        if not found.is_index_sound:
            lines.append("the index was damaged and was replaced")
        if found.orphans:
            lines.append(f"{found.orphans:,} blobs were missing; their records were removed")
        lines.append(f"{found.blobs:,} blobs, {size(found.blob_bytes)}: {'intact' if found.is_sound else 'damaged'}")
        document = {
            "blobs": found.blobs,
            "blob_bytes": found.blob_bytes,
            "corrupt": [str(digest) for digest in found.corrupt],
            "index_sound": found.is_index_sound,
            "missing": found.orphans,
        }
        _show(console, options, document, lines)
    if not found.is_sound:
        ctx.exit(NO)


@cache.command()
@_options
def clear(**options: Any) -> None:
    """Remove all entries, except those that a running process uses."""
    from detlayer.store.maintenance import clear as clear_store

    with _opened(options) as (store, console):
        done = clear_store(store)
        _show(console, options, asdict(done), [_collected(done.blobs, done.freed_bytes, done.left, done.left_bytes)])


@cache.command()
@click.argument("file", metavar="FILE")
@click.option(
    "--only",
    metavar="WHAT",
    multiple=True,
    help="Export only this layer: a digest, or a file that --descriptor wrote. Repeatable.",
)
@_options
def export(**options: Any) -> None:
    """Export the cache to FILE (`-` is stdout), for use in CI.

    The same cache contents give the same bytes.
    """
    from detlayer.output.files import FileOutput, StreamOutput
    from detlayer.store import LostBlobError
    from detlayer.store.archive import export as export_store

    only: list[Digest] | None = [_named(text) for text in options["only"]] or None
    to_stdout = options["file"] == "-"
    if to_stdout and options["as_json"]:
        raise ConfigError("stdout-twice", "FILE - and --json both write to stdout", "write to a file")
    with _opened(options) as (store, console):
        output = StreamOutput(stdout_stream()) if to_stdout else FileOutput(options["file"])
        try:
            while True:
                try:
                    count = export_store(store, output, only=only)
                    break
                except LostBlobError:  # the store no longer lists it: retry
                    if not output.can_restart:
                        raise
                    output.restart()
            output.settle()
            output.commit()
        finally:
            output.discard()
        if to_stdout:
            console.note(f"exported {count:,} blobs")
        else:
            _show(console, options, {"blobs": count}, [f"exported {count:,} blobs to {printable(options['file'])}"])


@cache.command(name="import")
@click.argument("file", metavar="FILE")
@_options
def take(**options: Any) -> None:
    """Import an exported FILE (`-` is stdin). Import only files that you trust."""
    from detlayer.store.archive import take_in

    with _opened(options) as (store, console), _source(options["file"]) as source:
        count = take_in(store, source)
        _show(console, options, {"blobs": count}, [f"imported {count:,} new blobs"])


@contextmanager
def _source(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        yield stdin_stream()
        return
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise ConfigError("cache-file", f"{printable(path)}: {error.strerror}", "pass an exported cache") from error
    with file:
        yield file


def _named(text: str) -> Digest:
    """Parse a digest, or the path of a descriptor; raises ConfigError."""
    try:
        return parse_digest(text)
    except ValueError:
        from detlayer.oci.documents import decode_object, parse_descriptor

        try:
            status = look(text)
            if status is not None and stat.S_ISREG(status.st_mode) and status.st_size <= 1 << 20:
                with open(text, "rb") as file:
                    return parse_descriptor(decode_object(file.read(), text), text).digest
        except OSError as error:
            raise ConfigError("cache-only", f"{printable(text)}: {error.strerror}", "check the path") from error
        raise ConfigError(
            "cache-only", f"invalid digest or descriptor {printable(text)!r}", "pass sha256:…, or a file"
        ) from None


def _collected(blobs: int, freed_bytes: int, left: int, left_bytes: int) -> str:
    return f"removed {blobs:,} blobs, {size(freed_bytes)}; {left:,} are left, {size(left_bytes)}"


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,12})([KMGT]?)(?:i?B)?", text)
    if match is None:
        raise ConfigError("cache-size", f"invalid size {printable(text)!r}", "pass a size such as 500M or 2G")
    return int(match[1]) * _UNITS[match[2]]


def _age(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,6})([mhdw])", text)
    if match is None:
        raise ConfigError("cache-age", f"invalid age {printable(text)!r}", "pass an age such as 12h, 30d or 2w")
    return int(match[1]) * _SPANS[match[2]]

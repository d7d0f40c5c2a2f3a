"""`detlayer cache`: what the cache holds, and keeping it in bounds and in order."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click
from msgspec.structs import asdict

from detlayer.cli.common import cache_directory, console_options, make_console
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
    """Look into the cache, and keep it in bounds.

    The cache can be lost at any time and costs only time. It lies in --cache-dir, $DETLAYER_CACHE_DIR, or the
    platform's directory for caches.

    \b
    Example:
      detlayer cache gc --max-size 2G --max-age 2w
    """


def _options(command: _Decorated) -> _Decorated:
    where = click.option("--cache-dir", metavar="DIR", help="The cache to look at; else $DETLAYER_CACHE_DIR.")
    as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    return where(as_json(console_options(command)))


@contextmanager
def _opened(options: dict[str, Any]) -> Iterator[tuple[Store, Console]]:
    """Open the cache of a command that is about it; raises OutputError where there is none that can be used."""
    from detlayer.store import Store

    console = make_console(options, json=options["as_json"])
    with Store(cache_directory(options), reporter=console) as store:
        if not store.index.is_usable:
            raise OutputError(
                "cache-closed",
                f"{printable(store.directory)} can't be used: see the warning",
                "use another --cache-dir",
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
    """Say where the cache is and what it holds."""
    from detlayer.store.maintenance import MAX_BYTES, measure

    with _opened(options) as (store, console):
        found = measure(store)
        lines = [
            f"directory  {printable(found.directory)}",
            f"blobs      {found.blobs:,}, {size(found.blob_bytes)} (packs make room above {size(MAX_BYTES)})",
            f"index      {size(found.index_bytes)}",
            f"traces     {found.traces:,}, with {found.chunks:,} chunks",
            f"trees      {found.trees:,}, with {found.directories:,} directories",
            f"registries {found.facts:,} facts, {found.uploads:,} uploads to go on with",
            f"in use     {found.in_use:,} blobs",
        ]
        _show(console, options, asdict(found), lines)


@cache.command()
@click.option("--max-size", metavar="SIZE", help="Remove the least recently used until no more is left: 500M, 2G.")
@click.option("--max-age", metavar="AGE", help="Remove what was not used for so long: 12h, 30d, 2w. [default: 30d]")
@_options
def gc(**options: Any) -> None:
    """Remove what was not used for long; never what a running process uses."""
    from detlayer.store.maintenance import MAX_AGE_S, collect

    most = _size(options["max_size"]) if options["max_size"] is not None else None
    age = _age(options["max_age"]) if options["max_age"] is not None else None
    if most is None and age is None:
        age = MAX_AGE_S
    with _opened(options) as (store, console):
        done = collect(store, max_bytes=most, max_age_s=age)
        _show(console, options, asdict(done), [_collected(done.blobs, done.freed_bytes, done.left, done.left_bytes)])
        if done.in_use:
            console.note(f"{done.in_use:,} more would have gone, but are in use")


@cache.command()
@_options
@click.pass_context
def verify(ctx: click.Context, /, **options: Any) -> None:
    """Read every byte, drop what is corrupt, and exit 1 if anything was."""
    from detlayer.store.maintenance import examine

    with _opened(options) as (store, console):
        found = examine(store)
        lines = [f"corrupt, and dropped: {digest}" for digest in found.corrupt]
        if not found.is_index_sound:
            lines.append("the index was damaged: it was made anew")
        if found.orphans:
            lines.append(f"{found.orphans:,} blobs were missing: what was known of them is dropped")
        lines.append(f"{found.blobs:,} blobs, {size(found.blob_bytes)}: {'sound' if found.is_sound else 'not sound'}")
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
    """Remove everything that no running process uses."""
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
    help="Only what belongs to this layer: a digest, or a descriptor that --descriptor wrote. Repeatable.",
)
@_options
def export(**options: Any) -> None:
    """Write the cache, or what a build used of it, to one FILE (`-` is stdout), for a cache of CI.

    The same holdings give the same bytes.
    """
    from detlayer.output.files import FileOutput, StreamOutput
    from detlayer.store import LostBlobError
    from detlayer.store.archive import export as export_store

    only: list[Digest] | None = [_named(text) for text in options["only"]] or None
    to_stdout = options["file"] == "-"
    if to_stdout and options["as_json"]:
        raise ConfigError("stdout-twice", "FILE - and --json both want stdout", "write to a file")
    with _opened(options) as (store, console):
        output = StreamOutput(stdout_stream()) if to_stdout else FileOutput(options["file"])
        try:
            while True:
                try:
                    count = export_store(store, output, only=only)
                    break
                except LostBlobError:  # it is gone from the store now
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
    """Add what an exported FILE holds (`-` is stdin) to the cache. Import only what you would run."""
    from detlayer.store.archive import take_in

    with _opened(options) as (store, console), _source(options["file"]) as source:
        count = take_in(store, source)
        _show(console, options, {"blobs": count}, [f"imported {count:,} blobs that were not here"])


@contextmanager
def _source(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        yield stdin_stream()
        return
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise ConfigError("cache-file", f"{printable(path)}: {error.strerror}", "name an exported cache") from error
    with file:
        yield file


def _named(text: str) -> Digest:
    """Read a digest, or the file of a descriptor; raises ConfigError."""
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
            "cache-only", f"{printable(text)} is neither a digest nor a descriptor", "write sha256:…, or a file"
        ) from None


def _collected(blobs: int, freed_bytes: int, left: int, left_bytes: int) -> str:
    return f"removed {blobs:,} blobs, {size(freed_bytes)}; {left:,} are left, {size(left_bytes)}"


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,12})([KMGT]?)(?:i?B)?", text)
    if match is None:
        raise ConfigError("cache-size", f"{printable(text)!r} is no size", "write 500M or 2G")
    return int(match[1]) * _UNITS[match[2]]


def _age(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,6})([mhdw])", text)
    if match is None:
        raise ConfigError("cache-age", f"{printable(text)!r} is no time", "write 12h, 30d or 2w")
    return int(match[1]) * _SPANS[match[2]]

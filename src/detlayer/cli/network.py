"""Options of commands that use registries, and their conversion to network settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from detlayer.cli.common import cache_directory
from detlayer.cli.console import Console
from detlayer.cli.transfers import Transfers
from detlayer.errors import ConfigError, printable

if TYPE_CHECKING:
    from detlayer.oci.ports import Memory
    from detlayer.oci.references import Reference
    from detlayer.registry.client import Registries

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])

_NETWORK = (
    click.option(
        "--insecure-registry",
        metavar="HOST",
        multiple=True,
        help="Use plain HTTP for HOST[:PORT]; loopback is always allowed.",
    ),
    click.option("--ca-file", metavar="FILE", help="Additional CA certificates to trust (PEM)."),
    click.option("--client-cert", metavar="FILE", help="Client certificate for registries (PEM)."),
    click.option("--client-key", metavar="FILE", help="Key of --client-cert, if in a separate file."),
    click.option("--username", metavar="NAME", help="User name. [default: $DETLAYER_USERNAME, else `docker login`]"),
    click.option("--password-stdin", is_flag=True, help="Read the password from stdin, not $DETLAYER_PASSWORD."),
    click.option(
        "--retries",
        metavar="N",
        type=click.IntRange(0, 20),
        default=4,
        show_default=True,
        help="Maximum number of retries of a request that fails, such as to a busy registry.",
    ),
    click.option(
        "--timeout",
        metavar="SECONDS",
        type=click.FloatRange(0.1, 3600),
        default=60.0,
        show_default=True,
        help="Time limit for a response, for each 64 KiB of a transfer, and for each wait for a busy registry.",
    ),
)


def network_options(command: _Decorated) -> _Decorated:
    """Add the options for registry connections."""
    for option in reversed(_NETWORK):
        command = option(command)
    return command


@contextmanager
def open_registries(
    options: dict[str, Any], transfers: Transfers, references: Sequence[Reference]
) -> Iterator[Registries]:
    """Open the registry client; an exception stops all its threads.

    Credentials from options or the environment go only to the registries of `references`. Raises ConfigError.
    """
    from msgspec.structs import replace

    from detlayer.oci.references import is_host
    from detlayer.registry.client import Registries
    from detlayer.registry.transport import Transport
    from detlayer.registry.user import find_credentials, given_credentials, user_network

    if options["client_key"] and not options["client_cert"]:
        raise ConfigError("usage", "--client-key without --client-cert", "add --client-cert FILE")
    for host in options["insecure_registry"]:
        if not is_host(host):
            raise ConfigError(
                "usage", f"invalid host {printable(host)!r} for --insecure-registry", "pass HOST or HOST:PORT"
            )
    network = replace(
        user_network(),
        insecure=frozenset(map(str.lower, options["insecure_registry"])),
        ca_file=options["ca_file"],
        client_cert=options["client_cert"],
        client_key=options["client_key"],
        retries=options["retries"],
        max_wait_s=options["timeout"],
        read_s=options["timeout"],
        connect_s=min(15.0, options["timeout"]),
    )
    log = transfers.log if options.get("verbose") else None
    given = given_credentials(os.environ, options["username"] or "", _password(options))
    finder = find_credentials(os.environ, given, references)
    with Registries(Transport(network, log=log, tell=transfers.note), finder) as registries:
        try:
            yield registries
        except BaseException:
            registries.cancel()
            raise


def _password(options: dict[str, Any]) -> str:
    if not options["password_stdin"]:
        return ""
    password = sys.stdin.readline().rstrip("\r\n") if sys.stdin is not None else ""
    if not password:
        raise ConfigError("password-missing", "no password on stdin for --password-stdin", "pipe the password to stdin")
    return password


@contextmanager
def open_memory(options: dict[str, Any], console: Console) -> Iterator[Memory]:
    """Open the registry facts of earlier runs on first use; with --no-cache, there are none."""
    if options["no_cache"]:
        from detlayer.oci.ports import Amnesia

        yield Amnesia()
        return
    from detlayer.store import Store

    with Store(cache_directory(options), reporter=console) as store:
        yield store.memory

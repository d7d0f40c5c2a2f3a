"""Clients of httpx for hosts: TLS, time limits, and its errors as ours. Does not know what is requested.

Only this module, `pool`, `backend` and `transport` know httpx. Source: `truststore` for what the system trusts.
"""

from __future__ import annotations

import re
import ssl
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import msgspec

from detlayer.errors import ConfigError, RejectedError, UnavailableError, printable
from detlayer.registry.address import join
from detlayer.registry.answer import garbage
from detlayer.registry.retry import MIN_BYTES

if TYPE_CHECKING:
    from http.cookiejar import CookieJar

    import httpx

_MAX_SHOWN = 200
_ERRNO = re.compile(r"^\[Errno -?[0-9]+\] ")


class Network(msgspec.Struct, frozen=True):
    """How hosts are reached. Times in seconds.

    `insecure` names hosts (with ports) that are spoken to over plain HTTP. `retries` bounds how often a request is sent
    again, `max_wait_s` how long one wait may be, whatever the registry asks for. `read_s` is the time for the head
    of an answer, and for each 64 KiB of a body, either way.
    """

    insecure: frozenset[str] = frozenset()
    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    retries: int = 4
    max_wait_s: float = 60.0
    connect_s: float = 15.0
    read_s: float = 60.0
    proxies: Mapping[str, str] = {}
    """Variables such as HTTPS_PROXY and NO_PROXY, from `os.environ` for example. Loopback is never proxied."""
    user_agent: str = "detlayer"


class ClientKind(NamedTuple):
    """What connections depend on: TLS, the proxy (empty for none), and whether to send a client certificate."""

    has_tls: bool
    proxy: str
    is_registry: bool


def make_client(network: Network, kind: ClientKind) -> httpx.Client:
    """Make what sends requests of one kind; raises ConfigError for unusable certificates and proxies."""
    load_httpx()
    import httpx

    from detlayer.registry.pool import Pool  # it imports httpcore, which `load_httpx` has to come before

    # No cookies: those of a load balancer would tie requests together that have nothing to do with each other.
    return httpx.Client(
        transport=Pool(_context(network, kind), kind.proxy),
        follow_redirects=False,
        timeout=httpx.Timeout(network.read_s, connect=network.connect_s, pool=None),
        cookies=_no_cookies(),
        # httpx reads where a redirect leads, though it does not follow: what it could not read is refused before.
        event_hooks={"response": [_check_location]},
    )


def _check_location(response: httpx.Response) -> None:
    if response.has_redirect_location:
        join(str(response.request.url), response.headers["location"])


def load_httpx() -> None:
    """Import httpx without its command line, which would load rich and pygments and take half of the time.

    httpx is made to do without it: it is an extra.
    """
    if "httpx" not in sys.modules:
        sys.modules["httpx._main"] = None  # type: ignore[assignment]
        try:
            import_module("httpx")
        finally:
            del sys.modules["httpx._main"]


def _no_cookies() -> CookieJar:
    from http.cookiejar import CookieJar, DefaultCookiePolicy

    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


def _context(network: Network, kind: ClientKind) -> ssl.SSLContext:
    """Make the TLS context of a kind of client: the system's trust store, and what was named beside it."""
    if not kind.has_tls:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used; loading certificates would take time
    import truststore

    context: ssl.SSLContext = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if network.ca_file is not None:
            context.load_verify_locations(cafile=network.ca_file)
        if network.client_cert is not None and kind.is_registry:
            # Without a password, so that OpenSSL does not ask the terminal for one.
            context.load_cert_chain(network.client_cert, network.client_key, password="")
    except (OSError, ssl.SSLError, ValueError) as error:
        named = ", ".join(filter(None, (network.ca_file, network.client_cert, network.client_key)))
        raise ConfigError(
            "certificate-unreadable", f"{printable(named)}: {_plain(error)}", "name certificates in PEM files"
        ) from error
    return context


@contextmanager
def translated(url: str, timeout_s: float, *, in_body: bool = False) -> Iterator[None]:
    """Turn httpx's errors into ours. `timeout_s` is for messages, and so is `in_body`: an answer's body is read."""
    load_httpx()
    import httpcore
    import httpx

    parts = urlsplit(url)
    shown = printable(parts.netloc)
    hint = "try again; is this a registry?"
    if parts.scheme == "http":
        hint += " if it has TLS, name the CA of its certificate: --ca-file FILE"
    try:
        yield
    except httpcore.ConnectError as error:
        if (tls := _tls_error(error)) is not None:
            what = f"no TLS with {shown}: {printable(str(tls.reason or tls))}"
            if isinstance(tls, ssl.SSLCertVerificationError):
                what = f"the certificate of {shown} does not hold: {printable(tls.verify_message)}"
            raise RejectedError(
                "registry-tls",
                what,
                f"name the CA that signed it with --ca-file; if it has no TLS, add --insecure-registry {shown}",
            ) from error
        raise UnavailableError(
            "registry-unreachable",
            f"{shown} can't be reached: {_plain(error)}",
            "check the name, the port and the network",
        ) from error
    except httpcore.TimeoutException as error:
        what = "takes too long to answer"
        if in_body or isinstance(error, httpcore.WriteTimeout):
            verb = "sends" if in_body else "accepts"
            what = f"{verb} data too slowly: less than {MIN_BYTES >> 10} KiB in {timeout_s:g} s"
        raise UnavailableError("registry-timeout", f"{shown} {what}", "try again later, or raise --timeout") from error
    except httpcore.ProxyError as error:
        raise UnavailableError(
            "proxy-failed", f"the proxy did not lead to {shown}: {_plain(error)}", "check HTTPS_PROXY and NO_PROXY"
        ) from error
    except (httpcore.UnsupportedProtocol, httpx.UnsupportedProtocol) as error:
        raise garbage(shown, "with an address that is none") from error
    except (httpcore.LocalProtocolError, httpx.LocalProtocolError) as error:
        # What it says has the header in it, which may be a credential.
        raise garbage(shown, "so that no request can be made of it") from error
    except (httpcore.RemoteProtocolError, httpx.RemoteProtocolError) as error:
        raise UnavailableError("registry-broke-off", f"{shown} broke off: {_plain(error)}", hint) from error
    except (httpcore.NetworkError, httpcore.ProtocolError, httpx.TransportError, httpx.StreamError) as error:
        raise UnavailableError(
            "registry-broke-off", f"the connection to {shown} broke: {_plain(error)}", hint
        ) from error
    except httpx.InvalidURL as error:
        raise garbage(shown, f"with an address that is none: {error}") from error


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    """Find what TLS said among the causes of an error."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, ssl.SSLError):
        seen = seen.__cause__ or seen.__context__
    return seen


def _plain(error: Exception) -> str:
    """Show an error without the number that the system has for it, bounded, since a host may have sent it."""
    return printable(_ERRNO.sub("", str(error))[:_MAX_SHOWN])

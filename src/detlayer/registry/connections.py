"""httpx clients for hosts: TLS, time limits, and translated errors.

Only this module, `pool`, `backend` and `transport` import httpx. `truststore` provides the system's trust store.
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
from detlayer.registry.error_responses import garbage
from detlayer.registry.retry import MIN_BYTES, NOTICE_AFTER_S, shown_s

if TYPE_CHECKING:
    from http.cookiejar import CookieJar

    import httpx

_MAX_SHOWN = 200
_ERRNO = re.compile(r"^\[Errno -?[0-9]+\] ")


class Network(msgspec.Struct, frozen=True):
    """How to reach hosts. Times in seconds.

    `insecure` lists hosts (with ports) that use plain HTTP. `retries` limits the retries of a request, and `max_wait_s`
    each wait, even if the registry asks for longer. `read_s` limits the time for the head of a response, and for each
    64 KiB of a body, in both directions. After the last byte of a blob, the registry gets `read_s`, and one second more
    for each `store_bytes_per_s` of the blob, to store it. The user is told of waits longer than `notice_after_s`.
    """

    insecure: frozenset[str] = frozenset()
    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    retries: int = 4
    max_wait_s: float = 60.0
    connect_s: float = 15.0
    read_s: float = 60.0
    store_bytes_per_s: float = 1 << 20
    notice_after_s: float = NOTICE_AFTER_S
    proxies: Mapping[str, str] = {}
    """Variables such as HTTPS_PROXY and NO_PROXY, usually `os.environ`. Loopback is never proxied."""
    user_agent: str = "detlayer"

    def store_s(self, size_bytes: int) -> float:
        """Return how long a registry may take to store a blob after its last byte."""
        return self.read_s + size_bytes / self.store_bytes_per_s


class ClientKind(NamedTuple):
    """The properties that connections depend on: TLS, proxy URL (empty for none), client certificate."""

    has_tls: bool
    proxy: str
    is_registry: bool


def make_client(network: Network, kind: ClientKind) -> httpx.Client:
    """Create a client; raises ConfigError for unusable certificates and proxies."""
    load_httpx()
    import httpx

    from detlayer.registry.pool import Pool  # imports httpcore, so `load_httpx` must run first

    # No cookies: those of a load balancer would tie unrelated requests together.
    return httpx.Client(
        transport=Pool(_context(network, kind), kind.proxy),
        follow_redirects=False,
        timeout=make_timeout(network, network.read_s),
        cookies=_no_cookies(),
        # httpx parses redirects even if it does not follow them: reject those that it fails to parse first.
        event_hooks={"response": [_check_location]},
    )


def make_timeout(network: Network, answer_s: float) -> httpx.Timeout:
    """Make the time limits of a request that has to be answered within `answer_s`."""
    import httpx

    return httpx.Timeout(connect=network.connect_s, read=answer_s, write=network.read_s, pool=None)


def _check_location(response: httpx.Response) -> None:
    if response.has_redirect_location:
        join(str(response.request.url), response.headers["location"])


def load_httpx() -> None:
    """Import httpx without its command line, which would load rich and pygments and double the import time.

    The command line is an optional extra of httpx.
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
    """Create the TLS context: the system's trust store plus the configured CA."""
    if not kind.has_tls:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used; loading certificates is slow
    import truststore

    context: ssl.SSLContext = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if network.ca_file is not None:
            context.load_verify_locations(cafile=network.ca_file)
        if network.client_cert is not None and kind.is_registry:
            # An empty password keeps OpenSSL from prompting on the terminal.
            context.load_cert_chain(network.client_cert, network.client_key, password="")
    except (OSError, ssl.SSLError, ValueError) as error:
        named = ", ".join(filter(None, (network.ca_file, network.client_cert, network.client_key)))
        raise ConfigError(
            "certificate-unreadable", f"{printable(named)}: {_plain(error)}", "pass readable certificates in PEM format"
        ) from error
    return context


@contextmanager
def translated(
    url: str, timeout_s: float, *, in_body: bool = False, proxy: str = "", store: str = "", store_s: float = 0.0
) -> Iterator[None]:
    """Translate httpx's errors.

    For messages: the time limit, whether a body was being read, the proxy, and the digest to be stored, if any, with
    the time for that.
    """
    load_httpx()
    import httpcore
    import httpx

    parts = urlsplit(url)
    shown = printable(parts.netloc)
    hint = "try again, and check the address"
    if parts.scheme == "http":
        hint += "; if the registry has TLS, pass its CA: --ca-file FILE"
    try:
        yield
    except httpcore.ConnectError as error:
        if (tls := _tls_error(error)) is not None:
            what = f"TLS handshake with {shown} failed: {printable(str(tls.reason or tls))}"
            if isinstance(tls, ssl.SSLCertVerificationError):
                what = f"certificate verification for {shown} failed: {printable(tls.verify_message)}"
            raise RejectedError(
                "registry-tls",
                what,
                f"pass the CA that signed it: --ca-file FILE; without TLS, add --insecure-registry {shown}",
            ) from error
        raise _unreachable(shown, proxy, _plain(error)) from error
    except httpcore.TimeoutException as error:
        if proxy and isinstance(error, httpcore.ConnectTimeout):
            raise _unreachable(shown, proxy, "timed out") from error
        what = "timed out"
        if in_body or isinstance(error, httpcore.WriteTimeout):
            verb = "sends" if in_body else "accepts"
            what = f"{verb} data too slowly: less than {MIN_BYTES >> 10} KiB in {timeout_s:g} s"
        elif store and isinstance(error, httpcore.ReadTimeout):
            what = f"did not store {store} within {shown_s(store_s)}"
        raise UnavailableError("registry-timeout", f"{shown} {what}", "try again later, or raise --timeout") from error
    except httpcore.ProxyError as error:
        raise UnavailableError(
            "proxy-failed", f"the proxy can't connect to {shown}: {_plain(error)}", "check HTTPS_PROXY and NO_PROXY"
        ) from error
    except (httpcore.UnsupportedProtocol, httpx.UnsupportedProtocol) as error:
        raise garbage(shown, "invalid URL") from error
    except (httpcore.LocalProtocolError, httpx.LocalProtocolError) as error:
        # The error's text contains the header, which may be a credential.
        raise garbage(shown, "URL or token with invalid characters") from error
    except (httpcore.RemoteProtocolError, httpx.RemoteProtocolError) as error:
        raise UnavailableError("registry-broke-off", f"{shown} closed the connection: {_plain(error)}", hint) from error
    except (httpcore.NetworkError, httpcore.ProtocolError, httpx.TransportError, httpx.StreamError) as error:
        raise UnavailableError(
            "registry-broke-off", f"the connection to {shown} failed: {_plain(error)}", hint
        ) from error
    except httpx.InvalidURL as error:
        raise garbage(shown, f"invalid URL: {error}") from error


def _unreachable(shown: str, proxy: str, reason: str) -> UnavailableError:
    """Make the error for a connection that can't be made; with a proxy, that is the connection to the proxy."""
    if proxy:
        named = printable(urlsplit(proxy).netloc.rpartition("@")[2])  # without its password
        return UnavailableError(
            "proxy-failed",
            f"can't connect to the proxy {named} for {shown}: {reason}",
            "check HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, and the network",
        )
    return UnavailableError(
        "registry-unreachable", f"can't connect to {shown}: {reason}", "check the name, the port and the network"
    )


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    """Find a TLS error among the causes of an error."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, ssl.SSLError):
        seen = seen.__cause__ or seen.__context__
    return seen


def _plain(error: Exception) -> str:
    """Show an error without its errno, bounded, since a host may have sent it."""
    return printable(_ERRNO.sub("", str(error))[:_MAX_SHOWN])

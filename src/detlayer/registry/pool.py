"""Connection pool of one httpx client: httpcore's, over sockets with the time limits of `backend`."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from importlib.util import find_spec
from urllib.parse import unquote, urlsplit, urlunsplit

import httpcore
import httpx

from detlayer.errors import ConfigError
from detlayer.registry.backend import Backend

_MAX_CONNECTIONS = 64
_MAX_IDLE = 16
_IDLE_S = 20.0


class Pool(httpx.BaseTransport):
    """Sends requests directly or through a proxy. Raises httpcore's errors. Thread-safe."""

    def __init__(self, context: ssl.SSLContext, proxy: str = "") -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            proxy=_proxy(proxy, context) if proxy else None,
            max_connections=_MAX_CONNECTIONS,
            max_keepalive_connections=_MAX_IDLE,
            keepalive_expiry=_IDLE_S,
            network_backend=Backend(httpcore.SyncBackend()),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        response = self._pool.handle_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions=response.extensions,
        )

    def close(self) -> None:
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        yield from self._response.iter_stream()

    def close(self) -> None:
        self._response.close()


def _proxy(url: str, context: ssl.SSLContext) -> httpcore.Proxy:
    """Move user and password from a proxy's URL into its credentials."""
    parts = urlsplit(url)
    if parts.scheme.startswith("socks") and find_spec("socksio") is None:
        raise ConfigError(
            "proxy-invalid",
            "the environment sets a SOCKS proxy, but the package socksio is not installed",
            "pip install 'httpx[socks]'",
        )
    host = parts.netloc.rpartition("@")[2]
    auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    bare = urlunsplit((parts.scheme, host, "", "", ""))
    return httpcore.Proxy(bare, auth=auth, ssl_context=context if parts.scheme == "https" else None)

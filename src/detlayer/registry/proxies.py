"""Select the proxy for a URL from HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, as curl and Go do.

Sources: curl(1) "ENVIRONMENT"; Go's golang.org/x/net/http/httpproxy.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from detlayer.errors import ConfigError

SCHEMES = frozenset(("http", "https", "socks5", "socks5h"))

_DEFAULT_PORTS = {"http": 80, "https": 443}


def find_proxy(url: str, environment: Mapping[str, str]) -> str | None:
    """Return the URL of the proxy for a URL, or None for a direct connection.

    Lower case overrides upper case, and the variable of the scheme overrides ALL_PROXY. A proxy without a scheme is an
    HTTP proxy. Raises ConfigError for an invalid proxy, without showing its password.
    """
    parts = urlsplit(url)
    proxy = _variable(f"{parts.scheme}_proxy", environment) or _variable("all_proxy", environment)
    if not proxy or _is_exempt(parts, _variable("no_proxy", environment)):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    try:
        named = urlsplit(proxy)
        is_usable = named.scheme in SCHEMES and named.hostname is not None and named.port != 0
    except ValueError:  # an invalid port or IPv6 address
        is_usable = False
    if not is_usable:
        raise ConfigError(
            "proxy-invalid",
            "invalid proxy in the environment",
            "check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY; expected http://HOST:PORT",
        )
    return proxy


def _variable(name: str, environment: Mapping[str, str]) -> str:
    return (environment.get(name) or environment.get(name.upper()) or "").strip()


def _is_exempt(parts: SplitResult, no_proxy: str) -> bool:
    """Tell whether NO_PROXY lists a host: by name, domain, address or network, with or without a port."""
    host = (parts.hostname or "").rstrip(".").lower()
    port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
    return any(_matches(entry.strip().lower(), host, port) for entry in no_proxy.split(",") if entry.strip())


def _matches(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    if "://" in entry:
        scheme_less = entry.partition("://")[2]
        return _matches(scheme_less, host, port) if scheme_less else False
    network = _network(entry)
    if network is None and ":" in entry:
        entry, _, wanted = entry.rpartition(":")
        if wanted != str(port):
            return False
        network = _network(entry)
    if network is not None:
        try:
            return ipaddress.ip_address(host) in network
        except ValueError:
            return False
    if entry.startswith(("*.", ".")):  # subdomains only, as in Go
        return host.endswith(entry.removeprefix("*"))
    entry = entry.rstrip(".")
    return bool(entry) and (host == entry or host.endswith(f".{entry}"))


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    is_bracketed = entry.startswith("[") and entry.endswith("]")
    try:
        return ipaddress.ip_network(entry[1:-1] if is_bracketed else entry, strict=False)
    except ValueError:
        return None

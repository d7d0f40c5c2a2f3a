"""Join, check, compare and show URLs, including those from registries. Sends no requests.

A URL from a response must be parsed alike by every library: no user, backslash or non-ASCII letter, and a valid port.
Sources: RFC 3986; RFC 9110 10.2.2 (Location).
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urldefrag, urljoin, urlsplit

from detlayer.errors import printable
from detlayer.registry.error_responses import garbage

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NETLOC = re.compile(rf"(?P<host>{_LABEL}(?:\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{{0,5}}))?\Z")
_PORTS = {"http": 80, "https": 443}
_MAX_HOST = 253


def checked(url: str, said_by: str) -> str:
    """Return an HTTP URL without its fragment; raises RegistryError, which names `said_by`, for an invalid one."""
    try:
        parts = urlsplit(url)
        match = _NETLOC.match(parts.netloc)
        if parts.scheme in _PORTS and match and len(match["host"]) <= _MAX_HOST and parts.port != 0:
            return urldefrag(url).url
    except ValueError:  # invalid IPv6 address or port out of range
        pass
    raise garbage(said_by, f"invalid URL {shown_url(url)}")


def join(base: str, location: str) -> str:
    """Resolve a Location header; raises RegistryError for an invalid URL."""
    try:
        joined = urljoin(base, location)
    except ValueError:
        joined = location
    return checked(joined, urlsplit(base).netloc)


def with_query(url: str, query: str) -> str:
    """Append to a URL's query as text, so that the existing query, which may be signed, stays unchanged."""
    joint = "&" if "?" in url else "?"
    return f"{url}{joint}{query}"


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a checked URL, normalized for comparison."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)


def is_loopback(host: str) -> bool:
    """Tell whether a host, with or without a port, is loopback by its name or address."""
    match = _NETLOC.match(host)
    name = match["host"].strip("[]") if match else host
    try:
        return name.lower() == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def shown_url(url: str) -> str:
    """Show a URL without its secrets: the query (signatures, sessions) and the password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "unparsable URL"
    host = parts.netloc.rpartition("@")[2]
    return printable(f"{parts.scheme}://{host}{parts.path}" + ("?…" if parts.query else ""))

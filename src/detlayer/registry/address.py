"""Addresses, those too that registries hand out: joined, checked, compared, shown. Never what is asked there.

A URL from a response has to be one that every library reads alike: no user, no backslash, no letter that
needs another alphabet, a port that there is. Sources: RFC 3986; RFC 9110 10.2.2 (Location).
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urldefrag, urljoin, urlsplit

from detlayer.errors import printable
from detlayer.registry.answer import garbage

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NETLOC = re.compile(rf"(?P<host>{_LABEL}(?:\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{{0,5}}))?\Z")
_PORTS = {"http": 80, "https": 443}
_MAX_HOST = 253


def checked(url: str, said_by: str) -> str:
    """Give an address back, without a fragment, if it is one of HTTP; raises RegistryError, which names `said_by`."""
    try:
        parts = urlsplit(url)
        match = _NETLOC.match(parts.netloc)
        if parts.scheme in _PORTS and match and len(match["host"]) <= _MAX_HOST and parts.port != 0:
            return urldefrag(url).url
    except ValueError:  # no address of IPv6, a port beyond all ports
        pass
    raise garbage(said_by, f"with an address that is none: {shown_url(url)}")


def join(base: str, location: str) -> str:
    """Resolve what a Location says; raises RegistryError for what is no address."""
    try:
        joined = urljoin(base, location)
    except ValueError:
        joined = location
    return checked(joined, urlsplit(base).netloc)


def with_query(url: str, query: str) -> str:
    """Add to the query of an address, as text: what is there belongs to somebody else, and must stay as it is."""
    joint = "&" if "?" in url else "?"
    return f"{url}{joint}{query}"


def origin(url: str) -> tuple[str, str, int]:
    """Say whom a checked address leads to, in the one spelling that can be compared: scheme, host and port."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)


def is_loopback(host: str) -> bool:
    """Tell whether a host (with a port or not) is this machine by its name."""
    match = _NETLOC.match(host)
    name = match["host"].strip("[]") if match else host
    try:
        return name.lower() == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def shown_url(url: str) -> str:
    """Show a URL without what may be secret: signatures and sessions are in queries, passwords before the host."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "one that can't be read"
    host = parts.netloc.rpartition("@")[2]
    return printable(f"{parts.scheme}://{host}{parts.path}" + ("?…" if parts.query else ""))

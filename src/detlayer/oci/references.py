"""Parse and format references to images in registries: `registry/repository:tag@digest`.

Sources: the grammar of github.com/distribution/reference, which all other tools follow; distribution-spec 1.1,
"Pulling manifests" (names and tags).
"""

from __future__ import annotations

import re

import msgspec

from detlayer.errors import ConfigError, printable
from detlayer.oci.types import Digest, parse_digest

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
_HUB_NAMES = frozenset((DEFAULT_REGISTRY, "index.docker.io", "registry-1.docker.io"))
_HUB_HOST = "registry-1.docker.io"

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[(?P<ipv6>[0-9A-Fa-f:]+)\])(?::(?P<port>[0-9]{{1,5}}))?\Z")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_MAX_HOST = 253
_MAX_PORT = 65_535
_MAX_REPOSITORY = 255


class RepositoryName(msgspec.Struct, frozen=True, order=True):
    """A repository of a registry. `registry` is the public name: `docker.io`, `127.0.0.1:5000`."""

    registry: str
    repository: str

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}"

    @property
    def host(self) -> str:
        """The host of the registry's API, with the port unless it is the default."""
        return host_of(self.registry)


class Reference(msgspec.Struct, frozen=True):
    """An image in a registry: by tag, by digest, or by both, where the digest counts."""

    name: RepositoryName
    tag: str = ""
    digest: Digest | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")

    @property
    def target(self) -> str:
        """The digest, or else the tag, for requests."""
        return str(self.digest) if self.digest else self.tag


def host_of(registry: str) -> str:
    """Return the host of a registry's API, in lower case: that of Docker Hub differs from its name."""
    return _HUB_HOST if registry == DEFAULT_REGISTRY else registry.lower()


def parse_reference(text: str) -> Reference:
    """Parse `[registry/]repository[:tag][@digest]`; raises ConfigError.

    The default registry is Docker Hub, and the default tag without a digest is `latest`, as in other tools. The first
    component is a registry if it has a dot or a colon, is `localhost`, or has upper-case letters.
    """
    if "://" in text:
        raise _invalid(text, "remove the scheme: registry/repository:tag")
    rest, at, digest_text = text.partition("@")
    digest = None
    if at:
        try:
            digest = parse_digest(digest_text)
        except ValueError as error:
            raise _invalid(text, "invalid digest: expected sha256: and 64 lower-case hexadecimal digits") from error
    tag = ""
    path, colon, last = rest.rpartition(":")
    if colon and "/" not in last:
        rest, tag = path, last
        if not _TAG.match(tag):
            raise _invalid(
                text, "invalid tag: expected up to 128 letters, digits, '.', '_' and '-', not starting with . or -"
            )
    name = parse_repository(rest, text)
    return Reference(name, tag or ("" if digest else DEFAULT_TAG), digest)


def parse_repository(text: str, whole: str = "") -> RepositoryName:
    """Parse `[registry/]repository`; raises ConfigError, which shows `whole` if given."""
    whole = whole or text
    first, slash, rest = text.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        registry, repository = first, rest
    else:
        registry, repository = DEFAULT_REGISTRY, text
    if registry.lower() in _HUB_NAMES:
        registry = DEFAULT_REGISTRY
        repository = repository if "/" in repository else f"library/{repository}"
    if not is_host(registry):
        raise _invalid(whole, f"invalid host {printable(registry)!r}")
    if not _REPOSITORY.match(repository) or len(repository) > _MAX_REPOSITORY:
        raise _invalid(
            whole, "invalid repository: expected lower-case words separated by '/', as in registry/team/app:tag"
        )
    return RepositoryName(registry, repository)


def is_host(text: str) -> bool:
    """Tell whether a string is a valid host, with or without a port."""
    match = _HOST.match(text)
    if match is None or len(text) > _MAX_HOST:
        return False
    if match["ipv6"]:
        from ipaddress import IPv6Address

        try:
            IPv6Address(match["ipv6"])
        except ValueError:
            return False
    return match["port"] is None or 0 < int(match["port"]) <= _MAX_PORT


def is_tag(text: str) -> bool:
    """Tell whether a string is a valid tag."""
    return _TAG.match(text) is not None


def _invalid(text: str, hint: str) -> ConfigError:
    return ConfigError("reference-invalid", f"invalid image reference {printable(text)!r}", hint)

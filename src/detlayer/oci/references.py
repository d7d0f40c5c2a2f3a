"""References to images in registries: `registry/repository:tag@digest`, parsed and printed. Never HTTP.

Sources: the grammar of github.com/distribution/reference, which every other tool follows; distribution-spec 1.1,
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
    """A repository of a registry. `registry` is as people write it: `docker.io`, `127.0.0.1:5000`."""

    registry: str
    repository: str

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}"

    @property
    def host(self) -> str:
        """Where the registry answers, with a port if it is not the usual one."""
        return host_of(self.registry)


class Reference(msgspec.Struct, frozen=True):
    """An image in a registry: by tag, by digest, or by a digest that also had a tag."""

    name: RepositoryName
    tag: str = ""
    digest: Digest | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")

    @property
    def target(self) -> str:
        """What a registry is asked for: the digest, or else the tag."""
        return str(self.digest) if self.digest else self.tag


def host_of(registry: str) -> str:
    """Say where a registry answers: Docker Hub does not do so under its name. Hosts are compared in lower case."""
    return _HUB_HOST if registry == DEFAULT_REGISTRY else registry.lower()


def parse_reference(text: str) -> Reference:
    """Read `[registry/]repository[:tag][@digest]`; raises ConfigError.

    Without a registry it is Docker Hub, and without tag and digest the tag is `latest`, as for everybody else. What
    comes first is a registry if it has a dot or a colon, is `localhost`, or has upper-case letters.
    """
    if "://" in text:
        raise _invalid(text, "leave out the scheme: registry/repository:tag")
    rest, at, digest_text = text.partition("@")
    digest = None
    if at:
        try:
            digest = parse_digest(digest_text)
        except ValueError as error:
            raise _invalid(text, "a digest is sha256: and 64 lower-case hexadecimal digits") from error
    tag = ""
    path, colon, last = rest.rpartition(":")
    if colon and "/" not in last:
        rest, tag = path, last
        if not _TAG.match(tag):
            raise _invalid(
                text, "a tag has up to 128 letters, digits, '.', '_' and '-', and starts with none of . and -"
            )
    name = parse_repository(rest, text)
    return Reference(name, tag or ("" if digest else DEFAULT_TAG), digest)


def parse_repository(text: str, whole: str = "") -> RepositoryName:
    """Read `[registry/]repository`; raises ConfigError, which shows `whole` if that is what it was in."""
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
        raise _invalid(whole, f"{printable(registry)!r} is no host")
    if not _REPOSITORY.match(repository) or len(repository) > _MAX_REPOSITORY:
        raise _invalid(whole, "a repository is lower-case words with '/' between them, as in registry/team/app:tag")
    return RepositoryName(registry, repository)


def is_host(text: str) -> bool:
    """Tell whether a text can be a host, with a port or without."""
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
    """Tell whether a text can be a tag."""
    return _TAG.match(text) is not None


def _invalid(text: str, hint: str) -> ConfigError:
    return ConfigError("reference-invalid", f"{printable(text)!r} is no reference to an image", hint)

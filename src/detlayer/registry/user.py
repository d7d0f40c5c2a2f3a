"""Registries with the user's settings: proxies from the environment, credentials from `docker login`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from detlayer import __version__
from detlayer.errors import ConfigError
from detlayer.oci.references import Reference, RepositoryName
from detlayer.registry.client import Registries
from detlayer.registry.connections import Network
from detlayer.registry.transport import Transport

if TYPE_CHECKING:
    from detlayer.registry.credentials import Credentials


def user_network(environment: Mapping[str, str] | None = None) -> Network:
    """Return the default network settings with proxies from the environment."""
    return Network(proxies=os.environ if environment is None else environment, user_agent=f"detlayer/{__version__}")


def open_user_registries(
    environment: Mapping[str, str] | None = None,
    *,
    given_for: Iterable[Reference] = (),
    network: Network | None = None,
) -> Registries:
    """Open registries with the user's credentials; close them at the end, or use them as a context manager.

    Uses the credentials of `docker login` and `podman login`. DETLAYER_USERNAME and DETLAYER_PASSWORD are sent only to
    the registries in `given_for`. Raises ConfigError if one of the two is missing.
    """
    environment = os.environ if environment is None else environment
    given = given_credentials(environment)
    finder = find_credentials(environment, given, given_for)
    return Registries(Transport(network or user_network(environment)), finder)


def given_credentials(environment: Mapping[str, str], username: str = "", password: str = "") -> tuple[str, str]:
    """Return the given user name and password, or those from DETLAYER_USERNAME and DETLAYER_PASSWORD.

    Empty if not set; raises ConfigError if one of the two is missing.
    """
    from_option = bool(username), bool(password)
    username = username or environment.get("DETLAYER_USERNAME", "")
    password = password or environment.get("DETLAYER_PASSWORD", "")
    if username and not password:
        raise ConfigError(
            "password-missing",
            f"{'--username' if from_option[0] else 'DETLAYER_USERNAME'} without a password",
            "set DETLAYER_PASSWORD, or pipe the password in: --password-stdin",
        )
    if password and not username:
        raise ConfigError(
            "username-missing",
            f"{'--password-stdin' if from_option[1] else 'DETLAYER_PASSWORD'} without a user name",
            "add --username NAME, or set DETLAYER_USERNAME; for an identity token the name is '<token>'",
        )
    return username, password


def find_credentials(
    environment: Mapping[str, str], given: tuple[str, str], given_for: Iterable[Reference]
) -> Callable[[RepositoryName], Credentials | None]:
    """Return a function that looks up credentials lazily: most requests need none."""
    from detlayer.registry.credentials import CredentialStore, read_environment

    meant = frozenset(reference.name.registry for reference in given_for)
    stores: list[CredentialStore] = []

    def find(name: RepositoryName) -> Credentials | None:
        if not stores:
            stores.append(CredentialStore(read_environment(environment, *given, given_for=meant)))
        return stores[0].find(name)

    return find

"""Registries that challenge only at `/v2/`, and deny elsewhere that anything is there: asked once before believed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from detlayer.errors import ConfigError, NotFoundError, RegistryError
from detlayer.oci.references import RepositoryName
from detlayer.registry import Network, Registries, Transport
from tests.contracts.assertions import assert_has, seed
from tests.contracts.client import Client
from tests.contracts.images import Layout, image
from tests.contracts.registry_behaviour import Rules
from tests.contracts.strict import Auth, StrictRegistry
from tests.contracts.tokens import ALICE

Start = Callable[..., StrictRegistry]
HIDDEN = [(auth, status) for auth in ("basic", "bearer") for status in (403, 404)]


def roots(server: StrictRegistry) -> int:
    return sum(request.path == "/v2/" for request in server.requests)


@pytest.mark.parametrize(("auth", "status"), HIDDEN)
def test_push_and_pull(start_strict: Start, layout: Layout, tmp_path: Path, auth: Auth, status: int) -> None:
    server = start_strict(auth=auth, rules=Rules(anonymous_status=status))
    first = layout.tag(image(layout), "image")
    Client(server).push(layout, "team/app:1", "other/app:1")
    assert_has(server, "team/app", "1", layout, first)
    assert_has(server, "other/app", "1", layout, first)
    assert roots(server) == 1  # for both repositories
    Client(server).pull("team/app:1", tmp_path / "pulled")
    assert roots(server) == 2


@pytest.mark.parametrize(("auth", "status"), HIDDEN)
def test_what_is_not_there_even_with_credentials(start_strict: Start, tmp_path: Path, auth: Auth, status: int) -> None:
    server = start_strict(auth=auth, rules=Rules(anonymous_status=status))
    with pytest.raises(NotFoundError):
        Client(server).pull("team/app:1", tmp_path / "pulled")
    assert roots(server) == 1


@pytest.mark.parametrize(("auth", "status"), HIDDEN)
def test_credentials_that_cannot_be_read(start_strict: Start, tmp_path: Path, auth: Auth, status: int) -> None:
    """A registry that wants them gets no further. Others are not asked for anything."""

    def find(name: RepositoryName) -> None:
        raise ConfigError("credentials-invalid", "the helper is broken")

    for server, error in (
        (start_strict(auth=auth, rules=Rules(anonymous_status=status)), ConfigError),
        (start_strict(), NotFoundError),
    ):
        with Registries(Transport(Network(read_s=30)), find) as registries:
            repository = registries.repository(RepositoryName(server.address, "team/app"))
            with pytest.raises(error):
                repository.get_manifest("1")


@pytest.mark.parametrize("status", [403, 404])
def test_without_credentials_it_is_believed(start_strict: Start, tmp_path: Path, status: int) -> None:
    server = start_strict(auth="bearer", rules=Rules(anonymous_status=status))
    server.account = None
    with pytest.raises(RegistryError):
        Client(server).pull("team/app:1", tmp_path / "pulled")
    assert len(server.requests) == 1


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_a_registry_that_challenges_is_not_asked(start_strict: Start, layout: Layout, auth: Auth) -> None:
    """A push that changes nothing has one request besides the one that is challenged."""
    server = start_strict(auth=auth)
    seed(server, "team/app", layout, layout.tag(image(layout), "image"), "1")
    Client(server).push(layout, "team/app:1")
    assert [(one.method, one.status) for one in server.requests] == [("HEAD", 401), ("HEAD", 200)]


def test_an_open_registry_is_asked_once_if_there_are_credentials(start_strict: Start, layout: Layout) -> None:
    """And nothing but the answer to it changes: credentials that nobody asks for are not sent."""
    server = start_strict()
    server.account = ALICE
    layout.tag(image(layout), "image")
    Client(server).push(layout, "team/app:1", "other/app:1")
    assert roots(server) == 1
    server.clear()
    Client(server).push(layout, "team/app:1")
    assert [one.method for one in server.requests] == ["HEAD"]

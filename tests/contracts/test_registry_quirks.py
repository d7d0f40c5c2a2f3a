"""Each registry trap by name: a push or pull succeeds, or fails with an error that names the cause."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from detlayer.errors import DetlayerError, IntegrityError, LayerError, RegistryError
from tests.contracts.assertions import assert_has, broken_tags, seed
from tests.contracts.client import Client
from tests.contracts.images import Layout, platforms
from tests.contracts.registry_behaviour import PULL_TRAPS, PUSH_TRAPS
from tests.contracts.strict import StrictRegistry

Start = Callable[..., StrictRegistry]

# The user's error message if a push can't succeed.
PUSH_ERRORS = {
    "unavailable-for-ever": "registry-busy",
    "digest-header-wrong": "manifest-digest",
    "read-only": "registry-read-only",
    "repository-missing": "repository-missing",
    "garbage-on-post": "registry-garbage",
    "error-in-html": "registry-denied",
    "error-without-end": "registry-denied",
    "never-answers": "registry-timeout",
    "realm-private": "realm-private",
    "realm-link-local": "realm-private",
}
PULL_ERRORS = {
    "blobs-elsewhere-fishing": "redirect-refused",
    "digest-header-wrong": "manifest-digest",
    "garbage-manifest": "registry-garbage",
    "no-json-manifest": "document-invalid",
    "endless-manifest": "manifest-too-long",
    "endless-blob": "blob-digest",
    "length-too-long": "blob-digest",
    "length-too-short": "blob-digest",
    "never-answers": "registry-timeout",
}


def leaks(server: StrictRegistry, *texts: str) -> list[str]:
    return [secret for secret in server.secrets if any(secret in text for text in texts)]


@pytest.mark.parametrize("name", PUSH_TRAPS)
def test_push(name: str, start_strict: Start, layout: Layout, tmp_path: Path) -> None:
    trap = PUSH_TRAPS[name]
    server = start_strict(trap)
    index = layout.tag(platforms(layout), "image")
    client = Client(server, tmp_path / "cache", read_s=1.0 if name == "never-answers" else 30.0)
    if name == "never-answers":
        client.retries = 1
    if trap.passes:
        client.push(layout, "team/app:1", "team/app:2")
        for tag in ("1", "2"):
            assert_has(server, "team/app", tag, layout, index)
        assert leaks(server, *client.log) == []
        return
    with pytest.raises((RegistryError, IntegrityError)) as caught:
        client.push(layout, "team/app:1")
    error = caught.value
    assert error.code == PUSH_ERRORS[name]
    assert error.hint
    assert "\n" not in error.message
    assert "\x1b" not in error.message
    assert leaks(server, error.message, error.hint, *client.log) == []
    assert broken_tags(server) == {}


@pytest.mark.parametrize("name", PULL_TRAPS)
def test_pull(name: str, start_strict: Start, layout: Layout, tmp_path: Path) -> None:
    trap = PULL_TRAPS[name]
    server = start_strict(trap)
    index = platforms(layout, 2, 2)
    seed(server, "team/app", layout, index, "1")
    client = Client(server, read_s=1.0 if name == "never-answers" else 30.0)
    if name == "never-answers":
        client.retries = 1
    target = tmp_path / "pulled"
    if trap.passes:
        client.pull("team/app:1", target)
        for digest in layout.blobs_of(index):
            assert (target / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes() == layout.read(digest)
        return
    with pytest.raises(DetlayerError) as caught:
        client.pull("team/app:1", target)
    assert caught.value.code == PULL_ERRORS[name]
    assert isinstance(caught.value, RegistryError | IntegrityError | LayerError)
    assert not (target / "index.json").exists()
    assert leaks(server, caught.value.message, caught.value.hint, *client.log) == []


def test_a_busy_registry_is_given_the_time_it_asks_for(start_strict: Start, layout: Layout) -> None:
    from tests.contracts.faults import Fault, Reply
    from tests.contracts.registry_behaviour import busy

    server = start_strict()
    server.arm(Fault(Reply(busy(429, "17")), "HEAD", times=1))
    layout.tag(platforms(layout, 1, 1), "image")
    client = Client(server)
    client.push(layout, "team/app:1")
    assert 16.9 < max(client.pace.waits_s) <= 17.0


def test_nobody_waits_longer_than_the_user_allows(start_strict: Start, layout: Layout) -> None:
    from tests.contracts.faults import Fault, Reply
    from tests.contracts.registry_behaviour import busy

    server = start_strict()
    server.arm(Fault(Reply(busy(429, "86400")), times=0))
    layout.tag(platforms(layout, 1, 1), "image")
    client = Client(server)
    with pytest.raises(RegistryError) as caught:
        client.push(layout, "team/app:1")
    assert caught.value.code == "registry-busy"
    assert max(client.pace.waits_s, default=0.0) <= 60

"""push, plan, pull and resolve as Python calls, with plain strings and the environment's registries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import detlayer
from tests.contracts.fixtures import StartStrict
from tests.contracts.images import Layout, image
from tests.contracts.strict import StrictRegistry


@pytest.fixture
def registry(start_strict: StartStrict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StrictRegistry:
    """A registry that requires the credentials in the environment."""
    server = start_strict(auth="bearer")
    assert server.account is not None
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("DETLAYER_USERNAME", server.account.username)
    monkeypatch.setenv("DETLAYER_PASSWORD", server.account.password)
    return server


def test_one_call_each_with_plain_strings(registry: StrictRegistry, layout: Layout, tmp_path: Path) -> None:
    descriptor = layout.tag(image(layout), "image")
    source, reference = f"oci:{layout.path}:image", f"{registry.address}/team/app:1"
    (plan,) = detlayer.plan(source, reference)
    assert not plan.is_done
    report = detlayer.push(source, [reference, f"{registry.address}/team/app:2"])
    assert report.first_error is None
    assert registry.tags("team/app") == {"1": descriptor["digest"], "2": descriptor["digest"]}
    assert str(detlayer.resolve(reference).document.digest) == descriptor["digest"]
    pulled = detlayer.pull(reference, f"oci:{tmp_path / 'pulled'}:app")
    assert str(pulled.resolved.document.digest) == descriptor["digest"]
    index = json.loads((tmp_path / "pulled" / "index.json").read_text())
    assert [one["annotations"]["org.opencontainers.image.ref.name"] for one in index["manifests"]] == ["app"]
    copied = detlayer.push(f"docker://{reference}", f"{registry.address}/team/copy:1")
    assert copied.first_error is None
    assert registry.tags("team/copy") == {"1": descriptor["digest"]}


def test_registries_and_store_are_used_where_they_are_given(
    registry: StrictRegistry, layout: Layout, tmp_path: Path
) -> None:
    layout.tag(image(layout), "image")
    source, reference = f"oci:{layout.path}:image", f"{registry.address}/team/app:1"
    given = detlayer.parse_reference(reference)
    with detlayer.Store(str(tmp_path / "cache")) as store:
        for expected in (False, True):
            with detlayer.Registries.from_environment(given_for=[given]) as registries:
                plans = detlayer.plan(source, given, registries=registries, store=store)
                assert [plan.is_done for plan in plans] == [expected]
                report = detlayer.push(source, given, registries=registries, store=store)
                assert report.first_error is None


def test_a_wrong_password_is_an_error_of_the_call(registry: StrictRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETLAYER_PASSWORD", "wrong")
    with pytest.raises(detlayer.AuthError):
        detlayer.resolve(f"{registry.address}/team/app:1")

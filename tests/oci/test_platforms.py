"""Parsing platforms, and selecting the manifest of an index (image-index.md)."""

from __future__ import annotations

import pytest

from detlayer.errors import ConfigError
from detlayer.oci.platforms import listed, parse_platform, select
from detlayer.oci.types import MEDIA_TYPE_MANIFEST, Descriptor, Digest, Platform


def child(text: str) -> Descriptor:
    return Descriptor(MEDIA_TYPE_MANIFEST, Digest(f"{abs(hash(text)):064x}"), 1, platform=parse_platform(text))


def chosen(wanted: str, *offered: str) -> str | None:
    found = select(map(child, offered), parse_platform(wanted))
    return (
        None
        if found is None
        else f"{found.platform}"
        + (f":{found.platform.os_version}" if found.platform and found.platform.os_version else "")
    )


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("Linux/x86_64", Platform("linux", "amd64")),
        ("linux/aarch64", Platform("linux", "arm64")),
        ("linux/armhf", Platform("linux", "arm", "v7")),
        ("linux/arm/v6", Platform("linux", "arm", "v6")),
        ("windows/amd64:10.0.17763.1", Platform("windows", "amd64", "", "10.0.17763.1")),
    ],
)
def test_platforms_are_read(text: str, platform: Platform) -> None:
    assert parse_platform(text) == platform


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "linux/amd64/v1/x", "linux/amd 64", "linux/../x"])
def test_what_is_no_platform(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_platform(text)
    assert caught.value.code == "platform-invalid"


@pytest.mark.parametrize(
    ("wanted", "offered", "found"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], "linux/amd64"),
        ("linux/s390x", ["linux/arm64", "linux/amd64"], None),
        ("windows/amd64", ["linux/amd64"], None),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm64"], "linux/arm/v7"),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], "linux/arm/v6"),
        ("linux/arm", ["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7"),
        ("linux/arm/v6", ["linux/arm/v7"], None),
        ("linux/arm64", ["linux/arm64/v8"], "linux/arm64/v8"),
        ("linux/arm64/v8", ["linux/arm64"], "linux/arm64"),
        ("linux/amd64", ["linux/amd64/v3"], None),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2"], "linux/amd64/v2"),
        ("linux/arm64/v8.2", ["linux/arm64/v8", "linux/arm64/v8.1", "linux/arm64/v9"], "linux/arm64/v8.1"),
        ("windows/amd64:10.0.17.5", ["windows/amd64:10.0.20.1", "windows/amd64:10.0.17.9"], "windows/amd64:10.0.17.9"),
        ("windows/amd64:10.0.17.5", ["windows/amd64:10.0.17.9", "windows/amd64:10.0.17.5"], "windows/amd64:10.0.17.5"),
        ("windows/amd64:10.0.1.1", ["windows/amd64:10.0.2.1"], None),
    ],
)
def test_the_best_is_chosen(wanted: str, offered: list[str], found: str | None) -> None:
    assert chosen(wanted, *offered) == found


def test_the_first_of_equals_wins() -> None:
    platform = Platform("linux", "amd64")
    first, second = (Descriptor(MEDIA_TYPE_MANIFEST, Digest(f"{n:064x}"), n, platform=platform) for n in (1, 2))
    assert select([first, second], platform) is first


def test_attestations_are_no_platform() -> None:
    offered = [child("linux/amd64"), child("unknown/unknown"), child("linux/amd64")]
    assert [str(one) for one in listed(offered)] == ["linux/amd64"]

"""The proxy for a URL, by the rules of curl and Go for environment variables."""

from __future__ import annotations

import pytest

from detlayer.errors import ConfigError
from detlayer.registry.proxies import find_proxy

PROXY = "http://proxy.example:3128"
EVERY = {"https_proxy": PROXY, "http_proxy": PROXY}


@pytest.mark.parametrize(
    ("no_proxy", "exempt", "proxied"),
    [
        ("registry.example", ["registry.example", "a.registry.example", "registry.example."], ["xregistry.example"]),
        (".registry.example", ["a.registry.example"], ["registry.example"]),
        ("*.registry.example", ["a.registry.example", "a.b.registry.example"], ["registry.example"]),
        ("REGISTRY.example", ["registry.EXAMPLE"], ["other.example"]),
        ("registry.example:5000", ["registry.example:5000", "a.registry.example:5000"], ["registry.example"]),
        ("registry.example:443", ["registry.example"], ["registry.example:5000"]),
        ("*", ["registry.example", "10.1.2.3", "[fd00::1]:5000"], []),
        ("10.0.0.0/8", ["10.1.2.3", "10.1.2.3:5000"], ["11.1.2.3", "ten.example"]),
        ("10.1.2.3", ["10.1.2.3", "10.1.2.3:5000"], ["10.1.2.4"]),
        ("10.1.2.3:5000", ["10.1.2.3:5000"], ["10.1.2.3"]),
        ("fd00::/8", ["[fd00::1]", "[fdff::1]:5000"], ["[fe80::1]"]),
        ("[fd00::1]", ["[fd00::1]", "[fd00:0::1]:5000"], ["[fd00::2]"]),
        ("[fd00::1]:5000", ["[fd00::1]:5000"], ["[fd00::1]"]),
        ("::1/128", ["[::1]"], ["[fd00::1]"]),
        (" other.example , registry.example ,, ", ["registry.example", "other.example"], ["example"]),
        ("https://registry.example", ["registry.example"], ["other.example"]),
        ("[::1, fd00::/999, /, :, [], *x", [], ["registry.example", "[::1]"]),
        ("", [], ["registry.example"]),
    ],
)
def test_hosts_that_no_proxy_exempts(no_proxy: str, exempt: list[str], proxied: list[str]) -> None:
    environment = {**EVERY, "no_proxy": no_proxy}
    assert [find_proxy(f"https://{host}/v2/", environment) for host in exempt] == [None] * len(exempt)
    assert [find_proxy(f"https://{host}/v2/", environment) for host in proxied] == [PROXY] * len(proxied)


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({}, "https://a.example/", None),
        ({"NO_PROXY": "[::1]"}, "https://a.example/", None),
        ({"HTTPS_PROXY": PROXY}, "https://a.example/", PROXY),
        ({"HTTPS_PROXY": PROXY}, "http://a.example/", None),
        ({"ALL_PROXY": PROXY}, "http://a.example/", PROXY),
        ({"ALL_PROXY": "http://all.example:1", "https_proxy": PROXY}, "https://a.example/", PROXY),
        ({"HTTPS_PROXY": "http://upper.example:1", "https_proxy": PROXY}, "https://a.example/", PROXY),
        ({"HTTPS_PROXY": "http://upper.example:1", "https_proxy": ""}, "https://a.example/", "http://upper.example:1"),
        ({"HTTPS_PROXY": "proxy.example:3128"}, "https://a.example/", PROXY),
        ({"HTTPS_PROXY": "socks5h://proxy.example:1080"}, "https://a.example/", "socks5h://proxy.example:1080"),
        ({"HTTPS_PROXY": "https://me:secret@proxy.example"}, "https://a.example/", "https://me:secret@proxy.example"),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "*"}, "https://a.example/", None),
    ],
)
def test_variable_that_names_the_proxy(environment: dict[str, str], url: str, proxy: str | None) -> None:
    assert find_proxy(url, environment) == proxy


@pytest.mark.parametrize(
    "proxy", ["ftp://h:1", "http://[::1", "http://me:hunter2@h:x", "http://", "http://me:hunter2@:80"]
)
def test_unusable_proxy_is_an_error_without_its_password(proxy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_proxy("https://a.example/", {"HTTPS_PROXY": proxy})
    assert caught.value.code == "proxy-invalid"
    assert "hunter2" not in caught.value.message + caught.value.hint
    assert find_proxy("https://a.example/", {"HTTPS_PROXY": proxy, "NO_PROXY": "a.example"}) is None

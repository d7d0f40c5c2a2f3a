"""A plain HTTP client for tests of the servers: no redirects, retries or logins."""

from __future__ import annotations

import ssl
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

from tests.contracts.certificates import ca_path
from tests.contracts.servers import Server
from tests.contracts.storage import DOCKER_LIST, DOCKER_MANIFEST, INDEX, MANIFEST

OCTETS = {"Content-Type": "application/octet-stream"}
ACCEPT = {"Accept": ", ".join((MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST))}


def client(server: Server, *, token: str = "") -> httpx.Client:
    """Make a client with the server as base URL."""
    return client_at(f"{'https' if server.ca_file else 'http'}://{server.address}", token=token)


def client_at(url: str, *, token: str = "") -> httpx.Client:
    verify = ssl.create_default_context(cafile=str(ca_path())) if url.startswith("https") else False
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    jar = CookieJar(DefaultCookiePolicy(allowed_domains=()))
    return httpx.Client(base_url=url, headers=headers, verify=verify, cookies=jar, trust_env=False, timeout=20)


def begin(http: httpx.Client, name: str, query: str = "") -> str:
    """Begin an upload; returns its Location."""
    response = http.post(f"/v2/{name}/blobs/uploads/{query}")
    assert response.status_code == 202, response.text
    return response.headers["Location"]


def with_digest(location: str, digest: str) -> str:
    return f"{location}{'&' if '?' in location else '?'}digest={digest}"


def push_blob(http: httpx.Client, name: str, data: bytes, digest: str) -> httpx.Response:
    """Push by POST and PUT."""
    return http.put(with_digest(begin(http, name), digest), content=data, headers=OCTETS)

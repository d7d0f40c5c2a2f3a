"""Random faults in any order: no tag names an incomplete image, and a push completes after they end."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from detlayer.errors import DetlayerError
from tests.contracts.assertions import assert_has, broken_tags
from tests.contracts.client import Client
from tests.contracts.faults import Act, CutAnswer, CutRequest, Fault, LoseAnswer, Reply, WrongLength
from tests.contracts.http_records import Answer
from tests.contracts.images import Layout, platforms
from tests.contracts.registry_behaviour import Rules
from tests.contracts.strict import StrictRegistry

ZEROS = "sha256:" + "0" * 64
VALUES = (
    "", "0-0", "0-99", "/nowhere", "//x", "http://127.0.0.1:1/x", "https://127.0.0.1/", "http://[::1", ZEROS, "-5",
    "17", "application/json", "application/vnd.oci.image.index.v1+json", "\x01\x02", "é", "Basic realm=x",
    'Bearer realm="http://127.0.0.1:1/token"', 'Bearer realm="',
)  # fmt: skip
NAMES = (
    "Location", "Range", "Content-Type", "Docker-Content-Digest", "WWW-Authenticate", "Retry-After",
    "OCI-Chunk-Min-Length", "OCI-Subject", "Link", "Content-Encoding",
)  # fmt: skip
# Without redirects that a client must follow: their targets here are invalid, which is not the client's fault.
STATUSES = (200, 201, 202, 204, 206, 304, 400, 401, 403, 404, 405, 409, 413, 416, 418, 429, 500, 502, 503, 504)
BODIES = (
    b"",
    b"{}",
    b"[",
    b"\0" * 100,
    b'{"token": "x"}',
    b'{"errors": [{"code": "BLOB_UPLOAD_UNKNOWN"}]}',
    b'{"errors": [{"code": "MANIFEST_BLOB_UNKNOWN", "detail": "%b"}]}' % ZEROS.encode(),
    b'{"errors": [{"code": "DIGEST_INVALID"}]}',
    b'{"errors": [{"code": 5, "message": {}, "detail": [[[[[]]]]]}]}',
    b'{"schemaVersion": 2, "manifests": []}',
)


def fault(chance: random.Random) -> Fault:
    """A fault at some request."""
    headers = tuple((name, chance.choice(VALUES)) for name in NAMES if chance.random() < 0.3)
    acts: list[Act] = [
        CutRequest(chance.randrange(2000), reset=chance.random() < 0.5),
        CutAnswer(chance.randrange(50)),
        LoseAnswer(),
        WrongLength(chance.randint(-20, 20)),
        *[Reply(Answer(chance.choice(STATUSES), headers, chance.choice(BODIES)))] * 3,
    ]
    method = chance.choice(["", "", "PUT", "POST", "PATCH", "GET", "HEAD"])
    return Fault(chance.choice(acts), method, at=chance.randint(1, 12), times=chance.choice([1, 1, 2, 5]))


@pytest.mark.parametrize("seed", range(40))
def test_no_tag_names_an_incomplete_image_whatever_goes_wrong(
    seed: int,
    start_strict: Callable[..., StrictRegistry],
    layout: Layout,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr("detlayer.registry.upload.CHUNKED_FROM_BYTES", 1500)
    monkeypatch.setattr("detlayer.registry.upload._CHUNK_BYTES", 700)
    monkeypatch.setattr("detlayer.registry.upload._SMALLEST_CHUNK_BYTES", 100)
    rules = Rules(
        location=chance.choice(["absolute", "relative"]),
        put_max_bytes=chance.choice([0, 0, 500]),
        mounts=chance.random() < 0.7,
    )
    server = start_strict(auth=chance.choice(["open", "basic", "bearer"]), rules=rules)
    index = layout.tag(platforms(layout, 2, 2), "image")
    client = Client(server, tmp_path / "cache", retries=1)
    faults = [fault(chance) for _ in range(chance.randint(1, 4))]
    server.arm(*faults)
    report = client.try_push(layout, "team/app:1", "team/other:1")
    assert all(isinstance(one.first_error, DetlayerError | None) for one in report.results)
    assert broken_tags(server) == {}
    server.revive()
    client.push(layout, "team/app:1", "team/other:1")
    for name in ("team/app", "team/other"):
        assert_has(server, name, "1", layout, index)
    if any(isinstance(one.act, Reply) for one in faults):
        # False responses excuse the client: a false HEAD makes it put manifests too early.
        server.clear()

"""A push killed at any request leaves no tag at an incomplete image, and the next one sends nothing twice (SPEC 11)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from detlayer.errors import DetlayerError
from tests.contracts.assertions import assert_has, broken_tags, present
from tests.contracts.client import Client
from tests.contracts.faults import kill_at
from tests.contracts.images import Layout, platforms
from tests.contracts.servers import Server
from tests.contracts.strict import StrictRegistry

MOST = 60  # the requests of the push below, with a margin


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_every_request(open_server: Server, layout: Layout, tmp_path: Path, after: bool) -> None:
    """Tests kill the push at every request; with `after`, the registry handles the request but does not answer."""
    first = layout.tag(platforms(layout, 2, 3, version="1"), "first")
    second = layout.tag(platforms(layout, 2, 3, version="2"), "second")
    digests = layout.blobs_of(second)
    for number in range(1, MOST):
        name = f"team/app{number}"
        client = Client(open_server, tmp_path / f"cache{number}", retries=0)
        client.push(f"oci:{layout.path}:first", f"{name}:1")
        open_server.clear()
        open_server.arm(kill_at(number, after=after))
        try:
            client.push(f"oci:{layout.path}:second", f"{name}:1", f"{name}:2")
        except DetlayerError:
            killed = True
        else:
            killed = False
        open_server.revive()
        assert broken_tags(open_server) == {}, f"killed at request {number}"
        arrived = present(open_server, name, digests)
        open_server.clear()
        client.push(f"oci:{layout.path}:second", f"{name}:1", f"{name}:2")
        for tag in ("1", "2"):
            assert_has(open_server, name, tag, layout, second)
        twice = {
            request.parameter("digest")
            for request in open_server.requests
            if request.method in ("PUT", "PATCH") and "/blobs/uploads/" in request.path and request.body_bytes
        }
        assert not twice & arrived, f"killed at request {number}: sent twice"
        if not killed:
            break
    else:
        raise AssertionError("the push has more requests than the test walks")
    assert number > 12
    assert first != second


def test_a_chunk_that_broke_off(open_server: Server, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blob arrives, whatever part of it the registry keeps."""
    from detlayer.registry import upload
    from tests.contracts.faults import SESSION, CutRequest, Fault
    from tests.contracts.images import image

    monkeypatch.setattr(upload, "CHUNKED_FROM_BYTES", 1 << 20)
    monkeypatch.setattr(upload, "_CHUNK_BYTES", 1 << 20)
    descriptor = layout.tag(image(layout, ["large"], layer_bytes=5 << 20, compression="none"), "image")
    open_server.arm(Fault(CutRequest(300_000), "PATCH", SESSION, at=3))
    Client(open_server).push(layout, "team/app:1")
    assert_has(open_server, "team/app", "1", layout, descriptor)


def test_a_large_blob_goes_on_where_it_broke_off(
    open_server: Server, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Across processes: the next one reads the cache."""
    from detlayer.registry import upload
    from tests.contracts.faults import SESSION, Fault, Kill
    from tests.contracts.images import image

    monkeypatch.setattr(upload, "CHUNKED_FROM_BYTES", 1 << 20)
    monkeypatch.setattr(upload, "_CHUNK_BYTES", 1 << 20)
    descriptor = layout.tag(image(layout, ["large"], layer_bytes=5 << 20, compression="none"), "image")
    large = next(digest for digest, data in layout.blobs_of(descriptor).items() if len(data) > 1 << 20)
    size = len(layout.read(large))
    client = Client(open_server, tmp_path / "cache", retries=0)
    # Between chunks: docker-registry drops an upload with a partial chunk.
    open_server.arm(Fault(Kill(), "PATCH", SESSION, at=3))
    with pytest.raises(DetlayerError):
        client.push(layout, "team/app:1")
    open_server.revive()
    open_server.clear()
    client.push(layout, "team/app:1")
    assert_has(open_server, "team/app", "1", layout, descriptor)
    sent = sum(request.body_bytes for request in open_server.requests if request.method == "PATCH")
    assert 0 < sent <= size - (2 << 20)


def test_within_a_run_a_large_blob_goes_on(
    start_strict: Callable[..., StrictRegistry], layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the last received byte, if the registry keeps partial chunks, as specified."""
    from detlayer.registry import upload
    from tests.contracts.faults import SESSION, CutRequest, Fault
    from tests.contracts.images import image

    monkeypatch.setattr(upload, "CHUNKED_FROM_BYTES", 1 << 20)
    monkeypatch.setattr(upload, "_CHUNK_BYTES", 1 << 20)
    open_server = start_strict()
    descriptor = layout.tag(image(layout, ["large"], layer_bytes=8 << 20, compression="none"), "image")
    open_server.arm(*(Fault(CutRequest(100_000), "PATCH", SESSION, at=number) for number in (2, 4, 6, 8, 10)))
    Client(open_server).push(layout, "team/app:1")
    assert_has(open_server, "team/app", "1", layout, descriptor)
    sent = sum(request.body_bytes for request in open_server.requests if request.method == "PATCH")
    assert sent < (8 << 20) + 5 * (1 << 20)

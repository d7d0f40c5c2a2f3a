"""A mount that fails costs one request, whatever way it fails: no retry, no back-off, then an ordinary upload."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.contracts.assertions import assert_has, seed
from tests.contracts.client import Client
from tests.contracts.faults import Act, Fault, LoseAnswer, Reply, Silence
from tests.contracts.http_records import Answer, Request, error_answer
from tests.contracts.images import Layout, base_of, image, platforms
from tests.contracts.registry_behaviour import HTML, HTML_ERROR, busy
from tests.contracts.strict import StrictRegistry

Start = Callable[..., StrictRegistry]
CUT_OFF = Answer(400, (("Content-Type", "text/plain"),), b"400 Bad Request", close=True)
WAYS: dict[str, Act] = {
    **{str(status): Reply(busy(status)) for status in (429, 500, 502, 503, 504)},
    "503-retry-after": Reply(busy(503, "30")),
    "hung-up": LoseAnswer(),
    "never-answered": Silence(),
    "cut-off-in-head": Reply(CUT_OFF),
    "html": Reply(HTML),
    "html-error": Reply(HTML_ERROR),
    **{str(status): Reply(error_answer(status, ("UNSUPPORTED", "no", None))) for status in (400, 403, 404, 405, 501)},
}


def is_mount(request: Request) -> bool:
    return bool(request.parameter("mount"))


@pytest.mark.parametrize("way", WAYS)
def test_it_costs_one_request(start_strict: Start, layout: Layout, way: str) -> None:
    """The others of this push are not slowed down: nobody waits, however many mounts fail."""
    server = start_strict()
    seed(server, "team/base", layout, base_of(layout), "12")
    index = layout.tag(platforms(layout), "image")
    server.arm(Fault(WAYS[way], "POST", query="mount=", times=0))
    client = Client(server, read_s=0.3 if way == "never-answered" else 30.0)
    client.push(layout, "team/app:1", source=["team/base"])
    assert_has(server, "team/app", "1", layout, index)
    mounts = [request.parameter("mount") for request in server.requests if is_mount(request)]
    assert len(mounts) == len(set(mounts)) >= 12
    assert 201 not in [request.status for request in server.requests if is_mount(request)]
    assert client.pace.waits_s == []


def test_a_limit_of_requests_counts_for_all(start_strict: Start, layout: Layout) -> None:
    """429 with Retry-After is about the client, and not about the mount: everybody waits, and no mount is repeated."""
    server = start_strict()
    seed(server, "team/base", layout, image(layout), "12")
    layout.tag(image(layout), "image")
    server.arm(Fault(Reply(busy(429, "7")), "POST", query="mount="))
    client = Client(server)
    client.push(layout, "team/app:1", source=["team/base"])
    mounts = [request.parameter("mount") for request in server.requests if is_mount(request)]
    assert len(mounts) == len(set(mounts))
    assert max(client.pace.waits_s) > 6


def test_a_limit_beyond_our_patience_is_not_the_end(start_strict: Start, layout: Layout) -> None:
    server = start_strict()
    seed(server, "team/base", layout, image(layout), "12")
    layout.tag(image(layout), "image")
    server.arm(Fault(Reply(busy(429, "86400")), "POST", query="mount="))
    client = Client(server)
    client.push(layout, "team/app:1", source=["team/base"])
    assert client.pace.waits_s == []

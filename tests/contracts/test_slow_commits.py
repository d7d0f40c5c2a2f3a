"""A registry may take long to store a blob after its last byte: it gets the time, and nothing is sent meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from detlayer.errors import UnavailableError
from detlayer.oci.references import RepositoryName
from detlayer.registry import Network, Registries, Transport
from detlayer.registry.upload import upload
from tests.contracts.client import FastPace
from tests.contracts.faults import BLOB, SESSION, Call, Fault, Reply, Silence
from tests.contracts.http_records import Answer, Request
from tests.contracts.strict import StrictRegistry
from tests.contracts.test_addresses import BLOB as NEW
from tests.contracts.test_addresses import DATA, Bytes

Start = Callable[..., StrictRegistry]
SHORT = Network(read_s=0.3, retries=2, store_bytes_per_s=1e9)
"""Patience of 0.3 s, whatever the size."""


def send(server: StrictRegistry, network: Network, *, pace: FastPace | None = None) -> None:
    with Registries(Transport(network, pace=pace)) as registries:
        upload(registries.repository(RepositoryName(server.address, "team/app")), NEW, Bytes)


def sent(server: StrictRegistry) -> list[str]:
    return [request.method for request in server.requests]


@pytest.mark.parametrize("chunk_bytes", [0, 400])
def test_patience_grows_with_the_size(start_strict: Start, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry needs three times as long as for any other answer. It has a minute, for 1000 bytes."""
    if chunk_bytes:
        monkeypatch.setattr("detlayer.registry.upload.CHUNKED_FROM_BYTES", 1)
        monkeypatch.setattr("detlayer.registry.upload._CHUNK_BYTES", chunk_bytes)
    server = start_strict()
    never = threading.Event()
    server.arm(Fault(Call(lambda request: never.wait(0.9), after=True), "PUT", SESSION))
    send(server, replace(SHORT, store_bytes_per_s=len(DATA) / 60))
    assert sent(server).count("PUT") == 1
    assert "HEAD" not in sent(server)
    assert server.blob("team/app", str(NEW.digest)) == DATA


def test_the_formula() -> None:
    """SPEC 11.8"""
    assert Network().store_s(0) == 60
    assert Network().store_s(1 << 30) == 60 + 1024
    assert Network(read_s=5).store_s(10 << 20) == 15


def test_after_a_timeout_it_is_asked_for_before_anything_is_sent(start_strict: Start) -> None:
    """It was stored; the answer comes only when the blob has been asked for."""
    server = start_strict()
    asked = threading.Event()
    server.arm(
        Fault(Call(lambda request: asked.wait(30), after=True), "PUT", SESSION),
        Fault(Call(lambda request: asked.set()), "HEAD", BLOB),
    )
    send(server, SHORT)
    assert sent(server) == ["POST", "PUT", "HEAD"]


def test_what_did_not_arrive_is_sent_again(start_strict: Start) -> None:
    server = start_strict()
    server.arm(Fault(Silence(), "PUT", SESSION))
    send(server, SHORT)
    assert sent(server) == ["POST", "PUT", "HEAD", "POST", "PUT"]


def test_a_registry_that_never_stores_it_is_given_up(start_strict: Start) -> None:
    server = start_strict()
    server.arm(Fault(Silence(), "PUT", SESSION, times=0))
    with pytest.raises(UnavailableError) as caught:
        send(server, SHORT)
    assert sent(server).count("PUT") == 3  # two retries
    assert caught.value.code == "registry-timeout"
    assert f"did not store {NEW.digest} within 1 s" in caught.value.message


def test_a_proxy_that_gives_up_waiting_does_not_end_the_work(start_strict: Start) -> None:
    """A load balancer answers after its own timeout. The registry is at work until the fourth time that it is asked."""
    server = start_strict()
    looks: list[Request] = []

    def look(request: Request) -> None:
        looks.append(request)
        if len(looks) == 4:
            server.put_blob("team/app", DATA)

    server.arm(Fault(Reply(Answer(504)), "PUT", SESSION), Fault(Call(look), "HEAD", BLOB, times=0))
    send(server, Network(read_s=30), pace=FastPace())
    assert sent(server) == ["POST", "PUT", "HEAD", "HEAD", "HEAD", "HEAD"]


def test_a_proxy_that_gives_up_for_good(start_strict: Start) -> None:
    """The registry has stored nothing when its time is over: then it is sent again."""
    server = start_strict()
    pace = FastPace()
    server.arm(Fault(Reply(Answer(504)), "PUT", SESSION))
    send(server, Network(read_s=30), pace=pace)
    assert sent(server).count("PUT") == 2
    assert 25 < sum(pace.waits_s) < 35
    assert server.blob("team/app", str(NEW.digest)) == DATA

"""The user is told what a long wait is for and how long it may last, and no wait is longer than the user allows."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO

import pytest

from detlayer.errors import RegistryError, UnavailableError
from detlayer.oci.references import RepositoryName
from detlayer.registry import Network, Registries, Repository, Transport
from detlayer.registry.transport import Request as Asking
from detlayer.registry.transport import Stretch
from detlayer.registry.upload import upload
from tests.contracts.client import Client, FastPace
from tests.contracts.faults import SESSION, Call, Fault, Reply
from tests.contracts.http_records import Answer, error_answer
from tests.contracts.images import Layout, image
from tests.contracts.raw_server import Asked, RawServer, answer
from tests.contracts.registry_behaviour import busy
from tests.contracts.strict import StrictRegistry
from tests.contracts.test_addresses import BLOB as NEW
from tests.contracts.test_addresses import DATA, Bytes

Start = Callable[..., StrictRegistry]
IMPATIENT = Network(read_s=60, notice_after_s=0.05, retries=0)


@dataclass
class Told:
    """What the user is told. The peers of these tests do not go on before that."""

    lines: list[str] = field(default_factory=list)
    event: threading.Event = field(default_factory=threading.Event)

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self.event.set()

    def wait(self) -> None:
        assert self.event.wait(30)

    def is_only(self, pattern: str) -> None:
        assert len(self.lines) == 1
        assert re.fullmatch(pattern, self.lines[0]), self.lines


def repository(registries: Registries, address: str) -> Repository:
    return registries.repository(RepositoryName(address, "team/app"))


def test_a_wait_for_an_answer() -> None:
    told = Told()

    def say(asked: Asked) -> Iterable[bytes]:
        told.wait()
        yield answer(404)

    with RawServer(say) as server, Registries(Transport(IMPATIENT, tell=told)) as registries:
        repository(registries, server.address).head_manifest("1")
        url = f"http://{server.address}/v2/team/app/manifests/1"
    told.is_only(f"waiting for an answer to HEAD {url}: at most [0-9]+ s more")


def test_a_wait_for_the_rest_of_an_answer() -> None:
    told = Told()

    def say(asked: Asked) -> Iterable[bytes]:
        yield answer(200, content_length="14")
        told.wait()
        yield b'{"tags":["1"]}'

    with RawServer(say) as server, Registries(Transport(IMPATIENT, tell=told)) as registries:
        assert repository(registries, server.address).tags() == ["1"]
        told.is_only(f"waiting for more data from {server.address}: at most [0-9]+ s more")


def test_a_wait_until_a_blob_is_stored(start_strict: Start) -> None:
    """With the time that its size gives the registry."""
    told = Told()
    server = start_strict()
    server.arm(Fault(Call(lambda request: told.wait(), after=True), "PUT", SESSION))
    network = Network(read_s=60, notice_after_s=0.05, store_bytes_per_s=len(DATA) / 1000)
    with Registries(Transport(network, tell=told)) as registries:
        upload(repository(registries, server.address), NEW, Bytes)
    told.is_only(f"waiting for {server.address} to store {NEW.digest}: at most 1,0[0-9][0-9] s more")


def test_a_wait_until_a_blob_is_stored_behind_a_proxy(start_strict: Start) -> None:
    told = Told()
    server = start_strict()
    server.arm(Fault(Reply(Answer(504)), "PUT", SESSION))
    with Registries(Transport(Network(), pace=FastPace(), tell=told)) as registries:
        upload(repository(registries, server.address), NEW, Bytes)
    told.is_only(f"waiting for {server.address} to store {NEW.digest}: at most [56][0-9] s")


def test_a_wait_until_a_peer_takes_more() -> None:
    told = Told()

    def take(stream: IO[bytes], length: int) -> bytes:
        told.wait()
        return stream.read(length)

    data = bytes(16 << 20)  # more than the systems of both sides hold
    body = Stretch(Bytes(data), 0, len(data), lambda count_bytes: None)
    transport = Transport(IMPATIENT, tell=told)
    with RawServer(lambda asked: answer(201), take=take, receive_bytes=1 << 16) as server:
        transport.send(Asking("PUT", f"http://{server.address}/", content=body)).drain()
        transport.close()
        assert re.fullmatch(f"waiting for {server.address} to accept more data: at most 2[0-9]+ s more", told.lines[0])


def test_quick_answers_are_not_told(start_strict: Start, layout: Layout) -> None:
    told = Told()
    server = start_strict()
    with Registries(Transport(Network(notice_after_s=30), tell=told)) as registries:
        upload(repository(registries, server.address), NEW, Bytes)
    assert told.lines == []


@pytest.mark.parametrize(("asked_s", "is_told"), [(1, False), (5, False), (7, True), (59, True)])
def test_a_host_that_is_busy(asked_s: int, is_told: bool) -> None:
    told = Told()
    answers = itertools.chain([answer(429, retry_after=str(asked_s))], itertools.repeat(answer(404)))
    with RawServer(lambda asked: next(answers)) as server:
        with Registries(Transport(Network(), pace=FastPace(), tell=told)) as registries:
            repository(registries, server.address).head_manifest("1")
        line = f"{server.address} is busy: waiting {asked_s} s before the next request"
    assert told.lines == ([line] if is_told else [])


def test_all_threads_that_wait_for_a_host_are_one_line() -> None:
    told = Told()
    pace = FastPace()
    with RawServer(lambda asked: answer(429, retry_after="40")) as server:
        sender = Transport(Network(retries=0), pace=pace, tell=told)
        url = f"http://{server.address}/"
        sender.send(Asking("GET", url)).drain()
        entered = threading.Barrier(3)

        def stand(seconds: float) -> None:  # the clock moves when all of them wait
            entered.wait(30)
            FastPace.wait(pace, seconds)

        pace.wait = stand  # type: ignore[method-assign]
        threads = [threading.Thread(target=lambda: sender.retries.wait(server.address)) for _ in range(3)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(30)
        sender.close()
    assert len(told.lines) == 1


@pytest.mark.parametrize(
    ("method", "path"), [("HEAD", "/manifests/"), ("POST", "/uploads/"), ("PUT", SESSION), ("PUT", "/manifests/")]
)
def test_more_than_our_patience_is_named(start_strict: Start, layout: Layout, method: str, path: str) -> None:
    """Nothing more is asked of the host then, by any thread, and nobody waits."""
    server = start_strict()
    layout.tag(image(layout), "image")
    server.arm(Fault(Reply(busy(429, "86400")), method, path, times=0))
    client = Client(server)
    with pytest.raises(UnavailableError) as caught:
        client.push(layout, "team/app:1")
    assert caught.value.code == "registry-busy"
    assert re.search("asks to wait 86,(400|39[0-9]) s", caught.value.message)
    assert client.pace.waits_s == []


def test_what_a_busy_host_asks_for_in_the_end() -> None:
    """It asks for little, but again and again."""
    transport = Transport(Network(retries=1), pace=FastPace())
    with RawServer(lambda asked: answer(503, retry_after="3")) as server, Registries(transport) as registries:
        one = repository(registries, server.address)
        with pytest.raises(UnavailableError) as caught:
            one.head_manifest("1")
    assert caught.value.message.endswith("is busy (503), and asks to wait 3 s")


# -- a disk that is full

GO = {"DriverName": "filesystem", "Enclosed": {"Op": "mkdir", "Path": "/var/lib/registry/docker", "Err": 28}}
FULL = {
    "docker-registry": error_answer(500, ("UNKNOWN", "unknown error", GO)),
    "detail": error_answer(500, ("UNKNOWN", "unknown error", "write /data/upload: no space left on device")),
    "message": error_answer(500, ("INTERNAL", "write /data/upload: no space left on device", None)),
    "quota": error_answer(503, ("UNKNOWN", "disk quota exceeded", None)),
    "text": Answer(500, (("Content-Type", "text/plain; charset=utf-8"),), b"write: no space left on device\n"),
    "507": Answer(507),
}
SAYS = {"quota": "disk quota exceeded", "507": "(507)"}


@pytest.mark.parametrize("kind", FULL)
@pytest.mark.parametrize(("method", "path"), [("POST", "/uploads/"), ("PUT", SESSION), ("PUT", "/manifests/")])
def test_a_full_disk_is_given_up_after_seconds(
    start_strict: Start, layout: Layout, kind: str, method: str, path: str
) -> None:
    """With what the registry says. No byte of a blob is sent twice."""
    server = start_strict()
    layout.tag(image(layout), "image")
    server.arm(Fault(Reply(FULL[kind]), method, path, times=0))
    client = Client(server)
    with pytest.raises(RegistryError) as caught:
        client.push(layout, "team/app:1")
    assert caught.value.code == "registry-full"
    assert SAYS.get(kind, "no space left on device") in caught.value.message
    assert sum(client.pace.waits_s) < 10
    sent = [one.parameter("digest") for one in server.requests if one.method == "PUT" and "/blobs/" in one.path]
    assert len(sent) == len(set(sent))

"""--retries N holds for every kind of request: the registry sees N + 1 of them, and no more, whatever is wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress

import pytest

from detlayer.errors import RegistryError, UnavailableError
from detlayer.oci.documents import parse_document
from detlayer.oci.references import RepositoryName
from detlayer.oci.types import Descriptor, digest_of
from detlayer.registry import Registries, Repository, Transport
from detlayer.registry.connections import Network
from detlayer.registry.credentials import Credentials
from detlayer.registry.download import RemoteBody, RemoteReader
from detlayer.registry.upload import upload
from tests.contracts.client import Client, FastPace
from tests.contracts.faults import BLOB, MANIFEST, SESSION, Act, Call, CutAnswer, CutRequest, Fault, LoseAnswer, Reply
from tests.contracts.http_records import Answer, error_answer
from tests.contracts.images import Layout, image
from tests.contracts.registry_behaviour import busy
from tests.contracts.strict import StrictRegistry
from tests.contracts.test_addresses import BLOB as NEW
from tests.contracts.test_addresses import Bytes
from tests.contracts.tokens import ALICE

Start = Callable[..., StrictRegistry]
OLD = b"a blob that is there"

BUSY = Reply(busy(503))
CUT_OFF = Reply(Answer(400, (("Content-Type", "text/plain; charset=utf-8"),), b"400 Bad Request", close=True))


def read_blob(repository: Repository) -> None:
    with closing(RemoteReader(repository, Descriptor("", digest_of(OLD), len(OLD)))) as one:
        while one.read(1 << 20):
            continue


def put_manifest(repository: Repository) -> None:
    data = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
    repository.put_manifest("1", parse_document(data, "x"))


def send(repository: Repository) -> None:
    upload(repository, NEW, Bytes)


# What is done; the method and path of the requests that fail; whether blobs are sent in chunks.
KINDS: dict[str, tuple[Callable[[Repository], object], str, str, bool]] = {
    "HEAD manifest": (lambda one: one.head_manifest("1"), "HEAD", MANIFEST, False),
    "GET manifest": (lambda one: one.get_manifest("1"), "GET", MANIFEST, False),
    "PUT manifest": (put_manifest, "PUT", MANIFEST, False),
    "HEAD blob": (lambda one: one.head_blob(digest_of(OLD)), "HEAD", BLOB, False),
    "GET blob": (read_blob, "GET", BLOB, False),
    "POST upload": (send, "POST", "/uploads/$", False),
    "PUT blob": (send, "PUT", SESSION, False),
    "PATCH chunk": (send, "PATCH", SESSION, True),
    "PUT closing": (send, "PUT", SESSION, True),
    "GET tags": (lambda one: one.tags(), "GET", "/tags/list", False),
    "GET referrers": (
        lambda one: list(one.pages(f"referrers/{digest_of(OLD)}", "a list")),
        "GET",
        "/referrers/",
        False,
    ),
}
WAYS: dict[str, Act] = {"busy": BUSY, "hung-up": LoseAnswer(), "cut-off-in-head": CUT_OFF}


def count(server: StrictRegistry, method: str, path: str) -> int:
    return sum(Fault(BUSY, method, path).hits(request) for request in server.requests)


@pytest.mark.parametrize("retries", [0, 1, 4, 7])
@pytest.mark.parametrize(
    ("kind", "way"),
    [(kind, way) for kind in KINDS for way in WAYS if (kind, way) != ("PUT closing", "hung-up")],  # no body to cut
)
def test_every_kind(start_strict: Start, kind: str, way: str, retries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    act, method, path, in_chunks = KINDS[kind]
    if in_chunks:
        monkeypatch.setattr("detlayer.registry.upload.CHUNKED_FROM_BYTES", 1)
    server = start_strict()
    server.put_blob("team/app", OLD)
    act_of_server: Act = WAYS[way]
    if way == "hung-up" and path == SESSION:  # what was carried out needs no repetition
        act_of_server = CutRequest(0)
    server.arm(Fault(act_of_server, method, path, times=0))
    with Client(server, retries=retries).registries() as (registries, _), suppress(RegistryError):
        act(registries.repository(RepositoryName(server.address, "team/app")))
    assert count(server, method, path) == retries + 1


@pytest.mark.parametrize("retries", [0, 1, 4])
@pytest.mark.parametrize(
    ("kind", "act"), [("GET manifest", CutAnswer(3)), ("GET tags", CutAnswer(3)), ("GET blob", CutAnswer(0))]
)
def test_answers_that_are_cut(start_strict: Start, kind: str, act: Act, retries: int) -> None:
    """The head of the answer arrives, and its body does not."""
    call, method, path, _ = KINDS[kind]
    server = start_strict()
    server.put_blob("team/app", OLD)
    server.put_manifest(
        "team/app", b'{"schemaVersion":2,"manifests":[]}', "application/vnd.oci.image.index.v1+json", "1"
    )
    server.arm(Fault(act, method, path, times=0))
    with Client(server, retries=retries).registries() as (registries, _), pytest.raises(UnavailableError):
        call(registries.repository(RepositoryName(server.address, "team/app")))
    assert count(server, method, path) == retries + 1


@pytest.mark.parametrize("retries", [0, 1, 4])
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("act", [BUSY, LoseAnswer(), CutAnswer(3)])
def test_tokens(start_strict: Start, method: str, act: Act, retries: int) -> None:
    server = start_strict(auth="bearer")
    assert server.tokens is not None
    server.tokens.server.arm(Fault(act, method, times=0))
    identity = ALICE.identity_token if method == "POST" else ""
    found = Credentials(ALICE.username, ALICE.password if not identity else "", identity)
    network = Network(retries=retries, read_s=30)
    with Registries(Transport(network, pace=FastPace()), lambda name: found) as registries:
        repository = registries.repository(RepositoryName(server.address, "team/app"))
        with pytest.raises(UnavailableError):
            repository.head_manifest("1")
    assert len(server.token_requests) == retries + 1


@pytest.mark.parametrize("retries", [0, 1, 4])
def test_a_source_that_breaks_off_is_not_asked_again_for_each_upload(start_strict: Start, retries: int) -> None:
    """From registry to registry: the target is not the cause, and sending again does not help."""
    source, target = start_strict(), start_strict()
    source.put_blob("team/app", OLD)
    source.arm(Fault(CutAnswer(0), "GET", BLOB, times=0))
    blob = Descriptor("", digest_of(OLD), len(OLD))
    with Client(target, retries=retries).registries() as (registries, _):
        origin = registries.repository(RepositoryName(source.address, "team/app"))
        here = registries.repository(RepositoryName(target.address, "team/app"))
        with pytest.raises(UnavailableError):
            upload(here, blob, lambda: RemoteBody(origin, blob))
    assert count(source, "GET", BLOB) == retries + 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_true_refusal_is_not_sent_again(start_strict: Start, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 400 of the registry itself has an error body."""
    act, method, path, in_chunks = KINDS[kind]
    if in_chunks:
        monkeypatch.setattr("detlayer.registry.upload.CHUNKED_FROM_BYTES", 1)
    server = start_strict()
    server.put_blob("team/app", OLD)
    server.arm(
        Fault(Reply(error_answer(400, ("NAME_INVALID", "invalid repository name", None))), method, path, times=0)
    )
    with Client(server).registries() as (registries, _), suppress(RegistryError):
        act(registries.repository(RepositoryName(server.address, "team/app")))
    assert count(server, method, path) == 1


def test_a_request_that_was_cut_off_in_its_head_is_sent_again(start_strict: Start, layout: Layout) -> None:
    server = start_strict()
    layout.tag(image(layout), "image")
    for method, path in (("HEAD", MANIFEST), ("POST", "/uploads/$"), ("PUT", SESSION), ("PUT", MANIFEST)):
        server.arm(Fault(CUT_OFF, method, path))
    report = Client(server, retries=1).push(layout, "team/app:1")
    assert [tag.state for tag in report.results[0].tags] == ["pushed"]


def test_a_flaky_link_is_no_reason_to_give_up_while_chunks_arrive(
    start_strict: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of retries is for one request, and not for all chunks of a blob."""
    monkeypatch.setattr("detlayer.registry.upload.CHUNKED_FROM_BYTES", 1)
    monkeypatch.setattr("detlayer.registry.upload._CHUNK_BYTES", 100)
    server = start_strict()
    for number in range(10):  # every chunk of 100 bytes needs two requests
        server.arm(Fault(CutRequest(0), "PATCH", SESSION, at=1 + 2 * number))
    with Client(server, retries=1).registries() as (registries, _):
        upload(registries.repository(RepositoryName(server.address, "team/app")), NEW, Bytes)
    assert count(server, "PATCH", SESSION) == 20


def test_chunks_that_are_sent_again_are_no_progress(start_strict: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry loses the session whenever it fails to store the blob: otherwise this would never end."""
    monkeypatch.setattr("detlayer.registry.upload.CHUNKED_FROM_BYTES", 1)
    server = start_strict()
    server.arm(
        Fault(Call(lambda request: server.end_uploads()), "PUT", SESSION, times=0),
        Fault(BUSY, "PUT", SESSION, times=0),
    )
    with Client(server, retries=2).registries() as (registries, _):
        repository = registries.repository(RepositoryName(server.address, "team/app"))
        with pytest.raises(UnavailableError):
            upload(repository, NEW, Bytes)
    assert count(server, "PUT", SESSION) == count(server, "PATCH", SESSION) == 3


def test_parallel_failures_are_one_failure_of_the_host(start_strict: Start, layout: Layout) -> None:
    """Five threads that fail at the same time wait no longer than one: a broken registry is given up after seconds."""
    server = start_strict()
    layout.tag(image(layout, [f"layer {number}" for number in range(8)]), "image")
    server.arm(Fault(Reply(error_answer(500, ("UNKNOWN", "unknown error", None))), "POST", times=0))
    client = Client(server)
    with pytest.raises(UnavailableError):
        client.push(layout, "team/app:1")
    assert max(client.pace.waits_s) <= 2

"""Manifests with a subject: put after it, and listed where the registry lacks the API, despite other writers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from detlayer.errors import DetlayerError, RegistryError
from detlayer.images.source import open_image
from detlayer.oci.references import RepositoryName, parse_reference
from detlayer.oci.types import parse_digest
from detlayer.registry import Network, Registries, Transport
from detlayer.transfer.push import push_image
from detlayer.transfer.remote import RemoteImage
from tests.contracts.assertions import assert_has, seed
from tests.contracts.client import Client, FastPace, find_referrers
from tests.contracts.faults import Call, Fault, Kill
from tests.contracts.http_records import Request
from tests.contracts.images import Descriptor, Layout, artifact, image
from tests.contracts.registry_behaviour import Rules
from tests.contracts.storage import INDEX, MANIFEST
from tests.contracts.strict import StrictRegistry

Start = Callable[..., StrictRegistry]
LISTS = r"/manifests/sha256-[0-9a-f]{64}\Z"
WITHOUT_API = Rules(referrers=False)


def list_tag(subject: Descriptor) -> str:
    return str(subject["digest"]).replace(":", "-")


def listed(server: StrictRegistry, subject: Descriptor, name: str = "team/app") -> list[dict[str, Any]]:
    """Return the entries under the tag that lists the referrers of a subject."""
    found = server.manifest(name, server.tags(name)[list_tag(subject)])
    assert found is not None
    assert found[0] == INDEX
    entries: list[dict[str, Any]] = json.loads(found[1])["manifests"]
    return entries


def put_list(server: StrictRegistry, subject: Descriptor, data: bytes, kind: str = INDEX) -> None:
    """Put another client's document under that tag."""
    server.put_manifest("team/app", data, kind, list_tag(subject))


def digests(entries: list[dict[str, Any]]) -> list[str]:
    return sorted(one["digest"] for one in entries)


def artifacts(layout: Layout, subject: Descriptor, count: int = 6, first: int = 0) -> list[Descriptor]:
    return [artifact(layout, subject, data=b"%d" % number) for number in range(first, first + count)]


def index(layout: Layout, *children: Descriptor) -> Descriptor:
    return layout.add_document({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(children)})


def list_requests(server: StrictRegistry, subject: Descriptor) -> list[str]:
    return [one.method for one in server.requests if one.path.endswith(list_tag(subject))]


# -- no entry is lost


def test_several_of_one_image_are_all_listed(start_strict: Start, layout: Layout) -> None:
    """Several workers put them at once; the list costs three requests, for any number of them."""
    server = start_strict(rules=Rules(referrers=False, tag_write_s=0.02))
    subject = image(layout)
    about = artifacts(layout, subject)
    layout.tag(index(layout, subject, *about), "image")
    Client(server).push(layout, "team/app:1")
    assert digests(listed(server, subject)) == digests(about)
    assert list_requests(server, subject) == ["GET", "PUT", "GET"]


def test_a_registry_that_lists_them_itself_is_asked_nothing(start_strict: Start, layout: Layout) -> None:
    server = start_strict()
    subject = image(layout)
    layout.tag(index(layout, subject, *artifacts(layout, subject)), "image")
    Client(server).push(layout, "team/app:1")
    assert list_requests(server, subject) == []
    assert [one for one in server.requests if "/referrers/" in one.path] == []


def test_pushes_at_the_same_time_lose_nobody(start_strict: Start, layout: Layout) -> None:
    """Each client reads the list before any has written it."""
    server = start_strict(rules=Rules(referrers=False, tag_write_s=0.3))
    subject = image(layout)
    seed(server, "team/app", layout, subject)
    about = artifacts(layout, subject, 3)
    for number, one in enumerate(about):
        layout.tag(one, str(number))
    all_have_read = threading.Barrier(3, timeout=30)

    def wait(request: Request) -> None:
        all_have_read.wait()

    server.arm(Fault(Call(wait), "PUT", LISTS, times=3))
    reports = []

    def run(number: int) -> None:
        # Not with a pace whose waits take no time: the other clients need real time.
        with Registries(Transport(Network())) as registries, open_image(f"oci:{layout.path}:{number}") as opened:
            reference = parse_reference(f"{server.address}/team/app:{number}")
            reports.append(push_image(opened, [reference], registries))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.first_error for report in reports] == [None] * 3
    assert digests(listed(server, subject)) == digests(about)


def test_a_registry_that_shows_old_tags_for_a_while(start_strict: Start, layout: Layout, tmp_path: Path) -> None:
    """Entries added by this run are kept, even if a later read of the list lacks them."""
    server = start_strict(rules=Rules(referrers=False, stale_reads=2))
    subject = image(layout)
    seed(server, "team/app", layout, subject)
    about = artifacts(layout, subject, 3)
    with Client(server).registries() as (registries, _):
        for number, one in enumerate(about):
            layout.tag(one, str(number))
            with open_image(f"oci:{layout.path}:{number}") as opened:
                push_image(opened, [parse_reference(f"{server.address}/team/app:{number}")], registries)
    assert digests(listed(server, subject)) == digests(about)


def test_what_others_wrote_stays_as_it_is(start_strict: Start, layout: Layout) -> None:
    server = start_strict(rules=WITHOUT_API)
    subject = image(layout)
    seed(server, "team/app", layout, subject)
    old, new = artifacts(layout, subject, 2)
    seed(server, "team/app", layout, old)
    entry = (
        f'{{"size":{old["size"]}, "digest":"{old["digest"]}","mediaType":"{old["mediaType"]}",'
        '"x":{"big":123456789012345678901234567890,"float":1.10},"annotations":{"a":"\\u00e9"}}'
    )
    foreign = '"annotations":{"kept":"yes"}, "x":[1.0,null]'
    put_list(server, subject, f'{{"schemaVersion":2,{foreign},"manifests":[{entry}]}}'.encode())
    layout.tag(new, "image")
    Client(server).push(layout, "team/app:1")
    assert digests(listed(server, subject)) == digests([old, new])
    found = server.manifest("team/app", server.tags("team/app")[list_tag(subject)])
    assert found is not None
    text = found[1].decode()
    assert entry in text
    assert '"annotations":{"kept":"yes"}' in text
    assert '"x":[1.0,null]' in text


@pytest.mark.parametrize("absent_status", [403, 404])
def test_a_registry_that_forbids_what_it_does_not_have(absent_status: int, start_strict: Start, layout: Layout) -> None:
    server = start_strict(rules=Rules(referrers=False, absent_status=absent_status))
    subject = image(layout)
    about = artifacts(layout, subject, 2)
    layout.tag(index(layout, subject, *about), "image")
    Client(server).push(layout, "team/app:1")
    assert digests(listed(server, subject)) == digests(about)


# -- lists that can't be written


HOSTILE = {
    "no-json": b"hello",
    "no-object": b"[]",
    "a-manifest": b'{"schemaVersion":2,"mediaType":"%b","config":{},"layers":[]}' % MANIFEST.encode(),
    "no-manifests": b'{"schemaVersion":2}',
    "manifests-that-are-none": b'{"schemaVersion":2,"manifests":{"digest":"x"}}',
    "entries-that-are-none": b'{"schemaVersion":2,"manifests":[7]}',
    "digest-that-is-none": b'{"schemaVersion":2,"manifests":[{"digest":7}]}',
    "deep": b'{"schemaVersion":2,"manifests":' + b"[" * 100_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_list_is_not_overwritten(name: str, start_strict: Start, layout: Layout) -> None:
    server = start_strict(rules=WITHOUT_API)
    subject = image(layout)
    seed(server, "team/app", layout, subject)
    put_list(server, subject, HOSTILE[name])
    before = server.tags("team/app")[list_tag(subject)]
    layout.tag(index(layout, *artifacts(layout, subject, 2)), "image")
    with pytest.raises(RegistryError) as caught:
        Client(server).push(layout, "team/app:1")
    assert caught.value.code == "referrers-invalid"
    assert caught.value.hint
    assert server.tags("team/app") == {list_tag(subject): before}


def test_a_list_that_the_registry_refuses(start_strict: Start, layout: Layout) -> None:
    """It names a manifest that was deleted."""
    server = start_strict(rules=WITHOUT_API)
    subject = image(layout)
    seed(server, "team/app", layout, subject)
    old, new = artifacts(layout, subject, 2)
    seed(server, "team/app", layout, old)
    put_list(server, subject, json.dumps({"schemaVersion": 2, "manifests": [old]}).encode())
    server.lose("team/app", old["digest"])
    layout.tag(new, "image")
    with pytest.raises(RegistryError) as caught:
        Client(server).push(layout, "team/app:1")
    assert caught.value.code == "referrers-refused"
    assert old["digest"] in caught.value.message or "MANIFEST_BLOB_UNKNOWN" in caught.value.message
    assert digests(listed(server, subject)) == [old["digest"]]


def test_a_list_that_keeps_nothing_ends_the_push(start_strict: Start, layout: Layout) -> None:
    server = start_strict(rules=WITHOUT_API)
    subject = image(layout)
    seed(server, "team/app", layout, subject)
    empty = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode()
    server.arm(Fault(Call(lambda request: put_list(server, subject, empty), after=True), "PUT", LISTS, times=0))
    layout.tag(index(layout, *artifacts(layout, subject, 1)), "image")
    client = Client(server)
    with pytest.raises(DetlayerError) as caught:
        client.push(layout, "team/app:1")
    assert caught.value.code == "referrers-lost"
    assert len(list_requests(server, subject)) < 30
    assert max(client.pace.waits_s) < 10
    assert "1" not in server.tags("team/app")


# -- pushing again repairs the list


@pytest.mark.parametrize("name", ["team/app:1", "team/app@DIGEST"])
def test_killed_before_the_list(name: str, start_strict: Start, layout: Layout, tmp_path: Path) -> None:
    server = start_strict(rules=WITHOUT_API)
    subject = image(layout)
    seed(server, "team/app", layout, subject)
    about = layout.tag(artifact(layout, subject), "image")
    client = Client(server, tmp_path / "cache", retries=0)
    name = name.replace("DIGEST", about["digest"])
    server.arm(Fault(Kill(), "PUT", LISTS))
    with pytest.raises(DetlayerError):
        client.push(layout, name)
    assert list_tag(subject) not in server.tags("team/app")
    server.revive()
    client.push(layout, name)
    assert digests(listed(server, subject)) == [about["digest"]]
    server.clear()
    client.push(layout, name)
    assert [one.method for one in server.requests] == ["HEAD", "GET", "GET"]


def test_a_push_that_puts_anything_confirms_the_list(start_strict: Start, layout: Layout, tmp_path: Path) -> None:
    """Including manifests that existed before."""
    server = start_strict(rules=WITHOUT_API)
    subject = image(layout)
    about = artifacts(layout, subject)
    layout.tag(index(layout, subject, *about), "image")
    client = Client(server, tmp_path / "cache")
    client.push(layout, "team/app:1")
    put_list(server, subject, json.dumps({"schemaVersion": 2, "manifests": about[:2]}).encode())
    client.push(layout, "team/app:2")
    assert digests(listed(server, subject)) == digests(about)


def test_a_check_completes_the_list(start_strict: Start, layout: Layout, tmp_path: Path) -> None:
    """Including images that the tag already names."""
    server = start_strict(rules=WITHOUT_API)
    subject = image(layout)
    about = artifacts(layout, subject)
    layout.tag(index(layout, subject, *about), "image")
    client = Client(server, tmp_path / "cache")
    client.push(layout, "team/app:1")
    put_list(server, subject, json.dumps({"schemaVersion": 2, "manifests": about[:2]}).encode())
    client.push(layout, "team/app:1", check=True)
    assert digests(listed(server, subject)) == digests(about)


def test_nothing_changed_is_one_request_if_the_image_has_no_subject(start_strict: Start, layout: Layout) -> None:
    server = start_strict(rules=WITHOUT_API)
    subject = image(layout)
    layout.tag(index(layout, subject, *artifacts(layout, subject)), "image")
    Client(server).push(layout, "team/app:1")
    server.clear()
    Client(server).push(layout, "team/app:1")
    assert [one.method for one in server.requests] == ["HEAD"]


def test_referrers_are_read_page_by_page(start_strict: Start, layout: Layout) -> None:
    server = start_strict(rules=Rules(page_entries=2))
    subject = image(layout)
    about = artifacts(layout, subject, 5)
    for one in about:
        seed(server, "team/app", layout, one)
    with Client(server).registries() as (registries, _):
        repository = registries.repository(RepositoryName(server.address, "team/app"))
        found = find_referrers(repository, parse_digest(subject["digest"]))
    assert sorted(str(one.digest) for one in found) == digests(about)


# -- subjects first


@pytest.fixture(params=["named", "unnamed"])
def picky(request: pytest.FixtureRequest, start_strict: Start) -> StrictRegistry:
    """A registry that requires the subject first."""
    return start_strict(rules=Rules(wants_subject=request.param))


def refused(server: StrictRegistry) -> list[str]:
    return [str(one) for one in server.requests if one.method == "PUT" and one.status >= 400]


def test_a_manifest_is_put_after_its_subject(picky: StrictRegistry, layout: Layout) -> None:
    """Wherever the index lists them: for example the signature of an image's SBOM."""
    subject = image(layout)
    about = artifacts(layout, subject)
    signatures = [artifact(layout, one, data=b"signature") for one in about]
    made = layout.tag(index(layout, *signatures, *about, subject), "image")
    Client(picky).push(layout, "team/app:1")
    assert refused(picky) == []
    assert_has(picky, "team/app", "1", layout, made)


def test_a_subject_that_the_registry_lost_is_put_again(picky: StrictRegistry, layout: Layout, tmp_path: Path) -> None:
    subject = image(layout)
    about = artifacts(layout, subject, 2)
    layout.tag(index(layout, subject), "first")
    made = layout.tag(index(layout, subject, *about), "image")
    client = Client(picky, tmp_path / "cache")
    client.push(f"oci:{layout.path}:first", "team/app:1")
    for digest in layout.blobs_of(subject):
        picky.lose("team/app", digest)
    client.push(f"oci:{layout.path}:image", "team/app:2")
    assert_has(picky, "team/app", "2", layout, made)


def test_a_subject_beside_the_image_is_brought(picky: StrictRegistry, layout: Layout) -> None:
    """With its blobs, and its own subject."""
    subject = image(layout)
    bom = artifact(layout, subject)
    signature = layout.tag(artifact(layout, bom, data=b"signature"), "image")
    Client(picky).push(f"oci:{layout.path}:image", "team/app:1")
    assert_has(picky, "team/app", "1", layout, signature)
    for one in (subject, bom):
        for digest, data in layout.blobs_of(one).items():
            stored = picky.blob("team/app", digest) or (picky.manifest("team/app", digest) or ("", b""))[1]
            assert stored == data


@contextmanager
def remote(server: StrictRegistry, name: str, tag: str) -> Iterator[tuple[RemoteImage, Registries]]:
    with Registries(Transport(Network(retries=1, read_s=30), pace=FastPace())) as registries:
        repository = registries.repository(RepositoryName(server.address, name))
        yield RemoteImage(repository, repository.get_manifest(tag)), registries


def test_a_subject_in_another_repository_is_mounted(picky: StrictRegistry, layout: Layout) -> None:
    subject = image(layout)
    seed(picky, "team/from", layout, subject)
    about = artifact(layout, subject)
    seed(picky, "team/from", layout, about, "1")
    with remote(picky, "team/from", "1") as (opened, registries):
        report = push_image(opened, [parse_reference(f"{picky.address}/team/app:1")], registries)
    assert report.first_error is None
    assert_has(picky, "team/app", "1", layout, about)
    assert picky.manifest("team/app", subject["digest"]) is not None
    assert [one for one in picky.requests if "/blobs/uploads/" in one.path and one.body_bytes] == []


def test_other_refusals_bring_no_subject(start_strict: Start, layout: Layout) -> None:
    server = start_strict(rules=Rules(immutable_tags=True))
    layout.tag(image(layout), "other")
    subject = image(layout, ["subject"])
    layout.tag(artifact(layout, subject), "image")
    client = Client(server)
    client.push(f"oci:{layout.path}:other", "team/app:1")
    with pytest.raises(RegistryError) as caught:
        client.push(f"oci:{layout.path}:image", "team/app:1")
    assert caught.value.code == "tag-immutable"
    assert server.manifest("team/app", subject["digest"]) is None


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_subject_that_is_nowhere(is_remote: bool, picky: StrictRegistry, layout: Layout) -> None:
    subject = image(layout)
    about = layout.tag(artifact(layout, subject), "image")
    layout.blob_path(subject["digest"]).unlink()
    if is_remote:
        seed(picky, "team/from", layout, about, "1")
        with remote(picky, "team/from", "1") as (opened, registries):
            error = push_image(opened, [parse_reference(f"{picky.address}/team/app:1")], registries).first_error
    else:
        error = Client(picky).try_push(layout, "team/app:1").first_error
    assert error is not None
    named = picky.rules.wants_subject == "named"
    assert error.code == ("subject-missing" if named else "registry-refused")
    assert subject["digest"] in error.message
    assert error.hint == "push the subject first"
    assert picky.tags("team/app") == {}


def test_subjects_without_end(picky: StrictRegistry, layout: Layout) -> None:
    one = image(layout)
    for number in range(60):
        one = artifact(layout, one, data=b"%d" % number)
    layout.tag(one, "image")
    with pytest.raises(DetlayerError) as caught:
        Client(picky).push(layout, "team/app:1")
    assert "nested subjects" in caught.value.message
    assert len(picky.requests) < 300

"""The strict registry itself: accepted requests, refusals, violations, and variations."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from tests.contracts import images
from tests.contracts.assertions import seed
from tests.contracts.faults import SESSION, CutRequest, Fault, LoseAnswer
from tests.contracts.fixtures import StartStrict
from tests.contracts.images import Layout
from tests.contracts.plain_client import ACCEPT, OCTETS, begin, client, client_at, push_blob, with_digest
from tests.contracts.registry_behaviour import PULL_TRAPS, PUSH_TRAPS, Rules, Trap
from tests.contracts.storage import INDEX, MANIFEST, sha256
from tests.contracts.strict import StrictRegistry

DATA = b"0123456789" * 10
DIGEST = sha256(DATA)
EMPTY = sha256(b"{}")


def chunk(start: int, end: int) -> dict[str, str]:
    return {**OCTETS, "Content-Range": f"{start}-{end - 1}"}


def manifest(**more: object) -> bytes:
    config = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": EMPTY, "size": 2}
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [], **more}).encode()


def put(http: httpx.Client, data: bytes, target: str = "t", kind: str = MANIFEST) -> httpx.Response:
    return http.put(f"/v2/a/manifests/{target}", content=data, headers={"Content-Type": kind})


# -- violations and their names


def patched(http: httpx.Client, headers: dict[str, str], *, start: bool = True) -> httpx.Response:
    location = begin(http, "a")
    if start:
        location = http.patch(location, content=DATA, headers=chunk(0, 100)).headers["Location"]
    return http.patch(location, content=DATA, headers=headers)


def stale(http: httpx.Client) -> httpx.Response:
    location = begin(http, "a")
    http.patch(location, content=DATA, headers=chunk(0, 100))
    return http.patch(location, content=DATA, headers=chunk(100, 200))


def used_twice(http: httpx.Client) -> httpx.Response:
    location = with_digest(begin(http, "a"), DIGEST)
    http.put(location, content=DATA, headers=OCTETS)
    return http.put(location, content=DATA, headers=OCTETS)


def stateless(http: httpx.Client) -> httpx.Response:
    location = begin(http, "a").partition("?")[0]
    return http.put(with_digest(location, DIGEST), content=DATA, headers=OCTETS)


def no_length(http: httpx.Client) -> httpx.Response:
    return http.put(with_digest(begin(http, "a"), DIGEST), content=iter((DATA,)), headers=OCTETS)


def body_of(request: str, data: bytes = b"") -> Callable[[httpx.Client], httpx.Response]:
    method, _, path = request.partition(" ")
    return lambda http: http.request(method, path, content=data)


VIOLATIONS: dict[str, tuple[str, int, Callable[[httpx.Client], httpx.Response]]] = {
    "other bytes": ("digest", 400, lambda http: push_blob(http, "a", DATA + b"x", DIGEST)),
    "bad digest": ("digest", 400, lambda http: push_blob(http, "a", DATA, "sha256:123")),
    "no digest": ("digest", 400, lambda http: http.put(begin(http, "a"), content=DATA, headers=OCTETS)),
    "no length": ("content-length", 411, no_length),
    "no type": ("content-type", 400, lambda http: http.put(with_digest(begin(http, "a"), DIGEST), content=DATA)),
    "no state": ("location-query", 400, stateless),
    "stale location": ("location-stale", 404, stale),
    "used twice": ("session-unknown", 404, used_twice),
    "unknown session": ("session-unknown", 404, body_of("PATCH /v2/a/blobs/uploads/nix")),
    "no range": ("content-range", 400, lambda http: patched(http, OCTETS)),
    "range with a unit": ("content-range", 400, lambda http: patched(http, {**OCTETS, "Content-Range": "bytes=0-99"})),
    "range too early": ("content-range", 416, lambda http: patched(http, chunk(0, 100))),
    "range too late": ("content-range", 416, lambda http: patched(http, chunk(1, 101), start=False)),
    "range too long": ("content-range", 416, lambda http: patched(http, chunk(100, 201))),
    "mount without from": ("mount-from", 400, body_of(f"POST /v2/a/blobs/uploads/?mount={DIGEST}")),
    "mount from no name": ("name", 400, body_of(f"POST /v2/a/blobs/uploads/?mount={DIGEST}&from=B")),
    "body without digest": ("post-body", 400, body_of("POST /v2/a/blobs/uploads/", DATA)),
    "no slash": ("method", 405, body_of("POST /v2/a/blobs/uploads")),
    "no name": ("name", 400, body_of("GET /v2/A/tags/list")),
    "catalogue": ("path", 404, body_of("GET /v2/_catalog")),
    "post of a manifest": ("method", 405, body_of("POST /v2/a/manifests/t")),
    "body of a get": ("body", 400, body_of("GET /v2/a/tags/list", b"x")),
    "cookie": ("cookie", 400, lambda http: http.get("/v2/", headers={"Cookie": "session=strict"})),
    "credentials": ("authorization", 400, lambda http: http.get("/v2/", auth=("alice", "x"))),
    "other host": ("host", 400, lambda http: http.get("/v2/", headers={"Host": "example.com"})),
    "range of bits": ("range", 400, lambda http: http.get(f"/v2/a/blobs/{EMPTY}", headers={"Range": "bits=0-"})),
    "no tag": ("target", 400, lambda http: put(http, manifest(), target="-t")),
    "other digest": ("digest", 400, lambda http: put(http, manifest(), target=DIGEST)),
    "other type": ("content-type", 400, lambda http: put(http, manifest(), kind=INDEX)),
    "no media type": ("content-type", 415, lambda http: put(http, manifest(), kind="application/json")),
    "no json": ("manifest", 400, lambda http: put(http, b"{")),
    "no schema": ("manifest", 400, lambda http: put(http, manifest(schemaVersion=1))),
    "no layers": ("manifest", 400, lambda http: put(http, manifest().replace(b'"layers": []', b'"x": []'))),
    "two kinds": ("manifest", 400, lambda http: put(http, manifest(manifests=[]))),
    "bad subject": ("manifest", 400, lambda http: put(http, manifest(subject={"digest": DIGEST, "size": 1}))),
    "too early": (
        "manifest-early",
        400,
        lambda http: put(http, manifest(layers=[{"mediaType": "x/y", "digest": DIGEST, "size": 100}])),
    ),
    "other size": (
        "size",
        400,
        lambda http: put(http, manifest(layers=[{"mediaType": "x/y", "digest": EMPTY, "size": 3}])),
    ),
    "too large": ("manifest-size", 413, lambda http: put(http, b" " * ((4 << 20) + 1))),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_what_breaks_the_spec_is_blamed(name: str) -> None:
    code, status, act = VIOLATIONS[name]
    with StrictRegistry() as strict:
        strict.put_blob("a", b"{}")
        with client(strict) as http:
            response = act(http)
        assert response.status_code == status
        assert [one.code for one in strict.violations] == [code]
        assert response.json()["errors"][0]["code"]
        assert strict.tags("a") == {}
        strict.clear()
        assert strict.violations == []


# -- valid requests


def test_a_push_by_hand(start_strict: StartStrict) -> None:
    strict = start_strict()
    with client(strict) as http:
        assert http.get("/v2/").json() == {}
        assert push_blob(http, "a", b"{}", EMPTY).status_code == 201
        assert push_blob(http, "a", DATA, DIGEST).headers["Docker-Content-Digest"] == DIGEST
        response = put(http, manifest(layers=[{"mediaType": "x/y", "digest": DIGEST, "size": 100}]))
        assert response.status_code == 201
        digest = response.headers["Docker-Content-Digest"]
        for target in ("t", digest):
            head = http.head(f"/v2/a/manifests/{target}", headers=ACCEPT)
            got = http.get(f"/v2/a/manifests/{target}", headers=ACCEPT)
            assert sha256(got.content) == head.headers["Docker-Content-Digest"] == digest
            assert int(head.headers["Content-Length"]) == len(got.content)
            assert http.head(f"/v2/a/manifests/{target}", headers={"Accept": "*/*"}).status_code == 404
        assert http.get("/v2/a/tags/list").json() == {"name": "a", "tags": ["t"]}
        assert http.delete(f"/v2/a/manifests/{digest}").status_code == 202
        assert http.delete(f"/v2/a/blobs/{DIGEST}").status_code == 202
    assert strict.tags("a") == {}


def test_chunks(start_strict: StartStrict) -> None:
    strict = start_strict(rules=Rules(chunk_min_bytes=40))
    with client(strict) as http:
        response = http.post("/v2/a/blobs/uploads/")
        assert response.headers["OCI-Chunk-Min-Length"] == "40"
        assert response.headers["Range"] == "0-0"
        response = http.patch(response.headers["Location"], content=DATA[:40], headers=chunk(0, 40))
        assert response.headers["Range"] == "0-39"
        response = http.get(response.headers["Location"])
        assert (response.status_code, response.headers["Range"]) == (204, "0-39")
        response = http.patch(response.headers["Location"], content=DATA[40:90], headers=chunk(40, 90))
        end = with_digest(response.headers["Location"], DIGEST)
        assert http.put(end, content=DATA[90:], headers=chunk(90, 100)).status_code == 201
    assert strict.blob("a", DIGEST) == DATA


def test_a_chunk_below_the_minimum_is_blamed_when_another_follows() -> None:
    with StrictRegistry(rules=Rules(chunk_min_bytes=40)) as strict, client(strict) as http:
        response = http.patch(begin(http, "a"), content=DATA[:39], headers=chunk(0, 39))
        response = http.patch(response.headers["Location"], content=DATA[39:], headers=chunk(39, 100))
        assert response.status_code == 400
        assert [one.code for one in strict.violations] == ["chunk-minimum"]


def test_too_large_for_one_put(start_strict: StartStrict) -> None:
    """The response is sent before the body is read, and is not lost."""
    strict = start_strict(PUSH_TRAPS["chunk-maximum"])
    data = bytes(8 << 20)
    with client(strict) as http:
        location = begin(http, "a")
        response = http.put(with_digest(location, sha256(data)), content=data, headers=OCTETS)
        assert response.status_code == 413
        assert http.patch(location, content=data, headers=chunk(0, len(data))).status_code == 413
        response = http.patch(location, content=data[:65536], headers=chunk(0, 65536))
        end = with_digest(response.headers["Location"], sha256(data[:65536]))
        assert http.put(end).status_code == 201


@pytest.mark.parametrize("after_bytes", [0, 10, 99])
def test_an_upload_that_was_cut_goes_on(start_strict: StartStrict, after_bytes: int) -> None:
    strict = start_strict()
    strict.arm(Fault(CutRequest(after_bytes), "PATCH", SESSION))
    with client(strict) as http:
        location = begin(http, "a")
        with pytest.raises(httpx.TransportError):
            http.patch(location, content=DATA, headers=chunk(0, 100))
        response = http.get(location)
        assert response.headers["Range"] == f"0-{max(after_bytes - 1, 0)}"
        location = response.headers["Location"]
        location = http.patch(location, content=DATA[after_bytes:], headers=chunk(after_bytes, 100)).headers["Location"]
        assert http.put(with_digest(location, DIGEST)).status_code == 201


def test_docker_registry_has_lost_an_upload_that_was_cut(start_strict: StartStrict) -> None:
    strict = start_strict(PUSH_TRAPS["cut-upload-is-lost"])
    with client(strict) as http:
        location = begin(http, "a")
        with pytest.raises(httpx.TransportError):
            http.patch(location, content=DATA * 2, headers=chunk(0, 200))
        assert http.get(location).status_code == 404


def test_what_a_lost_answer_hides_is_excused(start_strict: StartStrict) -> None:
    strict = start_strict()
    strict.arm(Fault(LoseAnswer(), "PUT", SESSION))
    with client(strict) as http:
        location = with_digest(begin(http, "a"), DIGEST)
        with pytest.raises(httpx.TransportError):
            http.put(location, content=DATA, headers=OCTETS)
        assert http.put(location, content=DATA, headers=OCTETS).status_code == 404
        assert http.head(f"/v2/a/blobs/{DIGEST}").status_code == 200


def test_ranges(start_strict: StartStrict) -> None:
    strict = start_strict()
    strict.put_blob("a", DATA)
    with client(strict) as http:
        url = f"/v2/a/blobs/{DIGEST}"
        for asked, stated in (("10-19", "10-19/100"), ("90-", "90-99/100"), ("95-200", "95-99/100")):
            response = http.get(url, headers={"Range": f"bytes={asked}"})
            assert (response.status_code, response.headers["Content-Range"]) == (206, f"bytes {stated}")
            start, end = map(int, stated.partition("/")[0].split("-"))
            assert response.content == DATA[start : end + 1]
        assert http.get(url, headers={"Range": "bytes=100-"}).status_code == 416
        assert http.head(url).headers["Content-Length"] == "100"


def test_tags_and_referrers_come_in_pages(start_strict: StartStrict, layout: Layout) -> None:
    strict = start_strict(rules=Rules(page_entries=2))
    image = images.image(layout)
    seed(strict, "a", layout, image, "a", "b", "c", "d", "e")
    about = [images.artifact(layout, image, data=b"%d" % at, annotations={"at": str(at)}) for at in range(3)]
    other = images.artifact(layout, image, artifact_type="application/vnd.other")
    for one in (*about, other):
        seed(strict, "a", layout, one)
    with client(strict) as http:
        pages = follow(http, "/v2/a/tags/list?n=3")
        assert [page.json()["tags"] for page in pages] == [["a", "b"], ["c", "d"], ["e"]]
        pages = follow(http, f"/v2/a/referrers/{image['digest']}")
        found = [one for page in pages for one in page.json()["manifests"]]
        assert {one["digest"] for one in found} == {one["digest"] for one in (*about, other)}
        assert sorted(one["annotations"]["at"] for one in found if "annotations" in one) == ["0", "1", "2"]
        url = f"/v2/a/referrers/{image['digest']}?artifactType=application/vnd.other"
        response = http.get(url)
        assert response.headers["OCI-Filters-Applied"] == "artifactType"
        assert [one["digest"] for one in response.json()["manifests"]] == [other["digest"]]
        assert http.get(f"/v2/a/referrers/{DIGEST}").json()["manifests"] == []


def follow(http: httpx.Client, url: str) -> list[httpx.Response]:
    pages = [http.get(url)]
    while "Link" in pages[-1].headers:
        pages.append(http.get(pages[-1].links["next"]["url"]))
    assert {page.status_code for page in pages} == {200}
    return pages


@pytest.mark.parametrize("referrers", [True, False])
def test_a_subject_is_acknowledged_by_those_who_list_referrers(
    start_strict: StartStrict, layout: Layout, referrers: bool
) -> None:
    strict = start_strict(rules=Rules(referrers=referrers))
    artifact = images.artifact(layout, images.image(layout))
    seed(strict, "a", layout, artifact)
    with client(strict) as http:
        response = put(http, layout.read(artifact["digest"]))
        subject = json.loads(layout.read(artifact["digest"]))["subject"]["digest"]
        assert response.headers.get("OCI-Subject") == (subject if referrers else None)
        assert http.get(f"/v2/a/referrers/{subject}").status_code == (200 if referrers else 404)


def test_foreign_layers_need_not_be_there(start_strict: StartStrict, layout: Layout) -> None:
    strict = start_strict()
    for docker in (False, True):
        image = images.image(layout, foreign_seed="far", docker=docker)
        seed(strict, "a", layout, image)
        with client(strict) as http:
            assert put(http, layout.read(image["digest"]), kind=image["mediaType"]).status_code == 201


# -- where registries differ


def locations(http: httpx.Client) -> tuple[str, int]:
    location = begin(http, "a")
    return location, http.put(with_digest(location, DIGEST), content=DATA, headers=OCTETS).status_code


def test_locations(start_strict: StartStrict) -> None:
    for rules, beginning in (
        (Rules(location="absolute"), "http://127.0.0.1"),
        (Rules(location="relative"), "/v2/"),
        (Rules(location="elsewhere"), "http://localhost"),
    ):
        strict = start_strict(rules=rules)
        with client(strict) as http:
            location, status = locations(http)
        assert (location.startswith(beginning), status) == (True, 201)
        assert strict.blob("a", DIGEST) == DATA


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_location_of_plain_http_behind_tls_does_not_answer(method: str) -> None:
    with StrictRegistry(PUSH_TRAPS["location-http"]) as strict:
        with client(strict) as http:
            location = begin(http, "a")
            assert location.startswith("http://")
            with pytest.raises(httpx.TransportError):
                http.request(method, with_digest(location, DIGEST), content=DATA, headers=OCTETS)
        assert [one.code for one in strict.violations] == ["plain-http"]


def test_blobs_elsewhere(start_strict: StartStrict) -> None:
    strict = start_strict(rules=Rules(blobs="elsewhere"))
    strict.put_blob("a", DATA)
    with client(strict) as http:
        response = http.get(f"/v2/a/blobs/{DIGEST}")
        assert response.status_code == 307
        assert response.headers["Location"].startswith("http://localhost")
        assert http.get(response.headers["Location"]).content == DATA
        assert http.get(response.headers["Location"], headers={"Range": "bytes=90-"}).content == DATA[90:]
        assert http.head(f"/v2/a/blobs/{DIGEST}").status_code == 200
    assert len(strict.requests) == 2


def test_credentials_elsewhere_are_blamed() -> None:
    with StrictRegistry(rules=Rules(blobs="elsewhere")) as strict:
        strict.put_blob("a", DATA)
        with client(strict) as http:
            url = http.get(f"/v2/a/blobs/{DIGEST}").headers["Location"]
        with client_at(url, token="stolen") as http:
            assert http.get(url).status_code == 400
        assert [one.code for one in strict.violations] == ["leaked-authorization"]


def test_refusals(start_strict: StartStrict) -> None:
    for rules, method, path, status, code in (
        (Rules(read_only=True), "POST", "/v2/a/blobs/uploads/", 405, "UNSUPPORTED"),
        (Rules(creates_repositories=False), "POST", "/v2/b/blobs/uploads/", 404, "NAME_UNKNOWN"),
        (Rules(absent_status=403), "GET", "/v2/a/manifests/t", 403, "MANIFEST_UNKNOWN"),
        (Rules(deletes=False), "DELETE", f"/v2/a/blobs/{EMPTY}", 405, "UNSUPPORTED"),
        (Rules(), "GET", "/v2/b/tags/list", 404, "NAME_UNKNOWN"),
    ):
        strict = start_strict(rules=rules)
        strict.put_blob("a", b"{}")
        with client(strict) as http:
            response = http.request(method, path)
        assert (response.status_code, response.json()["errors"][0]["code"]) == (status, code)


def test_head_refused_digest_wrong_tag_immutable(start_strict: StartStrict) -> None:
    strict = start_strict(rules=Rules(head_status=405, digest_header="wrong", immutable_tags=True))
    strict.put_blob("a", b"{}")
    with client(strict) as http:
        assert put(http, manifest()).headers["Docker-Content-Digest"] != sha256(manifest())
        assert http.head("/v2/a/manifests/t", headers=ACCEPT).status_code == 405
        assert http.get("/v2/a/manifests/t", headers=ACCEPT).status_code == 200
        response = put(http, manifest())
        assert (response.status_code, response.json()["errors"][0]["code"]) == (400, "TAG_INVALID")


def test_single_post(start_strict: StartStrict) -> None:
    for allowed, status in ((True, 201), (False, 202)):
        strict = start_strict(rules=Rules(single_post=allowed))
        with client(strict) as http:
            response = http.post(f"/v2/a/blobs/uploads/?digest={DIGEST}", content=DATA, headers=OCTETS)
        assert response.status_code == status
        assert (strict.blob("a", DIGEST) is not None) == allowed


def test_traps_add_up(start_strict: StartStrict) -> None:
    trap = sum((PUSH_TRAPS["location-relative"], PUSH_TRAPS["mount-refused"], PUSH_TRAPS["busy-in-upload"]), Trap())
    strict = start_strict(trap)
    digest = strict.put_blob("b", DATA)
    with client(strict) as http:
        location = begin(http, "a", f"?mount={digest}&from=b")
        assert location.startswith("/v2/")
        end = with_digest(location, DIGEST)
        response = http.put(end, content=DATA, headers=OCTETS)
        assert (response.status_code, response.headers["Retry-After"]) == (429, "0")
        assert http.put(end, content=DATA, headers=OCTETS).status_code == 201


@pytest.mark.parametrize("name", [*PUSH_TRAPS, *PULL_TRAPS])
def test_every_trap_can_be_set(name: str) -> None:
    for traps in (PUSH_TRAPS, PULL_TRAPS):
        if trap := traps.get(name):
            with StrictRegistry(trap) as strict:
                assert (strict.tokens is not None) == trap.bearer
                assert (strict.ca_file is not None) == trap.tls

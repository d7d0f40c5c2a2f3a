"""All servers of the suite accept and serve images of real tools, and expose their storage for assertions."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.contracts import images
from tests.contracts.assertions import (
    assert_has,
    broken_tags,
    downloaded,
    holes,
    leaks,
    mounted,
    present,
    seed,
    uploaded,
    uploaded_bytes,
    without_auth,
)
from tests.contracts.faults import BLOB, MANIFEST, SESSION, CutAnswer, CutRequest, Fault, LoseAnswer, kill_at
from tests.contracts.fixtures import StartReal, StartStrict
from tests.contracts.images import Layout
from tests.contracts.plain_client import ACCEPT, begin, client, push_blob, with_digest
from tests.contracts.servers import Server
from tests.contracts.storage import MANIFEST as MANIFEST_TYPE
from tests.contracts.storage import sha256
from tests.privileges import program


def skopeo(server: Server, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    """Run `skopeo copy` with the credentials for both sides."""
    options = []
    for side in ("src", "dest"):
        options.append(f"--{side}-tls-verify=false")
        if server.account:
            options += [f"--{side}-creds", f"{server.account.username}:{server.account.password}"]
    command = [program("skopeo"), "copy", "--all", "--preserve-digests", *options, *arguments]
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    assert not check or done.returncode == 0, done.stderr.decode()
    return done


def make(layout: Layout, kind: str) -> images.Descriptor:
    match kind:
        case "image":
            return images.image(layout)
        case "index":
            return images.platforms(layout, 2, 3)
        case "zstd":
            return images.image(layout, compression="zstd")
        case "plain":
            return images.image(layout, compression="none")
    raise AssertionError(kind)


def test_skopeo_pushes_and_pulls(server: Server, layout: Layout, tmp_path: Path) -> None:
    image = layout.tag(images.platforms(layout, 2, 3), "it")
    skopeo(server, f"oci:{layout.path}:it", f"docker://{server.address}/team/app:v1")
    assert_has(server, "team/app", "v1", layout, image)
    assert broken_tags(server) == {}
    assert server.repositories() == ["team/app"]
    blobs = layout.blobs_of(image).keys() - {one["digest"] for one in layout.documents_of(image)}
    assert uploaded(server.requests) == dict.fromkeys(blobs, 1)
    assert uploaded_bytes(server.requests) == sum(len(layout.read(digest)) for digest in blobs)
    back = Layout(tmp_path / "back")
    skopeo(server, f"docker://{server.address}/team/app:v1", f"oci:{back.path}:it")
    assert back.blobs_of(image) == layout.blobs_of(image)
    assert downloaded(server.requests) == dict.fromkeys(blobs, 1)
    said = "".join(value for one in server.requests for name, value in one.headers if name == "authorization")
    assert bool(said) == (server.account is not None) == bool(leaks(server, said))


@pytest.mark.parametrize("kind", ["image", "index", "zstd", "plain"])
def test_kinds_of_images(open_server: Server, layout: Layout, kind: str) -> None:
    image = layout.tag(make(layout, kind), "it")
    skopeo(open_server, f"oci:{layout.path}:it", f"docker://{open_server.address}/a/b/c:t")
    assert_has(open_server, "a/b/c", "t", layout, image)


def test_docker_types_travel(open_server: Server, layout: Layout, tmp_path: Path) -> None:
    image = images.platforms(layout, 2, 2, docker=True)
    seed(open_server, "a", layout, image, "t")
    skopeo(open_server, f"docker://{open_server.address}/a:t", f"dir:{tmp_path / 'dir'}")
    skopeo(open_server, f"dir:{tmp_path / 'dir'}", f"docker://{open_server.address}/b:t")
    assert_has(open_server, "b", "t", layout, image)


@pytest.mark.parametrize("kind", ["image", "index", "zstd"])
def test_what_was_seeded_is_pulled(server: Server, layout: Layout, tmp_path: Path, kind: str) -> None:
    image = make(layout, kind)
    assert seed(server, "lib/base", layout, image, "old", "new") == image["digest"]
    assert server.tags("lib/base") == {"old": image["digest"], "new": image["digest"]}
    back = Layout(tmp_path / "back")
    skopeo(server, f"docker://{server.address}/lib/base:new", f"oci:{back.path}:it")
    assert back.blobs_of(image) == layout.blobs_of(image)


def test_wrong_password(server: Server, layout: Layout) -> None:
    if server.account is None:
        return
    layout.tag(images.image(layout), "it")
    wrong = f"{server.account.username}:wrong"
    copy = [program("skopeo"), "copy", "--dest-tls-verify=false", "--dest-creds", wrong]
    done = subprocess.run(
        [*copy, f"oci:{layout.path}:it", f"docker://{server.address}/a:t"], capture_output=True, check=False
    )
    assert done.returncode
    assert without_auth(server.requests) == []


def test_every_blob_that_is_lost_is_a_hole(server: Server, layout: Layout) -> None:
    image = images.platforms(layout, 2, 2)
    documents = [one["digest"] for one in layout.documents_of(image)]
    for digest in layout.blobs_of(image).keys() - {image["digest"]}:
        seed(server, "a", layout, image, "t")
        assert broken_tags(server) == {}
        server.lose("a", digest)
        assert broken_tags(server) == {"a:t": [digest]}
        assert present(server, "a", [digest]) == set()
        assert (server.manifest("a", digest) is None) or digest not in documents
    server.lose("a", image["digest"])
    assert server.tags("a") == {}
    assert holes(server, "a", image["digest"]) == [image["digest"]]


def test_unknown_blobs_are_all_named(open_server: Server, layout: Layout) -> None:
    """The storage after a planner inferred too much."""
    image = images.image(layout, ["one", "two", "three"])
    seed(open_server, "a", layout, image)
    lost = [one["digest"] for one in json.loads(layout.read(image["digest"]))["layers"][1:]]
    for digest in lost:
        open_server.lose("a", digest)
    with client(open_server) as http:
        content, headers = layout.read(image["digest"]), {"Content-Type": image["mediaType"]}
        response = http.put("/v2/a/manifests/t", content=content, headers=headers)
    assert response.status_code == 400
    errors = response.json()["errors"]
    assert {one["code"] for one in errors} == {"MANIFEST_BLOB_UNKNOWN"}
    assert sorted(one["detail"] for one in errors) == sorted(lost)
    assert open_server.tags("a") == {}


def test_a_mount_is_no_upload(open_server: Server) -> None:
    digest = open_server.put_blob("from", b"mounted")
    with client(open_server) as http:
        query = f"?mount={digest}&from=from"
        assert http.post(f"/v2/to/blobs/uploads/{query}").status_code == 201
        assert http.post(f"/v2/to/blobs/uploads/?mount={sha256(b'other')}&from=from").status_code == 202
    assert mounted(open_server.requests) == {digest: 1}
    assert uploaded(open_server.requests) == {}
    assert open_server.blob("to", digest) == b"mounted"


def test_a_killed_server_is_dead_until_revived(open_server: Server, layout: Layout) -> None:
    layout.tag(images.image(layout, ["one"]), "it")
    seen = set()
    for after in (False, True):
        for at in (2, 5, 8):
            open_server.clear()
            open_server.arm(kill_at(at, after=after))
            target = f"docker://{open_server.address}/k/{'after' if after else 'before'}{at}:t"
            assert skopeo(open_server, f"oci:{layout.path}:it", target, check=False).returncode
            assert [one.status for one in open_server.requests if one.number < at].count(0) == 0
            assert open_server.requests[at - 1].status == 0
            assert broken_tags(open_server) == {}
            open_server.revive()
            skopeo(open_server, f"oci:{layout.path}:it", target)
            seen.add(target)
    assert len(open_server.repositories()) == len(seen) == 6


def test_a_lost_answer_to_a_put_leaves_the_blob(open_server: Server) -> None:
    digest = sha256(b"arrives")
    open_server.arm(Fault(LoseAnswer(), "PUT", SESSION))
    with client(open_server) as http, pytest.raises(httpx.RemoteProtocolError):
        push_blob(http, "a", b"arrives", digest)
    assert open_server.blob("a", digest) == b"arrives"
    assert open_server.requests[-1].status == 0
    assert open_server.requests[-1].body_bytes == len(b"arrives")


def test_a_cut_upload_leaves_no_blob(open_server: Server) -> None:
    data = bytes(1 << 20)
    open_server.arm(Fault(CutRequest(70_000), "PUT", SESSION))
    with client(open_server) as http, pytest.raises(httpx.TransportError):
        push_blob(http, "a", data, sha256(data))
    assert open_server.blob("a", sha256(data)) is None
    assert open_server.requests[-1].body_bytes == 70_000


def test_a_cut_answer_is_cut(open_server: Server, layout: Layout) -> None:
    image = images.image(layout)
    seed(open_server, "a", layout, image, "t")
    digest = json.loads(layout.read(image["digest"]))["config"]["digest"]
    open_server.arm(Fault(CutAnswer(10), "GET", BLOB), Fault(CutAnswer(20), "GET", MANIFEST))
    with client(open_server) as http:
        for path in (f"/v2/a/blobs/{digest}", "/v2/a/manifests/t"):
            with pytest.raises(httpx.RemoteProtocolError):
                http.get(path, headers=ACCEPT)
    assert [one.sent_bytes for one in open_server.requests] == [10, 20]


def test_uploads_can_be_given_up(open_server: Server) -> None:
    with client(open_server) as http:
        location = begin(http, "a")
        open_server.end_uploads()
        response = http.put(
            with_digest(location, sha256(b"x")), content=b"x", headers={"Content-Type": "application/octet-stream"}
        )
    assert response.status_code == 404
    assert response.json()["errors"][0]["code"] == "BLOB_UPLOAD_UNKNOWN"


def test_garbage_collection_is_the_registrys_own(start_real: StartReal, layout: Layout) -> None:
    real = start_real("open")
    image = images.image(layout)
    seed(real, "a", layout, image, "t")
    stray = real.put_blob("a", b"nobody names it")
    real.collect_garbage()
    assert holes(real, "a", image["digest"]) == []
    with client(real) as http:
        assert http.get(f"/v2/a/blobs/{stray}").status_code == 404


def test_a_real_registry_is_reset(start_real: StartReal) -> None:
    real = start_real("open")
    digest = real.put_blob("a", b"x")
    with client(real) as http:
        assert http.head(f"/v2/a/blobs/{digest}").status_code == 200
        assert start_real("open") is real
        assert real.requests == []
        assert http.head(f"/v2/a/blobs/{digest}").status_code == 404
    real.put_blob("a", b"x")
    real.lose_data(digest)
    assert real.blob("a", digest) is None


def test_a_lying_head(start_strict: StartStrict, layout: Layout) -> None:
    strict = start_strict()
    image = images.image(layout, ["one"])
    seed(strict, "a", layout, image)
    digest = json.loads(layout.read(image["digest"]))["layers"][0]["digest"]
    strict.lose("a", digest, lying=True)
    with client(strict) as http:
        assert http.head(f"/v2/a/blobs/{digest}").status_code == 200
        content = layout.read(image["digest"])
        response = http.put("/v2/a/manifests/t", content=content, headers={"Content-Type": MANIFEST_TYPE})
    assert response.json()["errors"][0]["detail"] == digest

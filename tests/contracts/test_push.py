"""A push sends only missing blobs, in few requests, and the image arrives unchanged (SPEC 11)."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from detlayer.errors import ConfigError, IntegrityError, LayerError
from detlayer.images.source import open_image
from detlayer.oci.references import RepositoryName, parse_reference
from detlayer.oci.types import canonical_json
from detlayer.transfer.plan_document import parse_plans, plans_document
from detlayer.transfer.push import PushOptions, push_image
from tests.contracts.assertions import assert_has, broken_tags, seed
from tests.contracts.client import Client, blob_bytes, counted
from tests.contracts.faults import Fault, Reply
from tests.contracts.http_records import error_answer
from tests.contracts.images import Layout, artifact, base_of, image, platforms
from tests.contracts.servers import Kind, RealRegistry, Server
from tests.contracts.strict import StrictRegistry

Start = Callable[..., StrictRegistry]


def tagged(layout: Layout, version: str) -> Layout:
    """A layout with one image of this version, and possibly other blobs."""
    layout.tag(platforms(layout, version=version), "image")
    return layout


def test_an_index_arrives_as_it_was(server: Server, layout: Layout, tmp_path: Path) -> None:
    index = layout.tag(platforms(layout), "image")
    client = Client(server, tmp_path / "cache")
    report = client.push(layout, "team/app:1", "team/app:latest")
    assert [tag.state for tag in report.results[0].tags] == ["pushed", "pushed"]
    for tag in ("1", "latest"):
        assert_has(server, "team/app", tag, layout, index)


def test_nothing_changed_is_one_request(server: Server, layout: Layout, tmp_path: Path) -> None:
    """SPEC 11.3"""
    tagged(layout, "1")
    client = Client(server, tmp_path / "cache")
    client.push(layout, "team/app:1")
    for cache in (tmp_path / "cache", None):
        server.clear()
        report = Client(server, cache).push(layout, "team/app:1")
        assert [tag.state for tag in report.results[0].tags] == ["present"]
        assert [(request.method, request.status) for request in counted(server)] == [("HEAD", 200)]


@pytest.mark.parametrize("remembers", [True, False])
def test_only_a_new_tag(server: Server, layout: Layout, tmp_path: Path, remembers: bool) -> None:
    """SPEC 11.3: the tag's image, one blob or the image by digest, and the tag."""
    index = layout.tag(platforms(layout), "image")
    Client(server, tmp_path / "cache").push(layout, "team/app:1")
    server.clear()
    Client(server, tmp_path / "cache" if remembers else None).push(layout, "team/app:2")
    second = "/v2/team/app/" + ("blobs/" if remembers else f"manifests/{index['digest']}")
    methods, paths = zip(*((request.method, request.path) for request in counted(server)), strict=True)
    assert methods == ("HEAD", "HEAD", "PUT")
    assert paths[1].startswith(second)
    assert_has(server, "team/app", "2", layout, index)


@pytest.mark.parametrize(("remembers", "most"), [(True, 17), (False, 21)])
def test_top_layer_and_config_changed(
    server: Server, layout: Layout, tmp_path: Path, remembers: bool, most: int
) -> None:
    """SPEC 11.3: three platforms of five layers each."""
    Client(server, tmp_path / "cache").push(tagged(layout, "1"), "team/app:1")
    server.clear()
    index = layout.tag(platforms(layout, version="2"), "image")
    Client(server, tmp_path / "cache" if remembers else None).push(layout, "team/app:1")
    assert len(counted(server)) == most
    assert_has(server, "team/app", "1", layout, index)


def test_no_byte_of_a_base_in_a_sibling_repository(server: Server, layout: Layout, tmp_path: Path) -> None:
    seed(server, "team/base", layout, base_of(layout), "12")
    base = set(layout.blobs_of(base_of(layout)))
    index = layout.tag(platforms(layout), "image")
    Client(server).push(layout, "team/app:1", source=["team/base"])
    assert_has(server, "team/app", "1", layout, index)
    sent = {request.parameter("digest") for request in server.requests if request.method == "PUT"}
    assert not sent & base
    new = set(layout.blobs_of(index)) - base - {one["digest"] for one in layout.documents_of(index)}
    assert blob_bytes(server) == sum(len(layout.read(digest)) for digest in new)


def test_a_base_is_remembered(server: Server, layout: Layout, tmp_path: Path) -> None:
    """The base's repository is not annotated: an earlier push of it is enough."""
    client = Client(server, tmp_path / "cache")
    layout.tag(base_of(layout), "image")
    client.push(layout, "team/base:12")
    server.clear()
    index = layout.tag(platforms(layout), "image")
    client.push(layout, "team/app:1")
    mounts = [request for request in server.requests if request.parameter("mount")]
    assert len(mounts) == 12
    assert {request.status for request in mounts} == {201}
    assert_has(server, "team/app", "1", layout, index)


def test_a_second_repository_mounts_from_the_first(server: Server, layout: Layout) -> None:
    index = layout.tag(platforms(layout), "image")
    Client(server).push(layout, "team/app:1", "other/app:1")
    assert_has(server, "other/app", "1", layout, index)
    uploads = [request for request in server.requests if request.method == "PUT" and "/other/app/blobs" in request.path]
    assert uploads == []


def test_kinds_of_images(open_server: Server, layout: Layout, tmp_path: Path) -> None:
    """Docker's media types, zstd, foreign layers, artifacts."""
    made = {
        "docker": image(layout, docker=True),
        "docker-list": platforms(layout, docker=True),
        "zstd": image(layout, compression="zstd"),
        "plain": image(layout, compression="none"),
        "artifact": artifact(layout),
    }
    client = Client(open_server)
    for name, descriptor in made.items():
        layout.tag(descriptor, name)
        client.push(f"oci:{layout.path}:{name}", f"kinds/{name}:1")
        assert_has(open_server, f"kinds/{name}", "1", layout, descriptor)


def test_foreign_layers_stay_where_they_are(start_strict: Start, layout: Layout) -> None:
    server = start_strict()
    descriptor = layout.tag(image(layout, foreign_seed="windows"), "image")
    Client(server).push(layout, "team/app:1")
    assert server.tags("team/app") == {"1": descriptor["digest"]}


@pytest.mark.parametrize("has_api", [True, False])
def test_referrers_are_found(start_strict: Start, layout: Layout, has_api: bool) -> None:
    """distribution-spec, "Pushing Manifests with Subject": without the API a tag lists them."""
    from detlayer.oci.types import parse_digest
    from tests.contracts.client import find_referrers
    from tests.contracts.registry_behaviour import Rules

    server = start_strict(rules=Rules(referrers=has_api))
    subject = layout.tag(image(layout), "image")
    bom = layout.tag(artifact(layout, subject, annotations={"about": "it"}), "bom")
    other = layout.tag(artifact(layout, subject, data=b"another"), "other")
    client = Client(server)
    client.push(f"oci:{layout.path}:image", "team/app:1")
    client.push(f"oci:{layout.path}:bom", "team/app:bom")
    client.push(f"oci:{layout.path}:other", "team/app:other")
    client.push(f"oci:{layout.path}:bom", "team/app:bom-again")
    with client.registries() as (registries, _):
        from detlayer.oci.references import RepositoryName

        repository = registries.repository(RepositoryName(server.address, "team/app"))
        found = find_referrers(repository, parse_digest(subject["digest"]))
    assert {str(one.digest) for one in found} == {bom["digest"], other["digest"]}
    assert {one.artifact_type for one in found} == {"application/vnd.example.sbom.v1+json"}
    assert {"about": "it"} in [one.annotations for one in found]


def test_a_sparse_image_is_copied_within_and_across(
    server: Server, start_strict: Start, layout: Layout, tmp_path: Path
) -> None:
    """`pull --manifests-only`, then push: mounted in the same registry, streamed to another."""
    index = platforms(layout)
    seed(server, "team/app", layout, index, "1")
    client = Client(server)
    sparse = tmp_path / "sparse"
    client.pull("team/app:1", sparse, manifests_only=True)
    kept = {path.name for path in (sparse / "blobs" / "sha256").iterdir()}
    assert len(kept) == 1 + 3 + 3  # index, manifests, configs
    server.clear()
    client.push(f"oci:{sparse}", "copy/app:1")
    assert_has(server, "copy/app", "1", layout, index)
    other = start_strict()
    # The credentials are for `server`, and `other` asks for none: a strict registry reports any sent to it.
    Both(server, other).push(f"oci:{sparse}", "copy/app:1")
    assert_has(other, "copy/app", "1", layout, index)


class Both(Client):
    """Pushes to the second of two servers; may read from the first."""

    def __init__(self, source: Server, target: Server) -> None:
        super().__init__(target)
        self._source = Client(source)

    def find(self, name):  # type: ignore[no-untyped-def]
        return self._source.find(name)

    def network(self):  # type: ignore[no-untyped-def]
        network = super().network()
        if self._source.server.ca_file is None:
            return network
        insecure = frozenset() if self.server.ca_file else frozenset({self.server.address})
        return replace(network, ca_file=str(self._source.server.ca_file), insecure=insecure)


def test_what_the_source_corrupts_never_gets_a_name(start_strict: Start, layout: Layout, tmp_path: Path) -> None:
    """The last byte of a streamed blob is held until its digest is verified."""
    source, target = start_strict(), start_strict()
    descriptor = image(layout)
    seed(source, "team/app", layout, descriptor, "1")
    sparse = tmp_path / "sparse"
    Client(source).pull("team/app:1", sparse, manifests_only=True)
    digest = next(one for one, data in layout.blobs_of(descriptor).items() if data[:2] == b"\x1f\x8b")
    whole = source.storage.repository("team/app").blobs[digest]
    source.storage.repository("team/app").blobs[digest] = whole[:-1] + bytes([whole[-1] ^ 1])
    with pytest.raises(IntegrityError) as caught:
        Both(source, target).push(f"oci:{sparse}", "copy/app:1")
    assert caught.value.code == "blob-digest"
    assert target.blob("copy/app", digest) is None
    assert target.tags("copy/app") == {}


def test_a_corrupt_blob_on_disk_is_named(server: Server, layout: Layout) -> None:
    descriptor = layout.tag(image(layout), "image")
    digest = next(one for one, data in layout.blobs_of(descriptor).items() if data[:2] == b"\x1f\x8b")
    path = layout.blob_path(digest)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError) as caught:
        Client(server).push(layout, "team/app:1")
    assert caught.value.code == "blob-digest"
    assert digest in caught.value.message
    assert f"sha256:{hashlib.sha256(data).hexdigest()}" in caught.value.message
    assert sum(request.method == "PUT" and f"digest={digest}" in request.query for request in server.requests) == 1
    server.clear()  # of the violation for the wrong digest
    assert server.tags("team/app") == {}


@pytest.mark.parametrize("source", ["oci", "oci-archive"])
@pytest.mark.parametrize("damage", ["lost", "cut off"])
def test_a_blob_that_is_nowhere(open_server: Server, layout: Layout, source: str, damage: str) -> None:
    """SPEC 11.1: the missing blob is detected before anything is sent, so no upload stays open."""
    descriptor = layout.tag(image(layout), "image")
    digest = [one for one, data in layout.blobs_of(descriptor).items() if data[:2] == b"\x1f\x8b"][-1]
    path = layout.blob_path(digest)
    data = path.read_bytes()
    path.unlink()
    if damage == "cut off":
        path.write_bytes(data[:-1])
    name = f"{source}:{layout.path}"
    if source == "oci-archive":
        name += ".tar"
        with tarfile.open(f"{layout.path}.tar", "w") as archive:
            archive.add(layout.path, ".")
    with pytest.raises(LayerError if damage == "lost" else IntegrityError) as caught:
        Client(open_server).push(name, "team/app:1")
    assert caught.value.code == ("blob-missing" if damage == "lost" else "blob-digest")
    assert digest.removeprefix("sha256:") in caught.value.message
    assert {request.method for request in open_server.requests} <= {"GET", "HEAD"}


def test_what_garbage_collection_took_is_sent_again(server: Server, layout: Layout, tmp_path: Path) -> None:
    """SPEC 11.4: facts can be wrong; the registry reports it on the PUT of the manifest."""
    client = Client(server, tmp_path / "cache")
    client.push(tagged(layout, "1"), "team/app:1")
    index = layout.tag(platforms(layout, version="2"), "image")
    base = [digest for digest in layout.blobs_of(base_of(layout)) if layout.read(digest)[:2] == b"\x1f\x8b"][:5]
    for digest in base:
        server.lose("team/app", digest)
    server.clear()
    client.push(layout, "team/app:1")
    assert_has(server, "team/app", "1", layout, index)


def test_a_head_that_lies(start_strict: Start, layout: Layout) -> None:
    """Lost blobs that HEAD still finds are sent again."""
    server = start_strict()
    descriptor = layout.tag(image(layout, layer_bytes=1 << 21), "image")
    digests = [digest for digest, data in layout.blobs_of(descriptor).items() if len(data) > 1 << 20]
    for digest in digests:
        server.put_blob("team/app", layout.read(digest))
        server.lose("team/app", digest, lying=True)
    Client(server).push(layout, "team/app:1")
    assert_has(server, "team/app", "1", layout, descriptor)


@pytest.mark.parametrize("remembers", [True, False])
def test_a_plan_is_carried_out_unless_something_moved(
    server: Server, layout: Layout, tmp_path: Path, remembers: bool
) -> None:
    """SPEC 11.5: existing blobs are confirmed by one request, unless the tag's image is known."""
    client = Client(server, tmp_path / "cache" if remembers else None)
    client.push(tagged(layout, "1"), "team/app:1")
    index = layout.tag(platforms(layout, version="2"), "image")
    made = client.plan(layout, "team/app:1")
    assert broken_tags(server) == {}
    read = parse_plans(canonical_json(plans_document(made)), "plan.json")
    assert read == made
    server.clear()
    report = client.push(layout, "team/app:1", plans=read)
    assert_has(server, "team/app", "1", layout, index)
    assert len(counted(server)) == (1 if remembers else 2) + made[0].requests
    # Now the tag names another image than in the plan.
    layout.tag(platforms(layout, version="3"), "image")
    third = client.plan(layout, "team/app:1")
    seed(server, "team/app", layout, image(layout), "1")
    server.clear()
    report = client.push(layout, "team/app:1", plans=third)
    assert report.results[0].moved == ("1",)
    assert [request.method for request in counted(server)] == ["HEAD"]


def test_a_plan_for_something_else(open_server: Server, layout: Layout) -> None:
    client = Client(open_server)
    made = client.plan(tagged(layout, "1"), "team/app:1")
    with pytest.raises(ConfigError, match="not for"):
        client.push(layout, "team/other:1", plans=made)
    with pytest.raises(ConfigError, match="the image is"):
        client.push(tagged(layout, "2"), "team/app:1", plans=made)


def test_tags_fail_one_by_one(start_strict: Start, layout: Layout) -> None:
    from tests.contracts.registry_behaviour import Rules

    server = start_strict(rules=Rules(immutable_tags=True))
    seed(server, "team/app", layout, image(layout, ["other"]), "1")
    descriptor = layout.tag(image(layout), "image")
    report = Client(server).try_push(layout, "team/app:1", "team/app:2")
    assert [(tag.tag, tag.state) for tag in report.results[0].tags] == [("1", "failed"), ("2", "pushed")]
    assert report.first_error is not None
    assert report.first_error.code == "tag-immutable"
    assert server.tags("team/app")["2"] == descriptor["digest"]
    # An immutable tag that is up to date is not put again: registries such as ECR would refuse it.
    server.clear()
    Client(server).push(layout, "team/app:2")
    assert [request.method for request in server.requests] == ["HEAD"]


def test_by_digest(open_server: Server, layout: Layout, tmp_path: Path) -> None:
    descriptor = layout.tag(image(layout), "image")
    Client(open_server).push(layout, f"team/app@{descriptor['digest']}")
    assert open_server.manifest("team/app", descriptor["digest"]) is not None
    assert open_server.tags("team/app") == {}
    # A blob is checked again, even if it is remembered.
    client = Client(open_server, tmp_path / "cache")
    for has in (True, False):
        client.push(layout, f"team/app@{descriptor['digest']}")
        open_server.clear()
        if not has:
            open_server.lose("team/app", descriptor["digest"])
        client.push(layout, f"team/app@{descriptor['digest']}")
        assert open_server.requests[0].method == "HEAD"
        assert len(open_server.requests) == 1 or not has
        assert open_server.manifest("team/app", descriptor["digest"]) is not None
    with pytest.raises(ConfigError) as caught:
        Client(open_server).push(layout, f"team/app@sha256:{'0' * 64}")
    assert caught.value.code == "digest-differs"


def test_a_plan_that_believes_what_is_not_so(start_real: Callable[[Kind], RealRegistry], layout: Layout) -> None:
    """The plan claims that blobs and manifests exist: the registry reports missing ones, and gets them."""
    server = start_real("open")
    index = layout.tag(platforms(layout), "image")
    client = Client(server)
    (made,) = client.plan(layout, "team/app:1")
    lies = replace(
        made,
        blobs=tuple(replace(step, action="present", source=None) for step in made.blobs),
        manifests=tuple(replace(step, action="present") for step in made.manifests),
    )
    client.push(layout, "team/app:1", plans=[lies])
    assert_has(server, "team/app", "1", layout, index)


def test_a_plan_for_other_tags(open_server: Server, layout: Layout) -> None:
    layout.tag(image(layout), "image")
    client = Client(open_server)
    made = client.plan(layout, "team/app:1", "team/app:2")
    with pytest.raises(ConfigError) as caught:
        client.push(layout, "team/app:1", plans=made)
    assert caught.value.code == "plan-differs"
    assert open_server.tags("team/app") == {}
    with pytest.raises(ConfigError, match="the plan is for "):
        client.push(layout, "team/other:1", plans=[*made, *client.plan(layout, "team/other:1")])


def test_repositories_and_tags_fail_one_by_one(start_strict: Start, layout: Layout) -> None:
    """A failing repository does not stop the others, and each tag has its result."""
    server = start_strict()
    descriptor = layout.tag(image(layout), "image")
    refused = error_answer(403, ("DENIED", "not you", None))
    server.arm(Fault(Reply(refused), "POST", "/v2/team/closed/", times=0))
    report = Client(server).try_push(layout, "team/closed:1", "team/closed:2", "team/open:1", "team/open:2")
    closed, opened = report.results
    assert [(tag.tag, tag.state) for tag in closed.tags] == [("1", "failed"), ("2", "failed")]
    assert [(tag.tag, tag.state) for tag in opened.tags] == [("1", "pushed"), ("2", "pushed")]
    document = closed.to_document()
    assert [tag["error"] for tag in document["tags"]] == ["registry-denied"] * 2
    assert "not you" in document["tags"][0]["message"]
    assert report.first_error is closed.error
    assert server.tags("team/open") == {"1": descriptor["digest"], "2": descriptor["digest"]}


def test_blobs_that_lie_in_several_repositories(start_strict: Start, layout: Layout, tmp_path: Path) -> None:
    """A sparse image takes its layers from its origin, even if other sources are given."""
    source, target = start_strict(), start_strict()
    descriptor = image(layout)
    seed(source, "team/app", layout, descriptor, "1")
    seed(source, "team/base", layout, image(layout, ["other"]), "1")
    sparse = tmp_path / "sparse"
    Client(source).pull("team/app:1", sparse, manifests_only=True)
    client = Both(source, target)
    named = RepositoryName(source.address, "team/base")
    with client.registries() as (registries, _), open_image(f"oci:{sparse}") as opened:
        to = parse_reference(f"{target.address}/copy/app:1")
        report = push_image(opened, [to], registries, options=PushOptions((named,)))
    assert report.first_error is None
    assert_has(target, "copy/app", "1", layout, descriptor)
    # The reverse: the layout has no origin, and the given source has only a part.
    layout.tag(descriptor, "image")
    for digest in [one for one, data in layout.blobs_of(descriptor).items() if data[:2] == b"\x1f\x8b"]:
        layout.blob_path(digest).unlink()
    with client.registries() as (registries, _), open_image(f"oci:{layout.path}") as opened:
        to = parse_reference(f"{target.address}/again/app:1")
        options = PushOptions((named, RepositoryName(source.address, "team/app")))
        assert push_image(opened, [to], registries, options=options).first_error is None
    assert target.tags("again/app")["1"] == descriptor["digest"]

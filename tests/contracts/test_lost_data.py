"""Registries that lose data: a push never reports missing data as pushed, and restores it (SPEC 11.4)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detlayer.errors import AuthError, RegistryError, RejectedError
from detlayer.images.source import open_image
from detlayer.oci.references import RepositoryName, parse_reference
from detlayer.oci.types import canonical_json, parse_digest
from detlayer.transfer.plan_document import parse_plans, plans_document
from detlayer.transfer.push import Knowledge, open_surveys, push_image
from tests.contracts.assertions import assert_has, broken_tags, seed
from tests.contracts.client import Client
from tests.contracts.faults import Fault, Reply
from tests.contracts.fixtures import StartStrict
from tests.contracts.http_records import Answer, error_answer
from tests.contracts.images import Descriptor, Layout, artifact, base_of, image, plain, platforms
from tests.contracts.registry_behaviour import PUSH_TRAPS, busy
from tests.contracts.servers import Server
from tests.contracts.storage import INDEX

CARELESS = PUSH_TRAPS["accepts-anything"]
REFUSING = [
    "unknown-blob-is-404",
    "unknown-blob-in-object",
    "unknown-blob-unnamed",
    "unknown-blob-one-at-a-time",
    "unknown-blob-is-invalid",
    "unknown-blob-is-422",
    "unknown-blob-is-name-unknown",
    "unknown-blob-is-manifest-unknown",
    "unknown-blob-in-no-json",
    "unknown-blob-in-no-json-404",
]


def children(layout: Layout, index: Descriptor) -> list[Descriptor]:
    found: list[Descriptor] = json.loads(layout.read(index["digest"]))["manifests"]
    return found


def layers(layout: Layout, manifest: Descriptor) -> list[str]:
    return [one["digest"] for one in json.loads(layout.read(manifest["digest"]))["layers"]]


# -- facts remembered from earlier runs


@pytest.mark.parametrize("target", ["the same tag", "another tag", "its digest"])
def test_a_registry_that_forgot_everything(
    start_strict: StartStrict, layout: Layout, tmp_path: Path, target: str
) -> None:
    """It accepts manifests without checking blobs: only a request shows that remembered blobs are gone."""
    server = start_strict(CARELESS)
    index = layout.tag(platforms(layout), "image")
    names = {"the same tag": "app:1", "another tag": "app:2", "its digest": f"app@{index['digest']}"}
    client = Client(server, tmp_path / "cache")
    client.push(layout, "app:1")
    server.forget()
    client.push(layout, names[target])
    for digest, data in layout.blobs_of(index).items():
        stored = server.manifest("app", digest)
        assert server.blob("app", digest) == data or (stored is not None and stored[1] == data)
    assert broken_tags(server) == {}
    # The facts are valid again, and cost no extra requests.
    server.clear()
    client.push(layout, names[target])
    assert [request.method for request in server.requests] == ["HEAD"]


def test_an_image_that_shares_layers_with_one_that_is_gone(
    start_strict: StartStrict, layout: Layout, tmp_path: Path
) -> None:
    server = start_strict(CARELESS)
    client = Client(server, tmp_path / "cache")
    layout.tag(platforms(layout), "image")
    client.push(layout, "app:1")
    server.forget()
    index = layout.tag(platforms(layout, version="2"), "image")
    client.push(layout, "app:2")
    assert_has(server, "app", "2", layout, index)


def test_others_brought_the_base_back(start_strict: StartStrict, layout: Layout, tmp_path: Path) -> None:
    """The topmost layer is checked, since other images cannot have restored it."""
    server = start_strict(CARELESS)
    client = Client(server, tmp_path / "cache")
    index = layout.tag(platforms(layout), "image")
    client.push(layout, "app:1")
    server.forget()
    seed(server, "app", layout, base_of(layout), "base")
    client.push(layout, "app:2")
    assert_has(server, "app", "2", layout, index)


def test_a_blob_that_tells_nothing_is_not_asked_for(start_strict: StartStrict, layout: Layout, tmp_path: Path) -> None:
    """Every artifact has the empty config, and may share small blobs with others."""
    server = start_strict(CARELESS)
    client = Client(server, tmp_path / "cache")
    large, small = layout.add(b"a" * 1000, "text/plain"), layout.add(b"{}", "text/plain")
    document = json.loads(layout.read(artifact(layout)["digest"])) | {"layers": [large, small]}
    made = layout.tag(layout.add_document(document), "image")
    client.push(layout, "app:1")
    server.forget()
    server.put_blob("app", b"{}")
    client.push(layout, "app:2")
    assert_has(server, "app", "2", layout, made)


def test_an_upload_that_was_interrupted(start_strict: StartStrict, layout: Layout, tmp_path: Path) -> None:
    """Uploaded blobs are remembered even if no tag lists them."""
    server = start_strict(CARELESS)
    client = Client(server, tmp_path / "cache", retries=0)
    index = layout.tag(platforms(layout), "image")
    server.arm(Fault(Reply(error_answer(400, ("UNKNOWN", "no", None))), "PUT", "/manifests/", times=0))
    with pytest.raises(RejectedError):
        client.push(layout, "app:1")
    server.revive()
    server.forget()
    client.push(layout, "app:1")
    assert_has(server, "app", "1", layout, index)


def test_only_the_manifests_are_remembered(start_strict: StartStrict, layout: Layout, tmp_path: Path) -> None:
    """Blobs inferred from a remembered manifest are only as certain as that manifest."""
    server = start_strict(CARELESS)
    client = Client(server, tmp_path / "cache")
    index = layout.tag(platforms(layout), "image")
    client.push(layout, "app:1")
    with client.registries() as (registries, memory):
        assert memory is not None
        name = RepositoryName(server.address, "app")
        blobs = [parse_digest(one) for one in layout.blobs_of(index)]
        documents = {parse_digest(one["digest"]) for one in layout.documents_of(index)}
        principal = registries.repository(name).principal
        memory.forget(principal, name, [one for one in blobs if one not in documents])
    server.forget()
    client.push(layout, "app:2")
    assert_has(server, "app", "2", layout, index)


def test_all_facts_of_a_repository_go(start_strict: StartStrict, layout: Layout, tmp_path: Path) -> None:
    """Including facts about other images; other repositories are confirmed separately."""
    server = start_strict(CARELESS)
    client = Client(server, tmp_path / "cache")
    other = layout.tag(image(layout, ["other"]), "image")
    client.push(layout, "app:other", "lib:other")
    index = layout.tag(platforms(layout), "image")
    client.push(layout, "app:1")
    server.forget()
    client.push(layout, "app:1")
    with client.registries() as (_, memory):
        assert memory is not None
        places = memory.locations(server.address, "", [parse_digest(layers(layout, other)[0])])
        assert [str(one.name) for one in places] == [f"{server.address}/lib"]
        kept = memory.locations(server.address, "", [parse_digest(index["digest"])])
        assert [str(one.name) for one in kept] == [f"{server.address}/app"]


def test_a_plan_of_yesterday(start_strict: StartStrict, layout: Layout) -> None:
    """SPEC 11.5: a plan's existing blobs count only once one is confirmed; missing ones are sent."""
    server = start_strict(CARELESS)
    layout.tag(image(layout, ["base", "top"]), "image")
    client = Client(server)
    client.push(layout, "app:1")
    index = layout.tag(platforms(layout), "image")
    client.push(layout, "app:2")
    made = client.plan(layout, "app:3")
    assert made[0].sends == ()
    server.forget()
    client.push(layout, "app:3", plans=made)
    assert_has(server, "app", "3", layout, index)


def test_one_question_for_each_repository_and_run(start_strict: StartStrict, layout: Layout, tmp_path: Path) -> None:
    """One run pushes six images to a repository; blobs pushed with the first one need no requests later."""
    server = start_strict(CARELESS)
    for number in range(6):
        layout.tag(image(layout, ["base", f"top {number}"]), str(number))
        Client(server, tmp_path / "cache").push(f"oci:{layout.path}:{number}", f"app:{number}")

    def push_all(suffix: str) -> list[str]:
        server.clear()
        with Client(server, tmp_path / "cache").registries() as (registries, memory):
            knowledge = Knowledge(memory)
            for number in range(6):
                with open_image(f"oci:{layout.path}:{number}") as opened:
                    to = [parse_reference(f"{server.address}/app:{number}{suffix}")]
                    surveys = open_surveys(opened.root, to, registries, knowledge)
                    assert push_image(opened, to, registries, surveys=surveys).first_error is None
        return [f"{one.method} {one.path.split('/')[3]}" for one in server.requests]

    first = push_all("-again")
    assert first.count("HEAD blobs") == 1
    assert first.count("PUT manifests") == 6
    assert len(first) == 6 + 1 + 6
    server.forget()
    second = push_all("-more")
    assert second.count("HEAD blobs") == 1
    assert second.count("POST blobs") == 6 + 6 + 1  # the base was pushed in the same run
    assert broken_tags(server) == {}


def test_what_the_tag_shows_needs_no_question(server: Server, layout: Layout, tmp_path: Path) -> None:
    """The old image exists and lists all but the top layers: no remembered fact is needed."""
    client = Client(server, tmp_path / "cache")
    layout.tag(platforms(layout), "image")
    client.push(layout, "app:1")
    server.clear()
    layout.tag(platforms(layout, version="2"), "image")
    client.push(layout, "app:1")
    assert [one.path for one in server.requests if one.method == "HEAD" and one.status == 200] == [
        "/v2/app/manifests/1"
    ]


# -- checks on demand


@pytest.mark.parametrize("what", ["layer", "config", "manifest", "all but the index"])
def test_a_check_finds_and_restores(server: Server, layout: Layout, tmp_path: Path, what: str) -> None:
    """A tag names an image with missing parts: `push` reports it as up to date, `--check` does not."""
    client = Client(server, tmp_path / "cache")
    index = layout.tag(platforms(layout), "image")
    client.push(layout, "app:1", "app:latest")
    first = children(layout, index)[0]
    config = json.loads(layout.read(first["digest"]))["config"]["digest"]
    lost = {
        "layer": [layers(layout, first)[0]],
        "config": [config],
        "manifest": [first["digest"]],
        "all but the index": [one for one in layout.blobs_of(index) if one != index["digest"]],
    }[what]
    for digest in lost:
        server.lose("app", digest)
    client.push(layout, "app:1")
    assert set(broken_tags(server)) == {"app:1", "app:latest"}
    (made,) = client.plan(layout, "app:1", check=True)
    assert not made.is_done
    assert {*(str(one.digest) for one in made.sends), *(str(one.digest) for one in made.puts)} >= set(lost)
    assert set(broken_tags(server)) == {"app:1", "app:latest"}
    server.clear()
    report = client.push(layout, "app:1", check=True)
    assert [tag.state for tag in report.results[0].tags] == ["pushed"]
    assert_has(server, "app", "1", layout, index)
    assert broken_tags(server) == {}
    writes = [one for one in server.requests if one.method in ("PUT", "POST", "PATCH") and one.status != 401]
    assert len(writes) == made.requests
    # Documents that list missing parts are put again last, for registries that read manifests on PUT.
    assert writes[-1].path == "/v2/app/manifests/1"
    assert any(one.path == f"/v2/app/manifests/{first['digest']}" for one in writes)


def test_a_check_of_an_image_that_is_whole(server: Server, layout: Layout, tmp_path: Path) -> None:
    client = Client(server, tmp_path / "cache")
    index = layout.tag(platforms(layout), "image")
    client.push(layout, "app:1")
    server.clear()
    report = client.push(layout, "app:1", check=True)
    assert [tag.state for tag in report.results[0].tags] == ["present"]
    asked = [one for one in server.requests if one.status != 401]
    assert {one.method for one in asked} == {"HEAD"}
    # The index by its tag; everything else by digest.
    assert {one.path.rpartition("/")[2] for one in asked} == layout.blobs_of(index).keys() - {index["digest"]} | {"1"}
    assert len(asked) == len(layout.blobs_of(index))
    (made,) = client.plan(layout, "app:1", check=True)
    assert made.is_done
    assert made.asked == len(asked)


def test_a_check_believes_nothing(start_strict: StartStrict, layout: Layout, tmp_path: Path) -> None:
    """A registry lost its data, and a manifest was put without its blobs: inferences from it do not count."""
    server = start_strict(CARELESS)
    client = Client(server, tmp_path / "cache")
    index = layout.tag(platforms(layout), "image")
    client.push(layout, "app:1")
    server.forget()
    for one in layout.documents_of(index):
        server.put_manifest("app", layout.read(one["digest"]), one["mediaType"], "1")
    client.push(layout, "app:1")
    assert "app:1" in broken_tags(server)
    client.push(layout, "app:1", "app:2", check=True)
    for tag in ("1", "2"):
        assert_has(server, "app", tag, layout, index)


def test_a_plan_that_was_checked_is_carried_out(server: Server, layout: Layout, tmp_path: Path) -> None:
    """`plan --check --json`, then `push --plan`."""
    client = Client(server, tmp_path / "cache")
    index = layout.tag(platforms(layout), "image")
    client.push(layout, "app:1")
    lost = layers(layout, children(layout, index)[1])[2]
    server.lose("app", lost)
    plans = parse_plans(canonical_json(plans_document(client.plan(layout, "app:1", check=True))), "plan.json")
    client.push(layout, "app:1", plans=plans)
    assert_has(server, "app", "1", layout, index)


def test_a_check_where_tags_can_not_be_put_again(start_strict: StartStrict, layout: Layout) -> None:
    """The blob is restored, and the image is put by digest."""
    from tests.contracts.registry_behaviour import Rules

    server = start_strict(rules=Rules(immutable_tags=True))
    index = layout.tag(platforms(layout), "image")
    client = Client(server)
    client.push(layout, "app:1")
    server.lose("app", layers(layout, children(layout, index)[0])[0])
    client.push(layout, "app:1", check=True)
    assert_has(server, "app", "1", layout, index)


def test_a_check_asks_for_no_foreign_layer(start_strict: StartStrict, layout: Layout) -> None:
    server = start_strict()
    layout.tag(image(layout, foreign_seed="windows"), "image")
    client = Client(server)
    client.push(layout, "app:1")
    assert client.plan(layout, "app:1", check=True)[0].is_done


# -- refusals


@pytest.mark.parametrize("name", REFUSING)
@pytest.mark.parametrize("lost", ["a layer", "layers", "a manifest", "a manifest and its blobs"])
def test_any_refusal_is_healed(start_strict: StartStrict, layout: Layout, tmp_path: Path, name: str, lost: str) -> None:
    """The old image lists blobs removed by garbage collection; registries report this in different ways."""
    server = start_strict(PUSH_TRAPS[name])
    client = Client(server, tmp_path / "cache")
    old = layout.tag(platforms(layout), "image")
    client.push(layout, "app:1")
    first, second, _ = children(layout, old)
    changed = image(layout, ["other"], architecture="s390x")
    changed["platform"] = {"os": "linux", "architecture": "s390x"}
    gone = {
        "a layer": layers(layout, first)[:1],
        "layers": [*layers(layout, first)[:3], *layers(layout, second)[:3]],
        "a manifest": [first["digest"]],
        "a manifest and its blobs": [first["digest"], *layers(layout, first)[:3]],
    }[lost]
    if "manifest" in lost:  # the first two platforms are unchanged
        index = layout.add_document({"schemaVersion": 2, "mediaType": INDEX, "manifests": [first, second, changed]})
    else:
        index = platforms(layout, version="2")
    layout.tag(index, "image")
    for digest in gone:
        server.lose("app", digest)
    client.push(layout, "app:1")
    assert_has(server, "app", "1", layout, index)


def test_a_registry_that_names_one_at_a_time_and_lies(start_strict: StartStrict, layout: Layout) -> None:
    """HEAD still finds lost blobs: each refusal restores one blob, as often as there are blobs."""
    server = start_strict(PUSH_TRAPS["unknown-blob-one-at-a-time"])
    client = Client(server)
    old = layout.tag(platforms(layout), "image")
    client.push(layout, "app:1")
    for digest in layers(layout, children(layout, old)[0])[:4]:
        server.lose("app", digest, lying=True)
    index = layout.tag(platforms(layout, version="2"), "image")
    client.push(layout, "app:1")
    assert_has(server, "app", "1", layout, index)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (error_answer(400, ("MANIFEST_INVALID", "not like this", None)), "registry-refused"),
        (error_answer(422, ("MANIFEST_INVALID", "not like this", None)), "registry-refused"),
        (error_answer(404, ("NAME_UNKNOWN", "not like this", None)), "repository-missing"),
        (Answer(400, (), b"not like this"), "registry-refused"),
    ],
)
def test_a_refusal_for_another_reason(
    start_strict: StartStrict, layout: Layout, tmp_path: Path, answer: Answer, code: str
) -> None:
    """Nothing is missing: the refusal is reported after one round of checks of blobs not sent in this run."""
    server = start_strict()
    client = Client(server, tmp_path / "cache", retries=0)
    old = layout.tag(image(layout, ["base", "top"]), "image")
    client.push(layout, "app:1")
    new = layout.tag(image(layout, ["base", "other"]), "image")
    server.clear()
    server.arm(Fault(Reply(answer), "PUT", "/manifests/", times=0))
    with pytest.raises(RegistryError) as caught:
        client.push(layout, "app:1")
    assert caught.value.code == code
    puts = [one for one in server.requests if one.method == "PUT" and "/manifests/" in one.path]
    assert len(puts) == 1
    after = server.requests[puts[0].number :]
    shared = set(layers(layout, old)) & set(layers(layout, new))
    assert {(one.method, one.path.rpartition("/")[2]) for one in after} == {("HEAD", one) for one in shared}


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (error_answer(403, ("DENIED", "not you", None)), "registry-denied"),
        (error_answer(405, ("UNSUPPORTED", "read-only", None)), "registry-read-only"),
        (error_answer(400, ("TAG_INVALID", "the tag is immutable", None)), "tag-immutable"),
        (busy(429, "0"), "registry-busy"),
        (busy(503, "0"), "registry-busy"),
    ],
)
def test_a_refusal_that_no_blob_would_change(
    start_strict: StartStrict, layout: Layout, answer: Answer, code: str
) -> None:
    server = start_strict()
    client = Client(server, retries=0)
    layout.tag(image(layout, ["base", "top"]), "image")
    client.push(layout, "app:1")
    layout.tag(image(layout, ["base", "other"]), "image")
    server.clear()
    server.arm(Fault(Reply(answer), "PUT", "/manifests/", times=0))
    with pytest.raises((RegistryError, AuthError)) as caught:
        client.push(layout, "app:1")
    assert caught.value.code == code
    assert server.requests[-1].method == "PUT"


def test_a_subject_that_is_gone(start_strict: StartStrict, layout: Layout, tmp_path: Path) -> None:
    """The subject is put first, if the source has both and the registry requires it."""
    server = start_strict()
    client = Client(server, tmp_path / "cache")
    subject = image(layout)

    def listed(bom: Descriptor) -> Descriptor:
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [plain(subject), plain(bom)]}
        return layout.tag(layout.add_document(document), "image")

    listed(artifact(layout, subject))
    client.push(layout, "app:1")
    bom = artifact(layout, subject, data=b"another")
    index = listed(bom)
    server.lose("app", subject["digest"])
    refused = error_answer(404, ("MANIFEST_UNKNOWN", "no such subject", None))
    server.arm(Fault(Reply(refused), "PUT", f"/manifests/{bom['digest']}"))
    server.clear()
    client.push(layout, "app:1")
    assert_has(server, "app", "1", layout, index)
    puts = [one.path.rpartition("/")[2] for one in server.requests if one.method == "PUT" and "manifests" in one.path]
    assert puts == [bom["digest"], subject["digest"], bom["digest"], "1"]


def test_documents_that_miss_the_same_blob(start_strict: StartStrict, layout: Layout, tmp_path: Path) -> None:
    """They are put in parallel: the blob is sent once, and each manifest is put again."""
    server = start_strict(PUSH_TRAPS["unknown-blob-is-invalid"])
    client = Client(server, tmp_path / "cache")

    def made(version: str) -> Descriptor:
        parts = [image(layout, ["base", f"{one} {version}"], architecture=one) for one in ("amd64", "arm64", "s390x")]
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": parts}
        return layout.tag(layout.add_document(document), "image")

    old = made("1")
    client.push(layout, "app:1")
    base = layers(layout, children(layout, old)[0])[0]
    index = made("2")
    server.lose("app", base)
    server.clear()
    client.push(layout, "app:1")
    assert_has(server, "app", "1", layout, index)
    assert sum(request.parameter("digest") == base for request in server.requests if request.method == "PUT") == 1

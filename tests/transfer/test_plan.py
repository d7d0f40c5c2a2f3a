"""The planner as a pure function: questions, conclusions, steps and their order (SPEC 11)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from detlayer.errors import ConfigError
from detlayer.oci.documents import Document, Wanted, parse_document
from detlayer.oci.ports import Proof
from detlayer.oci.references import RepositoryName, parse_repository
from detlayer.oci.types import (
    MEDIA_TYPE_CONFIG,
    MEDIA_TYPE_INDEX,
    MEDIA_TYPE_MANIFEST,
    Descriptor,
    Digest,
    Platform,
    canonical_json,
    digest_of,
)
from detlayer.transfer.plan import ASK_FROM_BYTES, ASK_NEW_FROM_BYTES, Facts, Plan, Question, ask, confirm, plan
from detlayer.transfer.plan_document import agree, parse_plans, plans_document

Result = TypeVar("Result")

NAME = parse_repository("registry.example/team/app")
OTHER = parse_repository("registry.example/team/base")
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
PLATFORMS = ("amd64", "arm64", "s390x")


def blob(label: str, size_bytes: int = 1000, media_type: str = LAYER) -> Descriptor:
    return Descriptor(media_type, digest_of(label.encode()), size_bytes)


def manifest(config: str, layers: Sequence[Descriptor]) -> Document:
    document = {
        "schemaVersion": 2,
        "mediaType": MEDIA_TYPE_MANIFEST,
        "config": blob(config, 500, MEDIA_TYPE_CONFIG).to_document(),
        "layers": [layer.to_document() for layer in layers],
    }
    return parse_document(canonical_json(document), "a manifest")


def index(children: Sequence[Document], platforms: Sequence[str] = PLATFORMS) -> Document:
    listed = [
        child.descriptor(Platform("linux", platform)).to_document()
        for child, platform in zip(children, platforms, strict=False)
    ]
    document = {"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": listed}
    return parse_document(canonical_json(document), "an index")


def image(top: str, *, layers: int = 5, top_bytes: int = 1000) -> Wanted:
    """Three platforms; only the top layer and the config depend on `top`."""
    children = [
        manifest(
            f"config {platform} {top}",
            [
                *(blob(f"layer {platform} {number}") for number in range(layers - 1)),
                blob(f"top {platform} {top}", top_bytes),
            ],
        )
        for platform in PLATFORMS
    ]
    return Wanted((*children, index(children)))


def unchanging(facts: Facts, call: Callable[[], Result]) -> Result:
    """Call the planner, and check that it does not modify the facts."""
    before = {name: copy(value) for name, value in msgspec.structs.asdict(facts).items()}
    result = call()
    assert msgspec.structs.asdict(facts) == before
    return result


class World:
    """A registry and a memory: answers questions, and counts those that cost a request."""

    def __init__(self) -> None:
        self.tags: dict[str, Document] = {}
        self.has: set[Digest] = set()
        self.documents: dict[Digest, Document] = {}
        self.memory: set[Digest] = set()
        self.requests = 0
        self.asked: list[Question] = []

    def hold(self, wanted: Wanted, *tags: str, remembered: bool = False) -> None:
        for document in wanted.documents:
            self.documents[document.digest] = document
            self.has |= {document.digest, *(one.digest for one in document.blobs)}
            if remembered:
                self.memory.add(document.digest)
        self.tags |= dict.fromkeys(tags, wanted.root)

    def push(self, wanted: Wanted, tags: Sequence[str], facts: Facts | None = None, *, check: bool = False) -> Plan:
        facts = facts or Facts()
        while questions := unchanging(facts, lambda: ask(wanted, tags, facts, check=check)):
            assert len(self.asked) < 1000, "it asks without end"
            for question in questions:
                self.answer(question, facts)
        unchanging(facts, lambda: confirm(wanted, facts))
        made = unchanging(facts, lambda: plan(NAME, wanted, tags, facts))
        self.requests += made.requests
        return made

    def answer(self, question: Question, facts: Facts) -> None:
        assert question not in self.asked, "it asks twice"
        self.asked.append(question)
        self.requests += not question.free
        if question.about == "tag":
            named = self.tags.get(question.target)
            facts.tags[question.target] = named.descriptor() if named is not None else None
        elif question.about == "document":
            has = question.digest in (self.memory if question.free else self.documents)
            facts.documents[question.digest] = self.documents[question.digest] if has else None
            if not has and not question.free:
                facts.absent.add(question.digest)
        elif question.digest in self.has:
            facts.proofs[question.digest] = "seen"
            if question.confirms:
                facts.settle(holds=True)
        else:
            facts.absent.add(question.digest)
            if question.confirms:
                facts.settle(holds=False)


def test_nothing_changed_is_one_request() -> None:
    """SPEC 11.3"""
    world = World()
    world.hold(image("a"), "1")
    made = world.push(image("a"), ["1"])
    assert made.is_done
    assert world.requests == 1
    assert {step.action for step in made.blobs} == {"inferred"}


def test_a_new_tag_is_three_requests() -> None:
    """SPEC 11.3"""
    world = World()
    world.hold(image("a"), "1")
    made = world.push(image("a"), ["2"])
    assert world.requests == 3
    assert [(step.tag, step.action) for step in made.tags] == [("2", "put")]
    assert not made.sends
    assert not made.puts


def test_a_new_tag_of_an_image_that_this_run_pushed_is_two() -> None:
    world = World()
    world.hold(image("a"), "1")
    world.push(image("a"), ["2"], Facts(proofs={image("a").root.digest: "uploaded"}))
    assert world.requests == 2


def everything(wanted: Wanted) -> dict[Digest, Proof]:
    return dict.fromkeys((*wanted.by_digest, *(one.digest for one in wanted.blobs)), "uploaded")


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_remembered_image_is_confirmed_by_one_question(is_whole: bool) -> None:
    """SPEC 11.4: the topmost remembered layer is checked; if it is missing, no remembered fact counts."""
    wanted = image("a")
    world = World()
    if is_whole:
        world.hold(wanted)
    made = world.push(wanted, ["2"], Facts(remembered=everything(wanted)))
    top = blob("top s390x a")
    assert world.asked[1] == Question("blob", str(top.digest), confirms=True)
    assert len(made.sends) == (0 if is_whole else len(wanted.blobs))
    assert len(made.puts) == (0 if is_whole else 3)
    assert not is_whole or world.requests == 3


def test_only_what_the_plan_depends_on_is_confirmed() -> None:
    """The tag's old image lists everything that is not sent, so no remembered fact is needed."""
    old, new = image("a"), image("b")
    world = World()
    world.hold(old, "1", remembered=True)
    world.push(new, ["1"], Facts(remembered=everything(old)))
    assert world.requests == 17
    assert not [question for question in world.asked if question.confirms]


def test_manifests_alone_are_confirmed_too() -> None:
    """An index whose images differ only in their manifests."""
    old = image("a")
    new = Wanted((*old.documents[:3], index(old.documents[:3], PLATFORMS[::-1])))
    proofs: dict[Digest, Proof] = {one.digest: "seen" for one in old.blobs}
    remembered: dict[Digest, Proof] = {one.digest: "uploaded" for one in old.documents[:3]}
    for is_there in (True, False):
        world = World()
        if is_there:
            world.hold(old)
        made = world.push(new, ["1"], Facts(proofs=dict(proofs), remembered=dict(remembered)))
        assert [question for question in world.asked if question.confirms] == [
            Question("manifest", str(old.documents[2].digest), confirms=True)
        ]
        assert len(made.puts) == (0 if is_there else 3)


def test_a_blob_that_tells_little_is_asked_for_last() -> None:
    """The empty layer is in every image."""
    empty = blob("empty", 32)
    wanted = Wanted((manifest("config", [blob("base"), blob("top"), empty]),))
    world = World()
    world.has.add(empty.digest)
    made = world.push(wanted, ["1"], Facts(remembered=everything(wanted)))
    assert world.asked[1] == Question("blob", str(blob("top").digest), confirms=True)
    assert len(made.sends) == 4
    alone = Wanted((manifest("config", [empty]),))
    facts = Facts(tags={"1": None}, remembered={empty.digest: "uploaded"})
    assert Question("blob", str(empty.digest), confirms=True) in ask(alone, ["1"], facts)


def test_a_check_asks_for_everything() -> None:
    """SPEC 11.3"""
    wanted = image("a")
    world = World()
    world.hold(wanted, "1")
    assert world.push(wanted, ["1"], Facts(remembered=everything(wanted)), check=True).is_done
    asked = {question.digest for question in world.asked if question.about in ("blob", "manifest")}
    assert asked == everything(wanted).keys() - {wanted.root.digest}
    assert world.requests == 1 + len(asked)


@given(st.sets(st.sampled_from(list(everything(image("a")))), min_size=1), st.booleans())
def test_a_check_restores_whatever_is_gone(gone: set[Digest], is_named: bool) -> None:
    """Documents that list missing parts, at any depth, and the tag are put again."""
    wanted = image("a")
    gone = gone - {wanted.root.digest} if is_named else gone | {wanted.root.digest}
    world = World()
    world.hold(wanted)
    world.has -= gone
    if is_named:
        world.tags["1"] = wanted.root
    made = world.push(wanted, ["1"], Facts(remembered=everything(wanted)), check=True)
    documents = {one.digest for one in wanted.documents[:-1]}
    assert {step.digest for step in made.sends} == gone - documents - {wanted.root.digest}
    puts = {step.digest for step in made.puts}
    for one in wanted.documents[:-1]:
        assert (one.digest in puts) == bool(gone & {one.digest, *(part.digest for part in one.blobs)})
    assert made.is_done == (not gone)
    assert made.is_repair == (is_named and bool(gone))
    assert parse_plans(json.dumps(plans_document([made])).encode(), "x") == [made]


@pytest.mark.parametrize(("remembered", "requests"), [(True, 17), (False, 21)])
def test_a_changed_top_layer(remembered: bool, requests: int) -> None:
    """SPEC 11.3: three platforms, five layers; the tag, six blobs with two requests each, four documents."""
    world = World()
    world.hold(image("a"), "1", remembered=remembered)
    made = world.push(image("b"), ["1"])
    assert world.requests == requests
    assert len(made.sends) == 6
    assert {step.action for step in made.blobs} == {"inferred", "upload"}
    assert len(made.puts) == 3


def test_facts_do_as_well_as_documents() -> None:
    world = World()
    world.hold(image("a"), "1")
    proofs = {one.digest: "uploaded" for one in image("a").blobs}
    world.push(image("b"), ["1"], Facts(proofs=dict(proofs)))  # type: ignore[arg-type]
    assert world.requests <= 21


def test_one_platform_of_three_changed() -> None:
    """Children listed by the old index are neither put nor fetched."""
    old, changed = image("a"), image("b")
    children = (changed.documents[0], *old.documents[1:3])
    new = Wanted((*children, index(children)))
    world = World()
    world.hold(old, "1")
    made = world.push(new, ["1"])
    assert [step.digest for step in made.puts] == [changed.documents[0].digest]
    assert len(made.sends) == 2
    # tag, old index, old amd64 manifest, two blobs, a manifest, the tag
    assert world.requests == 1 + 2 + 4 + 2


def test_a_large_blob_is_asked_for_and_a_small_one_is_not() -> None:
    world = World()
    world.push(image("a", top_bytes=ASK_FROM_BYTES), ["1"])
    assert sum(question.about == "blob" for question in world.asked) == len(PLATFORMS)


def test_beside_a_known_image_only_a_very_large_blob_is_asked_for() -> None:
    for top_bytes, asked in ((ASK_NEW_FROM_BYTES - 1, 0), (ASK_NEW_FROM_BYTES, len(PLATFORMS))):
        world = World()
        world.hold(image("a"), "1")
        world.push(image("b", top_bytes=top_bytes), ["1"])
        assert sum(question.about == "blob" for question in world.asked) == asked


def test_an_upload_that_was_begun_is_asked_for() -> None:
    wanted = image("a")
    facts = Facts(begun={wanted.blobs[0].digest})
    world = World()
    world.push(wanted, ["1"], facts)
    assert [question.digest for question in world.asked if question.about == "blob"] == [wanted.blobs[0].digest]


def test_mounts_come_first_then_the_largest() -> None:
    """SPEC 11.2"""
    layers = [blob("small", 10), blob("large", 900_000), blob("base", 5)]
    wanted = Wanted((manifest("config", layers),))
    facts = Facts(elsewhere={layers[2].digest: OTHER})
    made = World().push(wanted, ["1"], facts)
    assert [step.action for step in made.blobs] == ["mount", "upload", "upload", "upload"]
    assert [step.size_bytes for step in made.blobs] == [5, 900_000, 500, 10]
    assert made.blobs[0].source == OTHER
    assert made.requests == 1 + 2 * 3 + 1


def test_latest_comes_last() -> None:
    """SPEC 11.2: moving tags come last, so that clients that follow them find the others up to date."""
    made = World().push(image("a"), ["latest", "z", "1"])
    assert [step.tag for step in made.tags] == ["1", "z", "latest"]


def test_foreign_layers_are_left_where_they_are() -> None:
    foreign = blob("windows", 10**9, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
    made = World().push(Wanted((manifest("config", [foreign]),)), ["1"])
    assert [step.action for step in made.blobs if step.digest == foreign.digest] == ["foreign"]


def test_what_was_lost_is_not_inferred_again() -> None:
    wanted = image("a")
    facts = Facts(tags={"1": None}, proofs={wanted.documents[0].digest: "seen"})
    lost = wanted.documents[0].blobs[0].digest
    facts.demote([lost])
    made = plan(NAME, wanted, ["1"], facts)
    assert [step.action for step in made.blobs if step.digest == lost] == ["upload"]


def test_by_digest_alone() -> None:
    wanted = image("a")
    world = World()
    name = str(wanted.root.digest)
    made = world.push(wanted, [name])
    assert [step.tag for step in made.tags] == [str(wanted.root.digest)]
    assert not made.is_done
    # Remembered facts do not count: the registry is asked, once.
    world.asked.clear()
    made = world.push(wanted, [name], Facts(proofs={wanted.root.digest: "uploaded"}))
    assert world.asked[0] == Question("tag", name)
    assert [step.action for step in made.tags] == ["put"]
    world.hold(wanted)
    world.tags[name] = wanted.root
    world.asked.clear()
    assert world.push(wanted, [name]).is_done
    assert world.asked == [Question("tag", name)]


@given(
    st.sets(st.sampled_from([one.digest for one in (*image("a").blobs, *image("b").blobs)])),
    st.booleans(),
    st.sampled_from(["a", "b", None]),
    st.booleans(),
    st.sampled_from(["nothing", "existing", "missing"]),
)
def test_a_plan_is_complete(has: set[Digest], is_remembered: bool, old: str | None, hits: bool, remembers: str) -> None:
    """SPEC 11.1: for any registry, the plan provides all blobs, and puts documents after those they list.

    This holds even if the registry lost all remembered blobs, except those of the tag's image.
    """
    wanted = image("b")
    world = World()
    if old is not None:
        world.hold(image(old), "1", remembered=is_remembered)
    world.has |= has
    facts = Facts(proofs=dict.fromkeys(has, "uploaded") if hits else {})
    if remembers == "existing":
        facts.remembered = dict.fromkeys(world.has, "uploaded")
    elif remembers == "missing":
        facts.remembered = {one: "uploaded" for one in everything(wanted) if one not in world.has}
    made = world.push(wanted, ["1"], facts)
    there = set(world.has)
    there |= {step.digest for step in made.sends}
    for step in made.manifests:
        document = wanted.by_digest[step.digest]
        if step.action == "put":
            assert there >= {one.digest for one in (*document.blobs, *document.children)}
            there.add(step.digest)
        else:
            assert step.digest in there
    root = wanted.root
    assert there >= {one.digest for one in (*root.blobs, *root.children)}
    assert {step.digest for step in made.blobs} == {one.digest for one in wanted.blobs}
    # No blob known to exist is sent.
    assert not {step.digest for step in made.sends} & facts.proofs.keys()
    assert parse_plans(json.dumps(plans_document([made])).encode(), "x") == [made]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"format": "detlayer-plan/2", "plans": []}',
        b'{"format": "detlayer-plan/1", "plans": [{}]}',
        b'{"format": "detlayer-plan/1", "plans": [{"repository": "UPPER/x", "root": "sha256:0", "rootBytes": 1, '
        b'"blobs": [], "manifests": [], "tags": []}]}',
    ],
)
def test_what_is_no_plan(data: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_plans(data, "plan.json")
    assert caught.value.code == "plan-invalid"


DIGEST = "sha256:" + "0" * 64
HONEST: dict[str, Any] = {
    "repository": str(NAME),
    "root": DIGEST,
    "rootBytes": 1,
    "blobs": [{"digest": DIGEST, "size": 1, "mediaType": LAYER, "action": "upload", "reason": ""}],
    "manifests": [{"digest": DIGEST, "size": 1, "mediaType": "", "action": "put", "reason": ""}],
    "tags": [{"tag": "1", "action": "put", "reason": ""}],
}


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("blobs", {"size": -1}),
        ("blobs", {"digest": "sha256:0"}),
        ("blobs", {"action": "delete"}),
        ("blobs", {"action": "mount"}),
        ("blobs", {"action": "mount", "from": "other.example/team/base"}),
        ("blobs", {"action": "upload", "from": str(OTHER)}),
        ("blobs", {"action": "mount", "from": "registry.example/../x"}),
        ("manifests", {"size": -1}),
        ("tags", {"tag": "../../other/manifests/latest"}),
        ("tags", {"tag": "a?b"}),
        ("tags", {"tag": "sha256:" + "1" * 64}),
        ("tags", {"action": "present"}),
        ("tags", {"action": "present", "seen": "sha256:" + "1" * 64}),
        ("tags", {"seen": "latest"}),
    ],
)
def test_plans_that_were_tampered_with(where: str, what: dict[str, Any]) -> None:
    honest = json.dumps({"format": "detlayer-plan/1", "plans": [HONEST]})
    assert len(parse_plans(honest.encode(), "plan.json")) == 1
    changed = {**HONEST, where: [{**HONEST[where][0], **what}]}
    with pytest.raises(ConfigError) as caught:
        parse_plans(json.dumps({"format": "detlayer-plan/1", "plans": [changed]}).encode(), "plan.json")
    assert caught.value.code == "plan-invalid"


def test_a_plan_agrees_with_its_image_only() -> None:
    """SPEC 11.5: exactly the image, under the requested tags."""
    wanted = image("a")
    made = plan(NAME, wanted, ["1", "latest"], Facts())
    agree(made, wanted, ["latest", "1"])
    digest = str(wanted.root.digest)
    agree(plan(NAME, wanted, [digest], Facts()), wanted, [digest])
    first, *others = made.blobs
    wrong = [
        (made, image("b"), ["1", "latest"]),
        (made, wanted, ["1"]),
        (made, wanted, ["1", "latest", "2"]),
        (made, wanted, []),
        (replace(made, blobs=tuple(others)), wanted, ["1", "latest"]),
        (replace(made, blobs=(*made.blobs, first)), wanted, ["1", "latest"]),
        (replace(made, blobs=(replace(first, digest=digest_of(b"x")), *others)), wanted, ["1", "latest"]),
        (replace(made, blobs=(replace(first, size_bytes=1), *others)), wanted, ["1", "latest"]),
        (replace(made, blobs=(replace(first, action="foreign"), *others)), wanted, ["1", "latest"]),
        (replace(made, manifests=made.manifests[1:]), wanted, ["1", "latest"]),
        (replace(made, root_bytes=1), wanted, ["1", "latest"]),
    ]
    for changed, about, tags in wrong:
        with pytest.raises(ConfigError) as caught:
            agree(changed, about, tags)
        assert caught.value.code == "plan-differs"


def test_names_of_repositories_show() -> None:
    assert str(RepositoryName("registry.example", "team/app")) == "registry.example/team/app"

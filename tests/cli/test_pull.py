"""Transcripts of `detlayer pull`: exit code, stdout, stderr, and the resulting layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import CommandLine
from tests.contracts.assertions import assert_has, seed
from tests.contracts.faults import BLOB, CutAnswer, Fault
from tests.contracts.fixtures import StartStrict
from tests.contracts.images import CONFIG, ODD_CONFIGS, Descriptor, Layout, image, odd_image, platforms
from tests.contracts.registry_behaviour import HTML, PULL_TRAPS
from tests.contracts.servers import Server
from tests.contracts.storage import MANIFEST, sha256
from tests.privileges import mounted
from tests.trees import list_files


@pytest.fixture
def index(open_server: Server, layout: Layout) -> Descriptor:
    """An image for two platforms, in the registry as team/app:1."""
    made = platforms(layout, 2, 2)
    seed(open_server, "team/app", layout, made, "1")
    return made


def blobs(path: Path) -> dict[str, bytes]:
    """All blobs of a layout; asserts that each matches its digest."""
    found = {f"sha256:{one.name}": one.read_bytes() for one in (path / "blobs" / "sha256").iterdir()}
    assert all(sha256(data) == digest for digest, data in found.items())
    return found


def named(path: Path) -> dict[str, Any]:
    """The entries of index.json by tag."""
    document = json.loads((path / "index.json").read_text())
    return {one["annotations"]["org.opencontainers.image.ref.name"]: one for one in document["manifests"]}


def test_a_layout_like_the_one_that_was_pushed(
    detlayer: CommandLine, open_server: Server, layout: Layout, index: Descriptor
) -> None:
    at = f"{open_server.address}/team/app:1"
    said = detlayer("pull", at, "-o", "oci:pulled:mine")
    assert (said.exit, said.stdout) == (0, f"{index['digest']}\n")
    assert len(said.words) == 1
    assert said.words[0].startswith(f"{at} into pulled: 6 blobs, ")
    pulled = detlayer.here / "pulled"
    assert blobs(pulled) == layout.blobs_of(index)
    assert {tag: one["digest"] for tag, one in named(pulled).items()} == {"mine": index["digest"]}
    open_server.clear()
    again = detlayer("pull", at, "-o", "oci:pulled", "-q")
    assert (again.exit, again.stdout, again.stderr) == (0, f"{index['digest']}\n", "")
    assert {tag: one["digest"] for tag, one in named(pulled).items()} == dict.fromkeys(("mine", "1"), index["digest"])
    assert not [request for request in open_server.requests if "/blobs/" in request.path]


def test_one_platform(detlayer: CommandLine, open_server: Server, layout: Layout, index: Descriptor) -> None:
    at = f"{open_server.address}/team/app:1"
    child = image(layout, ["arm64 0", "arm64 top 1"], architecture="arm64")
    said = detlayer("pull", at, "-o", "oci:pulled", "--platform", "linux/arm64")
    assert (said.exit, said.stdout) == (0, f"{child['digest']}\n")
    assert blobs(detlayer.here / "pulled") == layout.blobs_of(child)
    missing = detlayer("pull", at, "-o", "oci:other", "--platform", "windows/amd64")
    assert missing.failure == (4, "platform-missing")
    assert missing.words[-1] == "  hint: available: linux/amd64, linux/arm64"
    assert not (detlayer.here / "other").exists()


def test_json_lines_end_in_the_result(
    detlayer: CommandLine, open_server: Server, layout: Layout, index: Descriptor
) -> None:
    at = f"{open_server.address}/team/app:1"
    said = detlayer("pull", at, "-o", "oci:pulled", "--json", "-q")
    assert (said.exit, said.stderr) == (0, "")
    *events, result = said.documents
    assert len(events) == 12
    assert {event["type"] for event in events} == {"transfer", "pulled"}
    sizes = {event["digest"]: event["size"] for event in events}
    assert sizes.items() <= {digest: len(data) for digest, data in layout.blobs_of(index).items()}.items()
    assert (result["type"], result["digest"], result["blobs"]) == ("result", index["digest"], 6)
    assert result["fetchedBytes"] == sum(sizes.values())
    failed = detlayer("pull", f"{open_server.address}/team/none:1", "-o", "oci:none", "--json", "-q")
    assert (failed.exit, len(failed.lines), failed.result["code"]) == (4, 1, "not-found")


def test_manifests_only(detlayer: CommandLine, open_server: Server, layout: Layout, index: Descriptor) -> None:
    """The layers stay in the registry, and a push finds them there without any transfer."""
    at = open_server.address
    said = detlayer("pull", f"{at}/team/app:1", "-o", "oci:sparse", "--manifests-only")
    assert (said.exit, said.stdout) == (0, f"{index['digest']}\n")
    assert said.words[0].startswith(f"{at}/team/app:1 into sparse: 2 blobs, ")
    assert not [data for data in blobs(detlayer.here / "sparse").values() if data[:2] == b"\x1f\x8b"]
    pushed = detlayer("push", "oci:sparse", f"{at}/copy:1")
    assert (pushed.exit, pushed.stdout) == (0, f"{index['digest']}\n")
    assert ", blobs: 6 mounted, " in pushed.stderr
    assert_has(open_server, "copy", "1", layout, index)


@pytest.mark.parametrize("output", ["pulled", "oci:", "docker-archive:x.tar", "oci:pulled:no tag"])
def test_invalid_outputs(detlayer: CommandLine, output: str) -> None:
    assert detlayer("pull", "127.0.0.1:1/team/app:1", "-o", output).failure == (2, "output-invalid")
    assert list_files(detlayer.here) == ["home"]


def test_outputs_that_cannot_be_written(
    detlayer: CommandLine, open_server: Server, layout: Layout, index: Descriptor
) -> None:
    (detlayer.here / "file").write_text("in the way")
    exit_code, code, message, _ = detlayer("pull", f"{open_server.address}/team/app:1", "-o", "oci:file").error
    assert (exit_code, "file" in message) == (7, True), code
    (detlayer.here / "bad").mkdir()
    (detlayer.here / "bad" / "index.json").write_text("[]")
    assert detlayer("pull", f"{open_server.address}/team/app:1", "-o", "oci:bad").exit == 3
    assert (detlayer.here / "bad" / "index.json").read_text() == "[]"


def test_a_full_disk(detlayer: CommandLine, open_server: Server, layout: Layout) -> None:
    """No partial file has a final name; the pull resumes when there is space again."""
    made = image(layout, ["large"], layer_bytes=3 << 20, compression="none")
    seed(open_server, "team/large", layout, made, "1")
    at = f"{open_server.address}/team/large:1"
    disk = detlayer.here / "disk"
    disk.mkdir()
    with mounted(["-t", "tmpfs", "-o", "size=4m", "tmpfs"], disk):
        (disk / "filler").write_bytes(bytes(2 << 20))
        exit_code, code, message, hint = detlayer("pull", at, "-o", "oci:disk/pulled").error
        assert (exit_code, code) == (7, "disk-full")
        assert "pulled" in message
        assert hint
        assert not (disk / "pulled" / "index.json").exists()
        large = json.loads(layout.read(made["digest"]))["layers"][0]["digest"]
        assert not (disk / "pulled" / "blobs" / "sha256" / large.removeprefix("sha256:")).exists()
        part = (disk / "pulled" / ".detlayer" / f"{large.removeprefix('sha256:')}.part").stat().st_size
        assert part > 1 << 20
        (disk / "filler").unlink()
        open_server.clear()
        said = detlayer("pull", at, "-o", "oci:disk/pulled")
        assert (said.exit, said.stdout) == (0, f"{made['digest']}\n")
        assert blobs(disk / "pulled") == layout.blobs_of(made)
        ranges = [one.header("range") for one in open_server.requests if one.path.endswith(large)]
        assert ranges == [f"bytes={part}-"]
        assert not (disk / "pulled" / ".detlayer").exists()


@pytest.mark.parametrize(
    ("trap", "exit_code", "code", "says"),
    [
        ("garbage-manifest", 4, "registry-garbage", "web page instead of a manifest"),
        ("no-json-manifest", 3, "document-invalid", "/team/app:1 is not valid JSON: "),
        ("endless-manifest", 4, "manifest-too-long", "has over 4,194,304 bytes"),
        ("endless-blob", 6, "blob-digest", "/team/app sent too many bytes for sha256:"),
        ("digest-header-wrong", 6, "manifest-digest", " sent sha256:"),
        ("blobs-elsewhere-fishing", 4, "redirect-refused", "(401, UNAUTHORIZED: who are you?)"),
        ("never-answers", 5, "registry-timeout", "timed out"),
    ],
)
def test_an_invalid_registry(
    detlayer: CommandLine,
    start_strict: StartStrict,
    layout: Layout,
    trap: str,
    exit_code: int,
    code: str,
    says: str,
) -> None:
    server = start_strict(PULL_TRAPS[trap])
    seed(server, "team/app", layout, platforms(layout, 1, 1), "1")
    user = {} if server.account is None else {"DETLAYER_USERNAME": server.account.username}
    user |= {} if server.account is None else {"DETLAYER_PASSWORD": server.account.password}
    options = ["--timeout", "0.3", "--retries", "0"] if trap == "never-answers" else []
    said = detlayer("pull", f"{server.address}/team/app:1", "-o", "oci:pulled", *options, **user)
    assert said.failure == (exit_code, code)
    assert says in said.error[2]
    assert not (detlayer.here / "pulled" / "index.json").exists()


def test_a_blob_that_breaks_off_every_time(detlayer: CommandLine, start_strict: StartStrict, layout: Layout) -> None:
    server = start_strict()
    seed(server, "team/app", layout, image(layout, ["one"], compression="none"), "1")
    server.arm(Fault(CutAnswer(0), "GET", BLOB, times=0))
    at = f"{server.address}/team/app:1"
    said = detlayer("pull", at, "-o", "oci:pulled", "--retries", "0")
    assert said.failure[0] == 5
    server.revive()
    assert detlayer("pull", at, "-o", "oci:pulled").exit == 0


def manifests() -> dict[str, bytes]:
    """Invalid or malicious manifests."""
    config = {"mediaType": CONFIG, "digest": f"sha256:{'0' * 64}", "size": 3}
    whole = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []}
    made: dict[str, Any] = {
        "array": [1],
        "no-config": {"schemaVersion": 2, "mediaType": MANIFEST, "layers": []},
        "path-for-digest": {**whole, "config": {**config, "digest": "sha256:../../../../etc/passwd"}},
        "negative-size": {**whole, "config": {**config, "size": -3}},
        "text-for-layers": {**whole, "layers": "none"},
        "huge-config": {**whole, "config": {**config, "size": 1 << 40}},
        "too-long": {**whole, "annotations": {"a": "x" * (4 << 20)}},
    }
    return {
        "empty": b"",
        "text": b"not a manifest",
        "page": HTML.body if isinstance(HTML.body, bytes) else b"",
        "deep": b'{"schemaVersion": 2, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        **{name: json.dumps(document).encode() for name, document in made.items()},
    }


@pytest.mark.parametrize("name", manifests())
def test_invalid_manifests(detlayer: CommandLine, start_strict: StartStrict, layout: Layout, name: str) -> None:
    """Pulled or pushed: a clear error, no tag is set, and nothing is sent."""
    server = start_strict()
    data = manifests()[name]
    server.put_manifest("team/bad", data, MANIFEST, "1")
    said = detlayer("pull", f"{server.address}/team/bad:1", "-o", "oci:pulled")
    expected = {
        "too-long": (4, "manifest-too-long"),
        "huge-config": (4, "not-found"),
    }.get(name, (3, "document-invalid"))
    assert said.failure == expected
    assert not (detlayer.here / "pulled" / "index.json").exists()
    server.clear()
    layout.tag(layout.add(data, MANIFEST), "bad")
    pushed = detlayer("push", "oci:layout:bad", f"{server.address}/team/copy:1")
    assert pushed.failure[0] == 3
    assert [one for one in server.requests if one.body_bytes] == []


@pytest.mark.parametrize("name", ODD_CONFIGS)
def test_an_invalid_config(detlayer: CommandLine, start_strict: StartStrict, layout: Layout, name: str) -> None:
    """It can be copied unparsed, but not be used to choose a platform."""
    server = start_strict()
    odd = odd_image(layout, ODD_CONFIGS[name])
    seed(server, "team/odd", layout, odd, "1")
    at = f"{server.address}/team/odd:1"
    chosen = detlayer("pull", at, "-o", "oci:pulled", "--platform", "linux/amd64")
    assert chosen.failure == (3, "document-invalid")
    assert not (detlayer.here / "pulled").exists()
    said = detlayer("pull", at, "-o", "oci:pulled")
    assert (said.exit, said.stdout) == (0, f"{odd['digest']}\n")
    assert said.words[0].startswith(f"warning[platform-unknown]: can't determine the platform of {at}: sha256:")
    assert blobs(detlayer.here / "pulled") == layout.blobs_of(odd)
    assert "platform" not in named(detlayer.here / "pulled")["1"]
    pushed = detlayer("push", "oci:pulled", f"{server.address}/team/copy:1")
    assert (pushed.exit, pushed.stdout) == (0, f"{odd['digest']}\n")
    assert_has(server, "team/copy", "1", layout, odd)


@pytest.mark.parametrize("damage", ["lost", "other"])
def test_a_config_that_is_damaged(
    detlayer: CommandLine, start_strict: StartStrict, layout: Layout, damage: str
) -> None:
    """A pull fails and sets no tag; resolve still works."""
    server = start_strict()
    made = image(layout)
    seed(server, "team/app", layout, made, "1")
    config = json.loads(layout.read(made["digest"]))["config"]
    if damage == "lost":
        server.storage.lose("team/app", config["digest"])
    else:
        server.storage.repository("team/app").blobs[config["digest"]] = bytes(config["size"])
    at = f"{server.address}/team/app:1"
    resolved = detlayer("resolve", at)
    assert (resolved.exit, resolved.stdout) == (0, f"{made['digest']} {MANIFEST} -\n")
    assert resolved.words[0].startswith("warning[platform-unknown]: ")
    failure = (4, "not-found") if damage == "lost" else (6, "blob-digest")
    assert detlayer("resolve", at, "--platform", "linux/amd64").failure == failure
    assert detlayer("pull", at, "-o", "oci:pulled").failure == failure
    assert not (detlayer.here / "pulled" / "index.json").exists()

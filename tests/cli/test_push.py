"""Transcripts of `detlayer push`: exit code, stdout, stderr. The contract suite checks its requests."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import sqlite3
import struct
import subprocess
import sys
import tarfile
import termios
from pathlib import Path

import pytest

from tests.cli.command import CommandLine
from tests.contracts.assertions import assert_has, broken_tags, seed
from tests.contracts.faults import SESSION, Fault, Reply
from tests.contracts.fixtures import StartStrict
from tests.contracts.images import Layout, compress, image, layer_tar, platforms
from tests.contracts.registry_behaviour import Rules, busy
from tests.contracts.servers import Server
from tests.contracts.storage import INDEX as INDEX_TYPE
from tests.images import docker_saved as saved

INDEX = {"mediaType": INDEX_TYPE}


@pytest.fixture
def index(layout: Layout) -> str:
    """The digest of an image for two platforms, the only one in `oci:layout`."""
    return str(layout.tag(platforms(layout, 2, 2), "app")["digest"])


def test_stdout_has_only_the_digest(detlayer: CommandLine, open_server: Server, index: str, layout: Layout) -> None:
    at = open_server.address
    said = detlayer("push", "oci:layout", f"{at}/team/app:1", f"{at}/team/app:latest")
    assert (said.exit, said.stdout) == (0, f"{index}\n")
    assert said.words[:2] == [f"{at}/team/app:1 pushed", f"{at}/team/app:latest pushed"]
    assert said.words[2].startswith("21 requests, ")
    assert ", blobs: 6 uploaded, " in said.words[2]
    assert len(said.words) == 3
    assert_has(open_server, "team/app", "latest", layout, INDEX | {"digest": index})
    again = detlayer("push", "oci:layout", f"{at}/team/app:1")
    assert (again.exit, again.stdout) == (0, f"{index}\n")
    assert again.words[0] == f"{at}/team/app:1 is up to date"
    assert again.words[1].startswith("1 request, 0 bytes sent, ")


def test_quiet_and_verbose(detlayer: CommandLine, open_server: Server, index: str) -> None:
    at = open_server.address
    quiet = detlayer("push", "oci:layout", f"{at}/team/app:1", "-q")
    assert (quiet.exit, quiet.stdout, quiet.stderr) == (0, f"{index}\n", "")
    loud = detlayer("push", "oci:layout", f"{at}/team/app:2", "-v")
    assert (loud.exit, loud.stdout) == (0, f"{index}\n")
    head, asked, put = loud.words[:3]
    assert head == f"HEAD http://{at}/v2/team/app/manifests/2 -> 404"
    assert asked.startswith(f"HEAD http://{at}/v2/team/app/blobs/sha256:")
    assert put == f"PUT http://{at}/v2/team/app/manifests/2 -> 201"


def test_plain_progress_is_lines(detlayer: CommandLine, start_strict: StartStrict, layout: Layout) -> None:
    """Bars are for terminals, and stderr is not one here."""
    layout.tag(image(layout, ["large"], layer_bytes=20 << 20, compression="none"), "app")
    for kind in ("auto", "plain"):
        server = start_strict()
        server.arm(Fault(Reply(busy(503, "1")), "PUT", SESSION))
        said = detlayer("push", "oci:layout", f"{server.address}/app:1", "--progress", kind)
        assert said.exit == 0
        assert "\x1b" not in said.stderr
        assert ("1 of 2 blobs, " in said.stderr or "0 of 2 blobs, " in said.stderr) == (kind == "plain")


def test_bars_are_for_terminals(detlayer: CommandLine, start_strict: StartStrict, layout: Layout) -> None:
    """One for each large blob and one for all, removed at the end. Messages stay, and stdout is unaffected."""
    made = layout.tag(image(layout, ["large", "small"], layer_bytes=20 << 20, compression="none"), "app")
    server = start_strict()
    server.arm(Fault(Reply(busy(503, "1")), "PUT", SESSION))
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "detlayer", "push", "oci:layout", f"{server.address}/app:1"],
        cwd=detlayer.here,
        env={**detlayer.environment, "TERM": "xterm", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # Linux: the other end of the terminal is closed
            while piece := os.read(ours, 1 << 16):
                shown += piece
        os.close(ours)
        assert process.stdout is not None
        assert process.stdout.read().decode() == f"{made['digest']}\n"
    assert process.returncode == 0
    text = shown.decode()
    large = json.loads(layout.read(made["digest"]))["layers"]
    assert any(one["digest"][:19] in text for one in large)  # the other may have been too fast for a bar
    assert "/40.0 MiB" in text
    assert "/100 bytes" not in text
    *_, last, words = text.rstrip().splitlines()
    assert last.endswith(f"{server.address}/app:1 pushed")
    assert ", blobs: 3 uploaded, " in words


def test_json_lines_end_in_the_result(detlayer: CommandLine, open_server: Server, index: str) -> None:
    at = open_server.address
    said = detlayer("push", "oci:layout", f"{at}/team/app:1", f"{at}/copy:1", "--json", "-q")
    assert (said.exit, said.stderr) == (0, "")
    *events, result = said.documents
    assert {event["type"] for event in events} == {"transfer", "uploaded", "mounted"}
    assert all(event.keys() == {"type", "digest", "size"} for event in events)
    for kind in ("uploaded", "mounted"):
        assert len({event["digest"] for event in events if event["type"] == kind}) == 6
    assert result.pop("requests") > 6
    assert result.pop("sentBytes") > 6 * 2000 / 2
    assert result == {
        "type": "result",
        "results": [
            {"repository": f"{at}/team/app", "digest": index, "tags": [{"tag": "1", "state": "pushed"}]},
            {"repository": f"{at}/copy", "digest": index, "tags": [{"tag": "1", "state": "pushed"}]},
        ],
    }


def test_a_dry_run_changes_nothing(detlayer: CommandLine, open_server: Server, index: str) -> None:
    at = f"{open_server.address}/team/app:1"
    said = detlayer("push", "oci:layout", at, "--dry-run")
    assert (said.exit, said.stderr) == (0, "")
    assert said.stdout == detlayer("plan", "oci:layout", at).stdout
    assert said.lines[-1].startswith("  15 requests and ")
    assert {request.method for request in open_server.requests} == {"HEAD"}
    as_json = detlayer("push", "oci:layout", at, "--dry-run", "--json")
    assert as_json.result["plans"][0]["root"] == index
    assert open_server.tags("team/app") == {}


def test_a_plan_is_carried_out_unless_the_tag_moved(
    detlayer: CommandLine, open_server: Server, index: str, layout: Layout
) -> None:
    """SPEC 11.5"""
    at = f"{open_server.address}/team/app:1"
    plan = detlayer.here / "plan.json"
    plan.write_text(detlayer("plan", "oci:layout", at, "--json").stdout)
    said = detlayer("push", "oci:layout", at, "--plan", plan)
    assert (said.exit, said.stdout) == (0, f"{index}\n")
    assert_has(open_server, "team/app", "1", layout, INDEX | {"digest": index})
    layout.tag(platforms(layout, 2, 2, version="2"), "app")
    plan.write_text(detlayer("plan", "oci:layout", at, "--json").stdout)
    other = seed(open_server, "team/app", layout, image(layout, ["other"]), "1")
    for options in ([], ["--json"]):
        stale = detlayer("push", "oci:layout", at, "--plan", "plan.json", *options)
        assert stale.exit == 1
        assert stale.words[0] == (
            f"warning[plan-stale]: {at} has moved since the plan was made; nothing was pushed there"
        )
        assert open_server.tags("team/app") == {"1": other}
    assert stale.result["results"][0]["moved"] == ["1"]


def test_a_check_restores_what_the_registry_lost(
    detlayer: CommandLine, open_server: Server, index: str, layout: Layout
) -> None:
    at = f"{open_server.address}/team/app:1"
    detlayer("push", "oci:layout", at)
    child = json.loads(layout.read(index))["manifests"][0]["digest"]
    lost = json.loads(layout.read(child))["layers"][0]["digest"]
    open_server.lose("team/app", lost)
    assert detlayer("push", "oci:layout", at).words[0] == f"{at} is up to date"
    assert detlayer("plan", "oci:layout", at, "--question").exit == 0
    planned = detlayer("plan", "oci:layout", at, "--question", "--check")
    assert planned.exit == 1
    rows = [(line.split()[0], line.split("  ")[-1]) for line in planned.lines[1:-1] if " present " not in line]
    assert rows == [
        ("upload", "missing"),
        ("put", "lists missing parts"),
        ("put", "up to date, but parts were missing"),
    ]
    assert detlayer("push", "oci:layout", at, "--check", "--dry-run").stdout == planned.stdout
    said = detlayer("push", "oci:layout", at, "--check")
    assert (said.exit, said.stdout) == (0, f"{index}\n")
    assert said.words[0] == f"{at} pushed"
    assert ", blobs: 1 uploaded, " in said.words[1]
    assert_has(open_server, "team/app", "1", layout, INDEX | {"digest": index})
    again = detlayer("push", "oci:layout", at, "--check")
    assert again.words[0] == f"{at} is up to date"
    assert again.words[1].startswith("9 requests, 0 bytes sent, ")
    plan = detlayer.here / "plan.json"
    plan.write_text(detlayer("plan", "oci:layout", at, "--json").stdout)
    assert detlayer("push", "oci:layout", at, "--check", "--plan", plan).failure == (2, "usage")


def test_an_invalid_plan(detlayer: CommandLine, open_server: Server, index: str) -> None:
    at = f"{open_server.address}/team/app:1"
    plan = detlayer.here / "plan.json"
    push = ("push", "oci:layout", at, "--plan", "plan.json")
    assert detlayer(*push).failure == (2, "plan-invalid")
    for text in ("", "{", "[1]", '{"format": "detlayer-plan/2", "plans": []}', "[" * 100_000):
        plan.write_text(text)
        assert detlayer(*push).failure == (2, "plan-invalid")
    plan.write_text(detlayer("plan", "oci:layout", f"{open_server.address}/team/other:1", "--json").stdout)
    assert detlayer(*push).failure == (2, "plan-differs")
    assert open_server.repositories() == []


def test_a_layer_file_as_a_blob(detlayer: CommandLine, open_server: Server) -> None:
    data = compress(layer_tar("one", 3000), "gzip")
    (detlayer.here / "layer.tar.gz").write_bytes(data)
    at = f"{open_server.address}/layers/one:1"
    without = detlayer("push", "layer.tar.gz", at)
    assert without.failure == (2, "image-invalid")
    assert "--as-blob" in without.stderr
    said = detlayer("push", "layer.tar.gz", at, "--as-blob")
    assert said.exit == 0
    stored = open_server.manifest("layers/one", said.stdout.strip())
    assert stored is not None
    document = json.loads(stored[1])
    assert document["artifactType"].endswith("tar+gzip")
    assert open_server.blob("layers/one", document["layers"][0]["digest"]) == data


def test_a_whole_index(detlayer: CommandLine, open_server: Server, index: str, layout: Layout) -> None:
    layout.tag(image(layout, ["other"]), "other")
    at = f"{open_server.address}/team/all:1"
    exit_code, code, _, hint = detlayer("push", "oci:layout", at).error
    assert (exit_code, code, hint) == (3, "layout-image", "available tags: app, other")
    said = detlayer("push", "oci:layout", at, "--index")
    assert said.exit == 0
    stored = open_server.manifest("team/all", said.stdout.strip())
    assert stored is not None
    assert next(child["digest"] for child in json.loads(stored[1])["manifests"]) == index
    assert broken_tags(open_server) == {}


def test_blobs_come_from_a_source(detlayer: CommandLine, open_server: Server, index: str, layout: Layout) -> None:
    """--source: mounted from there, or fetched if the image lacks them."""
    at = open_server.address
    seed(open_server, "team/base", layout, platforms(layout, 2, 2), "1")
    for path in layout.path.rglob("*"):
        if path.is_file() and path.read_bytes()[:2] == b"\x1f\x8b":
            path.unlink()
    exit_code, code, message, hint = detlayer("push", "oci:layout", f"{at}/team/app:1").error
    assert (exit_code, code) == (3, "blob-missing")
    assert "--source REPOSITORY" in hint
    assert message.startswith("the image lacks sha256:")
    said = detlayer("push", "oci:layout", f"{at}/team/app:1", "--source", f"{at}/team/base", "--no-cache")
    assert (said.exit, said.stdout) == (0, f"{index}\n")
    assert " mounted" in said.stderr
    assert broken_tags(open_server) == {}


def test_from_registry_to_registry(detlayer: CommandLine, start_strict: StartStrict, layout: Layout) -> None:
    source, target = start_strict(), start_strict()
    digest = seed(source, "team/app", layout, platforms(layout), "1")
    said = detlayer("push", f"docker://{source.address}/team/app:1", f"{target.address}/copy/app:1")
    assert (said.exit, said.stdout) == (0, f"{digest}\n")
    assert_has(target, "copy/app", "1", layout, INDEX | {"digest": digest})
    for flag in ("--index", "--as-blob"):
        refused = detlayer("push", f"docker://{source.address}/team/app:1", f"{target.address}/copy/app:1", flag)
        assert refused.failure == (2, "usage")


def test_archives(detlayer: CommandLine, open_server: Server, index: str, layout: Layout) -> None:
    saved.save(detlayer.here / "docker.tar", saved.Image([layer_tar("one", 3000), layer_tar("two", 3000)]))
    with tarfile.open(detlayer.here / "oci.tar", "w") as archive:
        archive.add(layout.path, ".")
    for name in ("docker-archive:docker.tar", "oci-archive:oci.tar:app"):
        said = detlayer("push", name, f"{open_server.address}/{name[:3]}:1")
        assert said.exit == 0, said.stderr
        assert open_server.tags(name[:3]) == {"1": said.stdout.strip()}
    assert open_server.tags("oci") == {"1": index}
    assert broken_tags(open_server) == {}


def test_one_tag_of_several_fails(detlayer: CommandLine, start_strict: StartStrict, index: str, layout: Layout) -> None:
    server = start_strict(rules=Rules(immutable_tags=True))
    at = server.address
    seed(server, "team/app", layout, image(layout, ["other"]), "1")
    names = [f"{at}/team/app:1", "127.0.0.1:1/team/app:1", f"{at}/team/app:2"]
    said = detlayer("push", "oci:layout", *names, "--retries", "0")
    # The exit code is that of the first failure; the others are reported, and the rest is pushed.
    assert (said.exit, said.stdout) == (4, "")
    assert said.words[:3] == [f"{at}/team/app:1 failed", f"{at}/team/app:2 pushed", "127.0.0.1:1/team/app:1 failed"]
    assert said.words[3].startswith("error[registry-unreachable]: can't connect to 127.0.0.1:1: Connection refused")
    assert said.words[-2].startswith(f"error[tag-immutable]: {at} refused to let you push {at}/team/app:1 (400, TAG_")
    assert said.words[-1] == "  hint: the tag is immutable: push under a new tag"
    assert server.tags("team/app")["2"] == index
    as_json = detlayer("push", "oci:layout", *names, "--retries", "0", "--json", "-q")
    assert as_json.exit == 4
    assert [document["type"] for document in as_json.documents] == ["result", "error"]
    assert as_json.result["code"] == "tag-immutable"
    unreachable = {
        "error": "registry-unreachable",
        "message": "can't connect to 127.0.0.1:1: Connection refused",
    }
    failed = {"tag": "1", "state": "failed", "error": "tag-immutable", "message": as_json.result["message"]}
    assert as_json.documents[0]["results"] == [
        {"repository": f"{at}/team/app", "digest": index, "tags": [failed, {"tag": "2", "state": "present"}]},
        {
            "repository": "127.0.0.1:1/team/app",
            "digest": index,
            "tags": [{"tag": "1", "state": "failed", **unreachable}],
            **unreachable,
        },
    ]
    # The digest is printed if one repository succeeds, even if others fail.
    said = detlayer("push", "oci:layout", f"{at}/team/app:2", "127.0.0.1:1/team/app:1", "--retries", "0")
    assert (said.exit, said.stdout) == (5, f"{index}\n")


def test_the_cache_directory(detlayer: CommandLine, open_server: Server, index: str) -> None:
    at = open_server.address

    numbers = itertools.count(1)

    def remembers(*options: str, **environment: str) -> bool:
        """Push to a new repository; return whether blobs are mounted from that of an earlier push."""
        open_server.clear()
        said = detlayer("push", "oci:layout", f"{at}/app{next(numbers)}:1", *options, **environment)
        assert said.exit == 0
        return any(request.parameter("mount") for request in open_server.requests)

    assert not remembers("--no-cache")
    assert not detlayer.cache.exists()
    assert not remembers()
    assert (detlayer.cache / "index.sqlite").exists()
    assert remembers()
    assert not remembers("--no-cache")
    assert not remembers("--cache-dir", "other")
    assert remembers(DETLAYER_CACHE_DIR="other")
    assert (detlayer.here / "other" / "index.sqlite").exists()
    # Without either it is the platform's cache directory, below the home directory.
    assert not remembers(DETLAYER_CACHE_DIR="", XDG_CACHE_HOME="")
    assert list(detlayer.home.rglob("index.sqlite"))


@pytest.mark.parametrize("kind", ["file", "newer"])
def test_an_unusable_cache(detlayer: CommandLine, open_server: Server, index: str, kind: str) -> None:
    """There is one warning, and the push succeeds."""
    if kind == "file":
        detlayer.cache.write_text("in the way")
    else:
        detlayer("push", "oci:layout", f"{open_server.address}/app:0")
        with sqlite3.connect(detlayer.cache / "index.sqlite") as database:
            database.execute("PRAGMA user_version = 9999")
        database.close()
    said = detlayer("push", "oci:layout", f"{open_server.address}/app:1")
    assert (said.exit, said.stdout) == (0, f"{index}\n")
    code = {"file": "cache-unusable", "newer": "cache-newer"}[kind]
    assert [word for word in said.words if "warning" in word] == [said.words[0]]
    assert said.words[0].startswith(f"warning[{code}]: ")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["oci:layout"], "usage"),
        (["oci:layout", "https://127.0.0.1:1/x:1"], "reference-invalid"),
        (["oci:layout", "127.0.0.1:1/Upper:1"], "reference-invalid"),
        (["oci:layout", "127.0.0.1:1/x:-"], "reference-invalid"),
        (["oci:layout", f"127.0.0.1:1/x@sha256:{'0' * 64}"], "digest-differs"),
        (["layout", "127.0.0.1:1/x:1"], "image-invalid"),
        (["oci:layout", "127.0.0.1:1/x:1", "--source", "no repository"], "reference-invalid"),
        (["oci:layout", "127.0.0.1:1/x:1", "--client-key", "key.pem"], "usage"),
        (["oci:layout", "127.0.0.1:1/x:1", "--retries", "many"], "usage"),
        (["oci:layout", "127.0.0.1:1/x:1", "--timeout", "0"], "usage"),
        (["oci:layout", "127.0.0.1:1/x:1", "--plan", "nowhere.json"], "plan-invalid"),
    ],
)
def test_invalid_arguments(detlayer: CommandLine, index: str, arguments: list[str], code: str) -> None:
    assert detlayer("push", *arguments).failure == (2, code)


def test_missing_images(detlayer: CommandLine, index: str, layout: Layout) -> None:
    at = "127.0.0.1:1/x:1"
    assert detlayer("push", "oci:nowhere", at).error == (
        3,
        "layout-missing",
        "OCI layout not found: nowhere",
        "check the path: oci:DIR[:TAG]",
    )
    assert detlayer("push", "oci:layout:2", at).error == (
        3,
        "layout-image",
        "layout has no images with the tag 2",
        "available tags: app",
    )
    assert detlayer("push", "oci-archive:nowhere.tar", at).exit == 3
    (detlayer.here / "bad.tar").write_bytes(b"no tar" * 1000)
    for kind in ("oci-archive", "docker-archive"):
        said = detlayer("push", f"{kind}:bad.tar", at, "--json")
        assert said.exit == 3
        assert said.result["type"] == "error"


def test_stdout_that_is_full(detlayer: CommandLine, open_server: Server, index: str) -> None:
    """The push succeeds; the exit code reports that the digest could not be printed."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "detlayer", "push", "oci:layout", f"{open_server.address}/app:1"],
            cwd=detlayer.here,
            env=detlayer.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 7
    assert "error[output-closed]" in done.stderr
    assert open_server.tags("app") == {"1": index}

"""Many images, directories and outputs: common steps run once, and failures affect only their image."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from detlayer.images.source import open_image
from tests.building.project_bench import APP, FILES, PLATFORMS, Bench, directory
from tests.contracts.assertions import broken_tags
from tests.privileges import as_nobody
from tests.trees import make_tree
from tests.vectors import counter_bytes

SERVICE = """
extends = "../../detlayer.toml"
[images.{name}]
layers = ["common", { name = "own", sources = ["src:/srv"] }]
"""
ROOT = """
members = ["services/*"]
[defaults]
base = "{registry}/base:1"
platforms = ["linux/amd64", "linux/arm64"]
repositories = ["{registry}/{image}"]
[layers.common]
sources = ["common:/opt/common"]
"""
NAMES = [f"s{at:02}" for at in range(12)]


@pytest.fixture
def monorepo(bench: Bench) -> Bench:
    """Twelve images for two platforms each, with a common base and a common layer."""
    make_tree(bench.path, {"common": {"lib": counter_bytes("common", 200_000)}})
    bench.write(ROOT)
    for name in NAMES:
        make_tree(
            bench.path / "services" / name, {"src": {"main": name}, "detlayer.toml": SERVICE.replace("{name}", name)}
        )
    return bench


def test_twelve_images_share_common_steps(monorepo: Bench) -> None:
    fresh = ["--push", "--cache-dir", str(monorepo.path.parent / "fresh")]
    built = monorepo.build(*fresh)
    assert built.code == 0, built.errors
    kinds = [step.partition(" ")[0] for step in built.states]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "resolve": 1,
        "fetch": 2,
        "pack": 13,
        "configure": 24,
        "assemble": 24,
        "index": 12,
        "publish": 12,
    }
    # Common layers are sent once, by the first image; the others mount them.
    assert sum(one.body_bytes > 200_000 for one in built.requests) == 1
    asked = [one for one in built.asked if "/v2/base/" in one and "/manifests/" in one]
    assert len(asked) == 3  # the index, and a manifest for each platform
    assert sorted(monorepo.server.repositories()) == ["base", *NAMES]
    again = monorepo.build(*fresh)
    assert again.ran() == set()
    assert len(again.requests) == 1 + 12


def test_remembered_facts_are_confirmed_once_per_repository(monorepo: Bench) -> None:
    """SPEC 11.4: twelve images with new tags; one request for each tag, and one for a layer."""

    def build(version: str) -> list[str]:
        text = ROOT.replace("/{image}", "/all").replace("[defaults]", f'[defaults]\ntags = ["{{image}}-{version}"]')
        monorepo.write(text)
        built = monorepo.build("--push")
        assert built.code == 0, built.errors
        return [one for one in built.asked if "/v2/all/" in one]

    build("1")
    asked = build("2")
    assert sum("HEAD /v2/all/blobs/" in one for one in asked) == 1
    assert len(asked) == 12 + 1 + 12
    # The registry lost all blobs: the first image finds that out for all.
    for digest in monorepo.everything("all"):
        monorepo.server.lose("all", digest)
    assert sum("HEAD /v2/all/blobs/" in one for one in build("3")) == 1
    assert broken_tags(monorepo.server) == {}
    assert len(monorepo.server.tags("all")) == 12


def test_jobs_do_not_affect_the_output(monorepo: Bench) -> None:
    one = monorepo.build("--no-cache", "-j", "1")
    many = monorepo.build("--no-cache", "-j", "8")
    digests = [image["digest"] for image in one.result["images"]]
    assert digests == [image["digest"] for image in many.result["images"]]
    assert len(set(digests)) == 12


def test_an_image_that_fails_does_not_stop_the_others(monorepo: Bench) -> None:
    shutil.rmtree(monorepo.path / "services/s03/src")
    built = monorepo.build("--push")
    assert built.code == 3
    assert "error[source-missing]" in built.errors
    images = {one["image"]: one for one in built.result["images"]}
    assert images["s03"] == {"image": "s03", "error": "source-missing", "platforms": {}, "references": []}
    assert len([one for one in images.values() if one["references"]]) == 11
    assert "s03" not in monorepo.server.repositories()
    make_tree(monorepo.path / "services/s03", {"src": {"main": "s03"}})
    assert {step.split(" ")[1].partition("/")[0] for step in monorepo.build("--push").ran()} == {"s03"}


def test_images_are_chosen_by_name_and_from_below(monorepo: Bench) -> None:
    built = monorepo.command("build", "s01", "s02")
    assert [line.partition("@")[0] for line in built.lines] == ["s01", "s02"]
    whole = {line.partition("@")[2] for line in built.lines}
    below = Bench(monorepo.path / "services/s01/src", monorepo.server, monorepo.capfd).command("build")
    assert {line.partition("@")[2] for line in below.lines} < whole


def test_two_checkouts_give_one_digest(bench: Bench, open_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another directory, user, umask, order and day; and an empty cache."""
    first = bench.build("--push")
    home = open_tmp / "nobody"
    home.mkdir()
    home.chmod(0o777)
    with as_nobody():
        before = os.umask(0o077)
        try:
            with_rights = {name: FILES[name] for name in sorted(FILES, reverse=True)}
            other = make_tree(home / "where", with_rights)
        finally:
            os.umask(before)
        for path in other.rglob("*"):
            os.utime(path, (1_234_567_890, 1_234_567_890))
        there = Bench(other, bench.server, bench.capfd)
        there.write()
        monkeypatch.setenv("DETLAYER_CACHE_DIR", str(home / "cache"))
        assert there.build("--no-cache").digest == first.digest
        assert there.build().digest == first.digest


# -- outputs


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_tag_is_in_layouts_and_archives(bench: Bench) -> None:
    tags = ["--tag", "1.2", "--tag", "latest", "--tag", "1.2"]
    built = bench.build("-o", "oci:oci", "-o", "oci-archive:oci.tar", *tags, "--platform", "linux/amd64")
    assert built.code == 0, built.errors
    for name in ("oci:oci", "oci-archive:oci.tar"):
        for tag in ("1.2", "latest"):
            with directory(bench.path), open_image(f"{name}:{tag}") as image:
                assert str(image.root.digest) == built.digest


def test_layouts_and_archives(bench: Bench) -> None:
    outputs = ["-o", "oci:out/oci", "-o", "oci-archive:out/{image}.tar", "--platform", "linux/amd64"]
    outputs += ["-o", "docker-archive:out/docker.tar"]
    (bench.path / "out").mkdir()
    built = bench.build(*outputs)
    assert built.code == 0, built.errors
    with directory(bench.path), open_image("oci:out/oci:latest") as image:
        assert str(image.root.digest) == built.digest
    assert bench.command("verify", "oci:out/oci").code == 0
    assert bench.command("verify", "oci-archive:out/app.tar").code == 0
    with tarfile.open(bench.path / "out/docker.tar") as archive:
        listed = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert listed[0]["RepoTags"] == [f"{bench.server.address}/team/app:latest"]
    digests = {name: digest_of(bench.path / "out" / name) for name in ("app.tar", "docker.tar")}
    again = bench.build(*outputs)
    assert again.ran() == set()
    assert bench.command("build", "--question", *outputs).code == 0
    # Changed or removed outputs are written again, with the same bytes.
    (bench.path / "out/app.tar").write_bytes(b"something else")
    (bench.path / "out/docker.tar").unlink()
    blob = max((bench.path / "out/oci/blobs/sha256").iterdir(), key=lambda one: one.stat().st_size)
    blob.unlink()
    assert bench.command("build", "--question", *outputs).code == 1
    mended = bench.build(*outputs)
    assert {step.partition(" ")[0] for step in mended.ran()} == {"write"}
    assert len(mended.ran()) == 3
    assert {name: digest_of(bench.path / "out" / name) for name in digests} == digests
    assert blob.exists()


def test_bases_are_downloaded_only_if_an_output_needs_them(bench: Bench) -> None:
    assert not [
        one for one in bench.build("--push").asked if one.startswith("GET") and "/base/blobs/" in one and "layer" in one
    ]
    assert not [step for step in bench.build("--push").states if step.startswith("download")]
    built = bench.build("-o", "oci:{image}.oci")
    assert len([step for step in built.ran() if step.startswith("download")]) == 2
    assert bench.build("-o", "oci:{image}.oci").ran() == set()


def test_a_base_in_a_layout(bench: Bench) -> None:
    layout = bench.path.parent / "bases/base/oci"
    bench.write(APP.replace("{registry}/base:1", f"oci:{layout}:base"))
    built = bench.build("--push", "-o", "oci:out")
    assert built.code == 0, built.errors
    assert bench.build("--push", "-o", "oci:out").ran() == set()
    assert [one.partition(" ")[0] for one in bench.build("--push").asked] == ["HEAD"]


def test_an_archive_for_an_engine_has_the_platform_of_the_machine(bench: Bench) -> None:
    built = bench.build("-o", "docker-archive:x.tar")
    assert built.code == 0, built.errors
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    with tarfile.open(bench.path / "x.tar") as archive:
        listed = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
        config = json.load(archive.extractfile(listed[0]["Config"]))  # type: ignore[arg-type]
    assert config["architecture"] == machine
    # Only layers for this platform are downloaded.
    downloads = [step for step in built.states if step.startswith("download ")]
    assert downloads == [f"download {bench.server.address}/base:1 linux/{machine}"]


def test_an_index_does_not_fit_a_docker_archive(bench: Bench) -> None:
    bench.write(APP.replace('"linux/amd64", "linux/arm64"', '"linux/arm64", "linux/s390x"'))
    built = bench.command("build", "-o", "docker-archive:x.tar")
    assert built.code == 2
    assert "error[archive-index]" in built.errors


# -- interruptions


def test_the_next_build_resumes_after_any_interruption(bench: Bench, tmp_path: Path) -> None:
    """SIGINT at fifty moments during a build; the build after them gives the same result."""
    wanted = bench.build("--no-cache").digest
    environment = {**os.environ, "DETLAYER_CACHE_DIR": str(tmp_path / "fresh")}
    ended = 0
    command = [sys.executable, "-m", "detlayer", "build", "--push", "--json", "-v"]
    for at in range(50):
        (bench.path / "src/main").write_text(f"{at}" if at % 2 else "one")
        process = subprocess.Popen(
            command, cwd=bench.path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        # Later by one line each time, so that each moment is one at which something happens.
        for _ in range(at % 12):
            if not process.stderr.readline():
                break
        process.send_signal(signal.SIGINT)
        process.stderr.close()
        ended += process.wait() in (130, -signal.SIGINT)
        for tag, digest in bench.server.tags("team/app").items():
            assert tag == "latest"
            assert bench.server.manifest("team/app", digest) is not None
    assert ended > 5
    (bench.path / "src/main").write_text("one")
    os.environ["DETLAYER_CACHE_DIR"] = environment["DETLAYER_CACHE_DIR"]
    last = bench.build("--push")
    assert last.code == 0, last.errors
    assert last.digest == wanted
    assert bench.server.tags("team/app") == {"latest": wanted}
    assert bench.build("--push").ran() == set()
    assert not list((tmp_path / "fresh" / "incoming").glob("*")) or last.code == 0


# -- errors


@pytest.mark.parametrize(
    ("change", "arguments", "code", "status", "word"),
    [
        (("src:/opt", "nothing:/opt"), (), "source-missing", 3, "nothing"),
        (("src:/opt", "empty:/opt"), (), "layer-empty", 3, "source"),
        (('"linux/arm64"', '"linux/s390x"'), (), "platform-missing", 4, "linux/amd64, linux/arm64"),
        (("base:1", "base:2"), (), "", 4, "base"),
        (("{registry}/base:1", "127.0.0.1:1/base:1"), ("--retries", "0"), "", 5, "127.0.0.1:1"),
        (("x", "x"), ("--offline",), "offline", 5, "not in the cache"),
        (("x", "x"), ("--offline", "--push"), "offline-push", 2, "--push"),
        (("x", "x"), ("--locked",), "lock-missing", 2, "detlayer lock"),
        (("x", "x"), ("--platform", "linux/386"), "platform-unlisted", 2, "linux/amd64"),
        (("x", "x"), ("--tag", "-x"), "tag-invalid", 2, "-x"),
        (("x", "x"), ("web",), "image-unknown", 2, "app"),
        (("x", "x"), ("-o", "tar:x"), "output-invalid", 2, "oci:DIR"),
        (("x", "x"), ("-o", "oci:src/out"), "output-in-source", 2, "src/out"),
        (("x", "x"), ("--cache-dir", "src/cache"), "output-in-source", 2, "cache"),
        (("x", "x"), ("--until", "pack", "--push"), "usage", 2, "--until"),
        (('repositories = ["{registry}/team/app"]', ""), ("--push",), "no-reference", 2, "repositories"),
        (("src:/opt", "src:/lib/"), (), "merged-usr-parent", 2, "/lib"),
        (("MODE", "MOD="), (), "config-invalid", 2, "detlayer.toml"),
        (('"prod"', '"${SECRET}"'), (), "variable-not-allowed", 2, "SECRET"),
        (("env = {", "git = true\nenv = {"), (), "git-missing", 2, "git"),
    ],
)
def test_errors(
    bench: Bench, change: tuple[str, str], arguments: tuple[str, ...], code: str, status: int, word: str
) -> None:
    make_tree(bench.path, {"empty": {}, "deps-s390x": {"lib": "z"}})
    bench.write(APP.replace(*change))
    built = bench.command("build", *arguments)
    assert built.code == status, built.errors
    assert f"error[{code}" in built.errors
    assert "hint: " in built.errors
    assert word in built.errors
    assert not built.lines


def test_two_images_with_one_destination(bench: Bench) -> None:
    bench.write(APP + APP.replace("images.app", "images.web"))
    assert "error[references-collide]" in bench.command("build", "--push").errors
    assert "error[outputs-collide]" in bench.command("build", "-o", "oci-archive:x.tar").errors


def test_revision_and_source_come_from_git(bench: Bench) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=bench.path, capture_output=True, text=True, check=True
        ).stdout

    git("init", "-q")
    git("remote", "add", "origin", "https://user:secret@example.org/app.git")
    git("add", ".")
    git("commit", "-qm", "one")
    bench.write("git = true".join(APP.split("env = {", 1)[:1]) + "git = true\nenv = {" + APP.split("env = {", 1)[1])
    built = bench.build("--push")
    assert built.code == 0, built.errors
    _, index = bench.server.manifest("team/app", built.digest) or ("", b"")
    annotations = json.loads(index)["annotations"]
    assert annotations["org.opencontainers.image.revision"] == git("rev-parse", "HEAD").strip()
    assert annotations["org.opencontainers.image.source"] == "https://example.org/app.git"


def test_graphs_are_shown_without_a_request(bench: Bench) -> None:
    shown = bench.command("graph", "--push", "--format", "json")
    assert shown.requests == []
    steps = {one["step"]: one for one in json.loads(shown.lines[0])["steps"]}
    assert steps["publish app"]["needs"] == {"image": "index app"}
    assert len(bench.command("graph").lines) > 10
    assert bench.command("graph", "--format", "dot").lines[0] == "digraph detlayer {"
    assert PLATFORMS[0] in steps["fetch " + bench.server.address + "/base:1 linux/amd64"]["inputs"]["platform"]

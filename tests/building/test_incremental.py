"""A second build only resolves tags; after any change, exactly the affected steps run, with reasons."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from detlayer.building import step_versions
from tests.building.project_bench import APP, Bench
from tests.contracts.assertions import broken_tags
from tests.privileges import program

PACK = "pack app/source"
PACK_DEPS = {"pack app/deps linux/amd64", "pack app/deps linux/arm64"}
FETCH = {f"fetch {{base}} linux/{one}" for one in ("amd64", "arm64")}
CONFIGURE = {f"configure app linux/{one}" for one in ("amd64", "arm64")}
ASSEMBLE = {f"assemble app linux/{one}" for one in ("amd64", "arm64")}
INDEX, PUBLISH = {"index app"}, {"publish app"}


def snapshot(path: Path) -> dict[str, tuple[int, int]]:
    """All files with their sizes and times, except leases and database journals."""
    found = {}
    for one in path.rglob("*"):
        status = one.lstat()
        if one.is_file() and "leases" not in one.parts and not one.name.endswith(("-shm", "-wal")):
            found[str(one)] = (status.st_size, status.st_mtime_ns)
    return found


def test_a_second_build_is_one_request_for_each_reference(bench: Bench) -> None:
    first = bench.build("--push")
    assert first.code == 0, first.errors
    assert (
        first.ran()
        == {one.format(base=f"{bench.server.address}/base:1") for one in FETCH}
        | {PACK}
        | PACK_DEPS
        | CONFIGURE
        | ASSEMBLE
        | INDEX
        | PUBLISH
    )
    assert bench.server.tags("team/app") == {"latest": first.digest}
    # Recent files are read once more, until their stat records are no longer racy (SPEC 10.2).
    before: dict[str, tuple[int, int]] = {}
    for _ in range(20):
        if before == (before := snapshot(bench.path.parent)):
            break
        bench.build("--push")
    second = bench.build("--push")
    assert second.asked == ["HEAD /v2/base/manifests/1", "HEAD /v2/team/app/manifests/latest"]
    assert second.ran() == set()
    assert second.digest == first.digest
    assert snapshot(bench.path.parent) == before
    for tag in ("a", "b", "c"):
        bench.build("--push", "--tag", tag)
    many = bench.build("--push", "--tag", "a", "--tag", "b", "--tag", "c")
    assert len(many.requests) == 4


def test_question_sets_the_exit_code(bench: Bench) -> None:
    assert bench.command("build", "--push", "--question").code == 1
    assert bench.server.tags("team/app") == {}
    bench.build("--push")
    asked = bench.command("build", "--push", "--question")
    assert (asked.code, asked.lines, asked.errors) == (0, [], "")
    assert len(asked.requests) == 2
    (bench.path / "src/main").write_text("two")
    assert bench.command("build", "--push", "--question").code == 1


def test_a_check_restores_what_the_registry_lost(bench: Bench) -> None:
    """One built layer, one layer of the base, and a manifest: no tag moved, so only a check finds them missing."""
    first = bench.build("--push")
    for digest in sorted(bench.everything("team/app") - {first.digest}):
        bench.server.lose("team/app", digest)
        assert bench.build("--push").ran() == set()
        asked = bench.command("build", "--push", "--check", "--question")
        assert (asked.code, asked.lines, asked.errors) == (1, [], "")
        assert {one.method for one in asked.requests} == {"HEAD"}
        built = bench.build("--push", "--check")
        assert built.ran() == PUBLISH
        assert [one["kind"] for one in built.reasons("publish app")] == ["output"]
        assert broken_tags(bench.server) == {}
    whole = bench.build("--push", "--check")
    assert whole.ran() == set()
    assert len(whole.requests) == 1 + len(bench.everything("team/app"))
    assert bench.command("build", "--push", "--check", "--question").code == 0
    assert bench.command("build", "--check").code == 2


def test_a_dry_run_reports_steps_and_reasons_and_changes_nothing(bench: Bench) -> None:
    bench.build("--push")
    tags = bench.server.tags("team/app")
    (bench.path / "src/main").write_text("other")
    dry = bench.command("build", "--push", "--dry-run")
    assert dry.code == 0
    assert [line.partition(":")[0].partition(" (")[0] for line in dry.lines] == [
        PACK,
        *[f"{kind} app linux/{one}" for one in ("amd64", "arm64") for kind in ("configure", "assemble")],
        "index app",
        "publish app",
    ]
    assert "opt/app/main" in dry.lines[0]
    assert bench.server.tags("team/app") == tags
    assert all(one.method in ("HEAD", "GET") for one in dry.requests)


def edit_source(bench: Bench) -> None:
    (bench.path / "src/main").write_text("changed")


def touch_source(bench: Bench) -> None:
    os.utime(bench.path / "src/main", (1, 1))


def change_env(bench: Bench) -> None:
    bench.write(APP.replace("prod", "test"))


def change_level(bench: Bench) -> None:
    bench.write(APP + 'compression = "gzip:9"\n')


def delete_tag(bench: Bench) -> None:
    bench.server.storage.repository("team/app").tags.clear()  # type: ignore[attr-defined]


def move_base(bench: Bench) -> None:
    bench.push_base("moved")


def move_base_of_another_platform(bench: Bench) -> None:
    """The index has one more platform: its digest changes, but not the manifests that are used."""
    bench.push_base(platforms=("linux/amd64", "linux/arm64", "linux/s390x"))


BASE = {one.format(base="{base}") for one in FETCH}
CHANGES: list[tuple[Callable[[Bench], None], set[str], str, dict[str, str]]] = [
    (edit_source, {PACK} | CONFIGURE | ASSEMBLE | INDEX | PUBLISH, PACK, {"kind": "outside", "what": "opt/app/main"}),
    (touch_source, set(), "", {}),
    (
        change_env,
        CONFIGURE | ASSEMBLE | INDEX | PUBLISH,
        "configure app linux/amd64",
        {"kind": "input", "what": "runtime"},
    ),
    (
        change_level,
        {PACK} | ASSEMBLE | INDEX | PUBLISH,
        PACK,
        {"kind": "input", "what": "codec", "before": '"gzip-libdeflate-6"', "after": '"gzip-libdeflate-9"'},
    ),
    (delete_tag, PUBLISH, "publish app", {"kind": "target", "what": "{registry}/team/app:latest"}),
    (
        move_base,
        BASE | CONFIGURE | ASSEMBLE | INDEX | PUBLISH,
        "fetch {base} linux/amd64",
        {"kind": "input", "what": "base.digest"},
    ),
    (
        move_base_of_another_platform,
        BASE | INDEX | PUBLISH,
        "index app",
        {"kind": "input", "what": "base.digest"},
    ),
]


@pytest.mark.parametrize(
    ("change", "expected", "step", "reason"), CHANGES, ids=lambda one: getattr(one, "__name__", "")
)
def test_only_affected_steps_run_with_reasons(
    bench: Bench, change: Callable[[Bench], None], expected: set[str], step: str, reason: dict[str, str]
) -> None:
    bench.build("--push")
    change(bench)
    registry, base = bench.server.address, f"{bench.server.address}/base:1"
    built = bench.build("--push", "--explain")
    assert built.code == 0, built.errors
    assert built.ran() == {one.format(base=base) for one in expected}
    if step:
        wanted = {name: value.replace("{registry}", registry) for name, value in reason.items()}
        reasons = built.reasons(step.format(base=base))
        assert any(wanted.items() <= one.items() for one in reasons), reasons
        assert "because" in built.errors
    assert bench.server.tags("team/app") == {"latest": built.digest}
    again = bench.build("--push")
    assert again.ran() == set()
    assert len(again.requests) == 2


def test_a_moved_base_is_reported(bench: Bench) -> None:
    bench.build()
    moved = bench.push_base("moved")
    built = bench.command("build")
    assert f"{bench.server.address}/base:1 has moved: " in built.errors
    assert f"→ {moved}" in built.errors


@pytest.mark.parametrize("kind", ["pack", "configure", "index"])
def test_another_version_of_a_step_runs_it_again(bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The result is unchanged, so no later step runs."""
    bench.build("--push")
    monkeypatch.setattr(step_versions, "VERSIONS", {**step_versions.VERSIONS, kind: "2"})
    monkeypatch.setattr("detlayer.building.steps.VERSIONS", step_versions.VERSIONS)
    built = bench.build("--push")
    assert {step.partition(" ")[0] for step in built.ran()} == {kind}
    step = sorted(built.ran())[0]
    assert {"kind": "version", "what": kind, "before": "1", "after": "2"} in built.reasons(step)
    assert bench.build("--push").ran() == set()


def test_an_earlier_layer_is_not_packed_again(bench: Bench) -> None:
    first = bench.build("--push")
    edit_source(bench)
    bench.build("--push")
    (bench.path / "src/main").write_text("one")
    back = bench.build("--push")
    assert back.digest == first.digest
    assert back.ran() == PUBLISH


@pytest.mark.parametrize("damage", ["lost", "other bytes", "cut off"])
def test_a_damaged_store_is_repaired(bench: Bench, damage: str) -> None:
    """A corrupt file is a cache miss with a warning, and is made again."""
    first = bench.build("--push")
    for blob in (bench.path.parent / "cache" / "oci" / "blobs" / "sha256").iterdir():
        data = blob.read_bytes()
        blob.unlink()
        if damage != "lost":
            blob.write_bytes(data[:-1] if damage == "cut off" else data[:-1] + bytes([data[-1] ^ 1]))
    again = bench.build("--push")
    assert again.code == 0, again.errors
    assert again.digest == first.digest
    assert PACK in again.ran()
    assert PUBLISH.isdisjoint(again.ran())
    assert ("warning[cache-corrupt]" in again.errors) == (damage != "lost")
    assert bench.build("--push").ran() == set()


@pytest.mark.parametrize("arguments", [["--no-cache"], ["-j", "1"], ["-j", "8"]])
def test_the_digest_does_not_depend_on_options(bench: Bench, arguments: list[str]) -> None:
    assert bench.build(*arguments).digest == bench.build().digest


def test_strace_sees_no_content_read_in_a_second_build(bench: Bench, tmp_path: Path) -> None:
    """No file of the sources is opened when nothing changed."""
    bench.build("--push")
    bench.build("--push")
    log = tmp_path / "log"
    strace: list[str | Path] = [program("strace"), "-f", "-qq", "-e", "trace=openat,open", "-o", log]
    subprocess.run(
        [*strace, sys.executable, "-m", "detlayer", "build", "--push"], cwd=bench.path, check=True, capture_output=True
    )
    opened = [line for line in log.read_text(errors="replace").splitlines() if "O_RDONLY" in line]
    assert any("detlayer.toml" in line for line in opened)
    for name in ('"main"', '"lib"', '"x"'):
        assert not [line for line in opened if name in line and "O_DIRECTORY" not in line]

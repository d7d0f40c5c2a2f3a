"""A Python application on a real base, for two platforms, to a real registry: others read it, and podman runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.servers import RealRegistry
from tests.e2e.commands import DETLAYER, run
from tests.privileges import need_root, program
from tests.trees import make_tree

PROJECT = """
[images.greet]
base = "{registry}/python:3"
platforms = ["linux/amd64", "linux/arm64"]
repositories = ["{registry}/team/greet"]
entrypoint = ["/usr/bin/python3", "-S", "-m", "greet"]
env = { PYTHONPATH = { prepend = "/opt/app:/opt/site-packages" } }
user = "65532:65532"
[[images.greet.layers]]
name = "dependencies"
sources = ["site-{arch}:/opt/site-packages"]
[[images.greet.layers]]
name = "application"
sources = ["src:/opt/app"]
"""
MAIN = "import os, words\nprint(words.HELLO, os.getuid(), os.environ['PYTHONPATH'])\n"
SAID = "hello from amd64 65532 /opt/app:/opt/site-packages"


def make_base(path: Path) -> None:
    """Copy this machine's own Python with what it needs to start."""
    python = Path(os.path.realpath(program("/usr/bin/python3")))
    libraries = run(str(python), "-I", "-c", "import sysconfig; print(sysconfig.get_path('stdlib'))").decode().strip()
    make_tree(path, {"usr": {"bin": {}, "lib": {}}, "etc": {"passwd": "root:x:0:0:root:/root:/bin/sh\n"}, "tmp": {}})
    shutil.copy2(python, path / "usr/bin/python3")
    leave = shutil.ignore_patterns("__pycache__", "test", "dist-packages", "site-packages", "config-*", "idlelib")
    shutil.copytree(libraries, path / libraries.lstrip("/"), ignore=leave, symlinks=True)
    needed = [word for line in run("ldd", python).decode().splitlines() for word in line.split() if word[0] == "/"]
    for library in needed:
        real = os.path.realpath(library)
        for name in (real, os.path.join(os.path.realpath(os.path.dirname(library)), os.path.basename(library))):
            goal = path / name.lstrip("/")
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(real, goal)
    for name in ("lib", "lib64", "bin"):
        (path / "usr" / name).mkdir(exist_ok=True)
        os.symlink(f"usr/{name}", path / name)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    with RealRegistry("open", tmp_path_factory.mktemp("registry")) as started:
        yield started


@pytest.fixture
def podman(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str | Path]]:
    """podman with a storage of its own, whose path must be shorter than 50 characters; for `detlayer`, too."""
    need_root("podman as root")
    with tempfile.TemporaryDirectory(prefix="dl-", dir="/tmp") as home:
        conf = Path(home) / "storage.conf"
        conf.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{home}/root"\nrunroot = "{home}/runroot"\n')
        monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(conf))
        yield [program("podman"), "--cgroup-manager", "cgroupfs", "--runtime", program("runc")]
        subprocess.run([program("podman"), "rmi", "-af"], capture_output=True, check=False)


@pytest.fixture
def project(registry: RealRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The application, and its base in the registry for two architectures, packed and pushed by detlayer."""
    monkeypatch.setenv("DETLAYER_CACHE_DIR", str(tmp_path / "cache"))
    registry.reset()
    base = tmp_path / "base"
    make_base(base)
    manifests: list[str | Path] = []
    for architecture in ("amd64", "arm64"):
        (base / "etc/arch").write_text(architecture)
        layer, image = tmp_path / f"{architecture}.layer", tmp_path / f"{architecture}.image"
        where: list[str | Path] = ["--oci", tmp_path / "oci"]
        run(*DETLAYER, "pack", base, *where, "--descriptor", layer, "--mode", "source", "-q")
        run(*DETLAYER, "image", layer, *where, "--platform", f"linux/{architecture}", "--descriptor", image, "-q")
        manifests += ["--manifest", image]
    run(*DETLAYER, "image", *manifests, "--oci", tmp_path / "oci", "--tag", "base", "-q")
    run(*DETLAYER, "push", f"oci:{tmp_path}/oci:base", f"{registry.address}/python:3", "-q")
    here = make_tree(tmp_path / "project", {"src": {"greet": {"__init__.py": "", "__main__.py": MAIN}}})
    for architecture in ("amd64", "arm64"):
        make_tree(here, {f"site-{architecture}": {"words.py": f"HELLO = 'hello from {architecture}'\n"}})
    (here / "detlayer.toml").write_text(PROJECT.replace("{registry}", registry.address))
    return here


LIMITS = ("--rm", "--network=none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")


def test_an_application_for_two_platforms(
    project: Path, registry: RealRegistry, podman: list[str | Path], tmp_path: Path
) -> None:
    digest = run(*DETLAYER, "build", "--push", cwd=project).decode().strip().rpartition("@")[2]
    image = f"{registry.address}/team/greet"
    # The base's layers were mounted: their bytes went nowhere.
    assert sum(one.body_bytes for one in registry.requests if "/team/greet/" in one.path) < 1 << 20
    registry.clear()
    run(*DETLAYER, "build", "--push", cwd=project)
    assert sorted(f"{one.method} {one.path}" for one in registry.requests) == [
        "HEAD /v2/python/manifests/3",
        "HEAD /v2/team/greet/manifests/latest",
    ]
    # skopeo reads all of it, and keeps the digest.
    run(
        program("skopeo"),
        "copy",
        "-q",
        "--all",
        "--src-tls-verify=false",
        f"docker://{image}:latest",
        f"oci:{tmp_path}/copy:x",
    )
    (copied,) = json.loads((tmp_path / "copy/index.json").read_text())["manifests"]
    assert copied["digest"] == digest
    inspected = json.loads(run(program("skopeo"), "inspect", "--tls-verify=false", f"docker://{image}:latest"))
    assert (inspected["Architecture"], len(inspected["Layers"])) == ("amd64", 3)
    # podman pulls and runs it.
    assert run(*podman, "run", "--tls-verify=false", *LIMITS, f"{image}:latest").decode().strip() == SAID


def test_archives_and_engines(project: Path, podman: list[str | Path]) -> None:
    """What is written for others runs there."""
    outputs = ["-o", "docker-archive:docker.tar", "-o", "oci-archive:oci.tar", "-o", "podman"]
    run(*DETLAYER, "build", "--platform", "linux/amd64", *outputs, cwd=project)
    image = json.loads(run(*podman, "image", "ls", "--format", "json"))[0]
    assert run(*podman, "run", *LIMITS, image["Id"]).decode().strip() == SAID
    # It is there now, and is not loaded twice.
    said = run(*DETLAYER, "build", "--platform", "linux/amd64", *outputs, "--dry-run", cwd=project)
    assert said == b""
    for archive in ("docker.tar", "oci.tar"):
        run(*podman, "rmi", "-af")
        loaded = run(*podman, "load", "-i", project / archive).decode().strip().rpartition(" ")[2]
        assert run(*podman, "run", *LIMITS, loaded).decode().strip() == SAID
        run(*podman, "rmi", "-af")
    assert run(*podman, "run", *LIMITS, f"oci-archive:{project}/oci.tar").decode().strip() == SAID

"""A project and a registry, built with the command line, with results as values."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from detlayer.cli import run
from tests.contracts.http_records import Request
from tests.contracts.servers import Server
from tests.trees import Spec, make_tree

PLATFORMS = ("linux/amd64", "linux/arm64")
APP = """
[images.app]
base = "{registry}/base:1"
platforms = ["linux/amd64", "linux/arm64"]
repositories = ["{registry}/team/app"]
entrypoint = ["/opt/app/main"]
env = { MODE = "prod", PATH = { prepend = "/opt/app/bin" } }

[[images.app.layers]]
name = "deps"
sources = ["deps-{arch}:/opt/deps"]

[[images.app.layers]]
name = "source"
sources = ["src:/opt/app"]
"""
FILES: Spec = {
    "deps-amd64": {"lib": "a" * 999},
    "deps-arm64": {"lib": "b" * 999},
    "src": {"main": "one", "more": {"x": "y"}},
}


@dataclass(frozen=True)
class Built:
    """The outcome of a command: exit code, stdout, stderr, requests, and the events of a build."""

    code: int
    lines: list[str]
    errors: str
    requests: list[Request]
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def result(self) -> dict[str, Any]:
        return next(one for one in self.events if one["type"] == "result")

    @property
    def digest(self) -> str:
        return str(self.result["images"][0]["digest"])

    @property
    def states(self) -> dict[str, str]:
        return {one["step"]: one["state"] for one in self.events if one["type"] == "step"}

    def ran(self) -> set[str]:
        """The steps that ran, except `resolve`, which always runs."""
        return {step for step, state in self.states.items() if state == "ran" and not step.startswith("resolve ")}

    def reasons(self, step: str) -> list[dict[str, str]]:
        return next(one.get("reasons", []) for one in self.events if one.get("step") == step)

    @property
    def asked(self) -> list[str]:
        """Requests as `METHOD path`."""
        return sorted(f"{one.method} {one.path}" for one in self.requests)


@dataclass
class Bench:
    """A project in `path`, built for `server`, with its own store."""

    path: Path
    server: Server
    capfd: pytest.CaptureFixture[str]

    def write(self, text: str = APP, name: str = "detlayer.toml") -> None:
        (self.path / name).write_text(text.replace("{registry}", self.server.address))

    def command(self, *arguments: str) -> Built:
        """Run any command."""
        self.capfd.readouterr()
        self.server.clear()
        with directory(self.path):
            code = run(list(arguments))
        out, err = self.capfd.readouterr()
        return Built(code, out.splitlines(), err, list(self.server.requests))

    def build(self, *arguments: str) -> Built:
        """Run `detlayer build --json`."""
        built = self.command("build", "--json", *arguments)
        events = [json.loads(line) for line in built.lines]
        return Built(built.code, built.lines, built.errors, built.requests, events)

    def push_base(self, content: str = "base", *, name: str = "base:1", platforms: tuple[str, ...] = PLATFORMS) -> str:
        """Make and push an index of images with one layer each; return its digest."""
        place = make_tree(self.path.parent / "bases" / content, {})
        manifests = []
        for platform in platforms:
            safe = platform.replace("/", "-")
            make_tree(place / safe, {"etc": {"base": f"{content} {platform}"}})
            layout, layer, image = str(place / "oci"), str(place / f"{safe}.layer"), str(place / f"{safe}.image")
            self.expect("pack", str(place / safe), "--oci", layout, "--descriptor", layer)
            settings = place / "image.toml"
            settings.write_text('env = { PATH = "/bin" }\ncmd = ["sh"]')
            self.expect(
                "image",
                layer,
                "--oci",
                layout,
                "--platform",
                platform,
                "--descriptor",
                image,
                "--settings",
                str(settings),
            )
            manifests += ["--manifest", image]
        digest = self.expect("image", *manifests, "--oci", layout, "--tag", "base")
        self.expect("push", f"oci:{layout}:base", f"{self.server.address}/{name}")
        return digest

    def everything(self, repository: str) -> set[str]:
        """Return the digests of all manifests and blobs reachable from the tags of a repository."""
        found: set[str] = set()
        todo = list(self.server.tags(repository).values())
        while todo:
            digest = todo.pop()
            found.add(digest)
            stored = self.server.manifest(repository, digest)
            assert stored is not None
            document = json.loads(stored[1])
            todo += [one["digest"] for one in document.get("manifests", [])]
            found |= {one["digest"] for one in (*document.get("layers", []), document.get("config", {})) if one}
        return found

    def expect(self, *arguments: str) -> str:
        done = self.command(*arguments)
        assert done.code == 0, done.errors
        return done.lines[-1]


@contextmanager
def directory(path: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)

"""Images are loaded into engines by their own command, completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from detlayer.errors import ConfigError, OutputError
from detlayer.images import engine
from detlayer.layer.ports import Sink


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake `docker` that runs the commands in DOCKER_DOES."""
    path = tmp_path / "bin" / "docker"
    path.parent.mkdir()
    path.write_text('#!/bin/sh\necho "$@" >> "$0.calls"\neval "$DOCKER_DOES"\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    return path


def write(sink: Sink) -> None:
    for _ in range(300):
        sink.write(b"x" * 10_000)


def test_what_is_written_arrives(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_DOES", 'cat > "$0.got"')
    engine.load("docker", write)
    assert Path(f"{docker}.calls").read_text() == "load\n"
    assert Path(f"{docker}.got").stat().st_size == 3_000_000


@pytest.mark.parametrize(
    "does", ["cat > /dev/null; echo no such thing; exit 3", "echo no such thing; exit 1", "echo no such thing >&2"]
)
def test_an_engine_that_fails_says_why(docker: Path, monkeypatch: pytest.MonkeyPatch, does: str) -> None:
    """Whether it reads everything, nothing, or only exits."""
    monkeypatch.setenv("DOCKER_DOES", does)
    with pytest.raises(OutputError) as caught:
        engine.load("docker", write)
    assert caught.value.code == "engine-failed"
    assert "no such thing" in caught.value.message


def test_a_writer_that_fails_ends_the_engine(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_DOES", 'cat > /dev/null; touch "$0.loaded"')

    def fail(sink: Sink) -> None:
        sink.write(b"x")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine.load("docker", fail)
    assert not Path(f"{docker}.loaded").exists()


def test_an_engine_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for call in (lambda: engine.load("podman", write), lambda: engine.identity("podman", "x")):
        with pytest.raises(ConfigError) as caught:
            call()
        assert caught.value.code == "engine-missing"


@pytest.mark.parametrize(("does", "found"), [("echo sha256:ab", "sha256:ab"), ("echo ab", "sha256:ab"), ("exit 1", "")])
def test_what_an_engine_has(docker: Path, monkeypatch: pytest.MonkeyPatch, does: str, found: str) -> None:
    monkeypatch.setenv("DOCKER_DOES", does)
    assert engine.identity("docker", "x:y") == found

"""What `build` says: the cause of each step first, errors last, and as many steps as are listed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.command import CommandLine
from tests.trees import make_tree

PROJECT = """
[images.app]
base = "scratch"
platforms = ["linux/amd64", "linux/arm64"]
entrypoint = ["python3", "main.py"]

[[images.app.layers]]
name = "application"
sources = ["src/main.py:/opt/app/main.py"]

[[images.app.layers]]
name = "dist"
sources = ["dist:/opt/dist"]
"""


@pytest.fixture
def here(detlayer: CommandLine) -> Path:
    make_tree(detlayer.here, {"src": {"main.py": "print(1)\n"}, "dist": {"x": "x"}, "detlayer.toml": PROJECT})
    detlayer("build", "-o", "oci:out")
    return detlayer.here


def reasons(stderr: str) -> dict[str, list[str]]:
    """The reasons of each step, by its name."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in stderr.splitlines():
        if line.startswith("  because "):
            found[name].append(line.removeprefix("  because "))
        elif match := re.match(r"((?:pack|configure|assemble|index|write) [^:]+(?::out)?): ", line):
            name = match[1]
            found[name] = []
    return found


def test_an_edit_of_the_same_size_names_the_file(detlayer: CommandLine, here: Path) -> None:
    (here / "src" / "main.py").write_text("print(2)\n")
    said = detlayer("build", "-o", "oci:out", "--explain")
    found = reasons(said.stderr)
    assert found["pack app/application"] == ["/opt/app/main.py in the layer has another modification time and content"]
    assert found["configure app linux/amd64"] == ["layer application changed"]
    assert "sha256:" not in said.stderr
    (here / "src" / "main.py").write_text("print(3)\n")
    assert (
        "layer 0 application.diff-id changed: sha256:" in detlayer("build", "-o", "oci:out", "--explain", "-v").stderr
    )


def test_another_mode_names_the_file(detlayer: CommandLine, here: Path) -> None:
    (here / "src" / "main.py").chmod(0o755)
    found = reasons(detlayer("build", "-o", "oci:out", "--explain").stderr)
    assert found["pack app/application"] == ["/opt/app/main.py in the layer has another mode or owner"]


def test_a_setting_is_named_by_its_key(detlayer: CommandLine, here: Path) -> None:
    (here / "detlayer.toml").write_text(PROJECT.replace('"main.py"]', '"other.py"]'))
    found = reasons(detlayer("build", "-o", "oci:out", "--explain").stderr)
    assert found["configure app linux/arm64"] == [
        'entrypoint changed: ["python3", "main.py"] → ["python3", "other.py"]'
    ]
    assert "pack app/application" not in found


def test_the_number_of_steps_is_that_of_the_lines(detlayer: CommandLine, here: Path) -> None:
    (here / "src" / "main.py").write_text("print(3)\n")
    said = detlayer("build", "-o", "oci:out", "--explain")
    assert f"1 image: {len(reasons(said.stderr))} steps run," in said.stderr
    (here / "src" / "main.py").write_text("print(4)\n")
    said = detlayer("build", "-o", "oci:out")
    assert f"1 image: {len(reasons(said.stderr))} steps run," in said.stderr


def test_a_failed_build_ends_with_the_error(detlayer: CommandLine, here: Path) -> None:
    (here / "dist" / "x").unlink()
    (here / "dist").rmdir()
    said = detlayer("build", "-o", "oci:out")
    lines = said.stderr.splitlines()
    assert lines[0] == "pack app/dist: failed"
    assert lines[-2].startswith("error[source-missing]: ")
    assert lines[-1].startswith("  hint: ")
    assert "1 failed, 6 skipped" in lines[1]
    assert len(lines) == 4


def test_a_build_that_writes_nothing_says_how(detlayer: CommandLine, here: Path) -> None:
    assert detlayer("build").stderr.splitlines()[-1] == (
        "nothing was pushed or written: add --push, or an output such as -o oci:image"
    )
    assert "nothing was pushed" not in detlayer("build", "-o", "oci:out").stderr
    assert "nothing was pushed" not in detlayer("build", "--until", "pack").stderr

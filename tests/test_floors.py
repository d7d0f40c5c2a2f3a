"""The architecture as a test: imports run downwards, and the lower floors know no system (ARCHITECTURE.md)."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import detlayer

PACKAGE = Path(detlayer.__file__).parent
FLOORS: dict[str, float] = {
    **dict.fromkeys(("errors", "names", "oci", "entry", "ports", "finding"), 0),
    **dict.fromkeys(("tar", "chunk", "codec", "key", "layer", "line", "patterns", "pyc", "depfile"), 1),
    **dict.fromkeys(("magic", "blob", "untar", "form", "places", "innards", "audit", "recognise", "merge"), 1),
    **dict.fromkeys(("compare", "contents"), 1),
    **dict.fromkeys(("documents", "plan", "platforms", "lanes", "image", "config", "graph"), 1),
    "presence": 1.5,
    **dict.fromkeys(("tree", "sink", "spool", "layout", "registry", "store", "engine"), 2),
    **dict.fromkeys(
        (
            "packing",
            "reuse",
            "normalisation",
            "inspection",
            "difference",
            "verification",
            "remote",
            "publishing",
            "pulling",
            "building",
        ),
        3,
    ),
    "cli": 4,
}
OUTSIDE = {"os", "time", "random", "socket", "httpx", "click", "sqlite3", "pathlib", "subprocess"}
DOORS = {"__init__", "__main__"}  # the package's own front; lazy, and above everything


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """`tree/walk.py` is in the room `tree`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names that a module imports, anywhere in it, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            yield node.module, node.lineno
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def rooms_imported(path: Path) -> set[str]:
    found = {name.split(".")[1] for name, _ in imports(path) if name.startswith("detlayer.")}
    return {name for name in found if name in FLOORS}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_has_a_floor(path: Path) -> None:
    assert room(path) in FLOORS or room(path) in DOORS


@pytest.mark.parametrize("path", [path for path in modules() if room(path) in FLOORS], ids=room)
def test_imports_run_downwards(path: Path) -> None:
    """Edges never import a neighbour; the others may, without a cycle: recipes build on recipes."""
    here = room(path)
    for name in rooms_imported(path) - {here}:
        allowed = FLOORS[here] if FLOORS[here] != 2 else 1.5
        assert FLOORS[name] <= allowed, f"{here} imports {name}"


def test_no_cycles() -> None:
    graph = {name: set[str]() for name in FLOORS}
    for path in modules():
        if room(path) in FLOORS:
            graph[room(path)] |= rooms_imported(path) - {room(path)}
    while graph:
        free = {name for name, needs in graph.items() if not needs & graph.keys()}
        assert free, f"a cycle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


@pytest.mark.parametrize("path", [path for path in modules() if FLOORS.get(room(path), 9) <= 1], ids=room)
def test_lower_floors_know_no_system(path: Path) -> None:
    found = {name.split(".")[0] for name, _ in imports(path)}
    assert not found & OUTSIDE


@pytest.mark.parametrize("path", [path for path in modules() if room(path) != "cli"], ids=room)
def test_only_the_door_knows_click(path: Path) -> None:
    assert not {name.split(".")[0] for name, _ in imports(path)} & {"click", "rich"}


# What a build or push in which nothing changed starts with: to make one dataclass takes as long as thirty structs.
STARTED = {
    *("oci", "names", "entry", "documents", "patterns", "plan", "lanes", "image", "config", "graph"),
    *("layout", "registry", "store", "sink", "publishing", "pulling", "building"),
    *("codec", "layer", "line", "tree", "reuse", "packing"),
}


@pytest.mark.parametrize("path", [path for path in modules() if room(path) in STARTED], ids=room)
def test_values_are_structs(path: Path) -> None:
    """Credentials load when a registry asks for some, and leave secrets out of their `repr`, which structs can't."""
    assert ("dataclasses" in dict(imports(path))) == (path.name == "credentials.py")


def printing(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            found.append(f"line {node.lineno}: print")
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "sys"
            and node.attr.strip("_") in ("stdout", "stderr")
        ):
            found.append(f"line {node.lineno}: sys.{node.attr}")
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_console_prints(path: Path) -> None:
    """cli/pack.py may hand stdout on for `-o -`."""
    where = str(path.relative_to(PACKAGE))
    if where == "cli/console.py":
        assert printing(path)
        return
    found = printing(path)
    if where == "cli/pack.py":
        found = [what for what in found if not what.endswith("sys.stdout")]
    assert not found


@pytest.mark.parametrize("path", [path for path in modules() if room(path) not in ("cli", *DOORS)], ids=room)
def test_only_the_door_reads_the_environment(path: Path) -> None:
    names = {
        node.attr for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Attribute)
    }
    assert not names & {"environ", "getenv", "argv"}


def loaded(*arguments: str, cwd: Path | None = None) -> set[str]:
    """Names of the modules that a command has loaded when it exits."""
    script = (
        "import sys\n"
        "from detlayer.cli import run\n"
        f"code = run({list(arguments)!r})\n"
        "names = sorted(sys.modules)\n"
        "import json\n"
        "sys.stderr.write(json.dumps([code, names]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=cwd)
    code, names = json.loads(done.stderr.splitlines()[-1])
    assert code == 0
    return set(names)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
def test_start_up_loads_little(arguments: list[str]) -> None:
    names = loaded(*arguments)
    assert not names & {
        "rich",
        "httpx",
        "zstandard",
        "deflate",
        "pathspec",
        "blake3",
        "detlayer.layer",
        "detlayer.tree",
    }


NETWORK = {"detlayer.publishing", "detlayer.registry", "httpx", "ssl", "socket", "email", "ipaddress"}
RARE = {"json", "pathspec", "subprocess", "tempfile", "zstandard"}


LOCAL_PROJECT = """
[images.app]
base = "scratch"
platforms = ["linux/amd64"]
layers = [{ name = "own", sources = ["src:/app"] }]
"""


@pytest.mark.parametrize("arguments", [["pack", "src", "-o", "out"], ["build", "--output", "oci:out"]], ids=" ".join)
def test_what_asks_nobody_loads_no_network(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "main.py").write_text("print()\n")
    (tmp_path / "detlayer.toml").write_text(LOCAL_PROJECT)
    assert not loaded(*arguments, "--cache-dir", "cache", cwd=tmp_path) & {*NETWORK, *RARE}


def test_import_costs_nothing() -> None:
    script = "import sys; before = set(sys.modules); import detlayer; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "detlayer.packing" not in done.stdout
    assert "msgspec" not in done.stdout


def test_every_public_name_loads() -> None:
    for name in detlayer.__all__:
        assert getattr(detlayer, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = detlayer.nothing_of_the_kind

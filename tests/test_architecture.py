"""The architecture as a test: which room may import which, and which modules see no system (ARCHITECTURE.md)."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import detlayer
from tests.trees import make_tree

PACKAGE = Path(detlayer.__file__).parent
ROOT = Path(__file__).parent.parent

# Each room, and the rooms that it may import besides `errors`. A loose module is a room as well.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "explanations": set(),
    "filesystem": set(),
    "oci": set(),
    "layer": {"oci"},
    "checks": {"oci", "layer"},
    "tree": {"filesystem", "layer"},
    "output": {"filesystem", "oci", "layer"},
    "store": {"filesystem", "oci", "layer"},
    "registry": {"oci"},
    "images": {"filesystem", "oci", "layer", "output"},
    "transfer": {"oci", "images", "registry", "store"},
    "packing": {"filesystem", "oci", "layer", "tree", "output", "store"},
    "normalization": {"oci", "layer", "tree", "output", "images", "packing"},
    "inspection": {"oci", "layer", "images", "packing"},
    "difference": {"filesystem", "oci", "layer", "checks", "tree", "images"},
    "verification": {"filesystem", "oci", "layer", "checks", "tree", "images", "packing"},
    "building": {
        *("filesystem", "oci", "layer", "tree", "output", "store", "registry", "images", "transfer", "packing"),
    },
}
ROOMS["cli"] = set(ROOMS)
DOORS = {"__init__", "__main__"}  # the package's own front; lazy, and above everything

# What these make of their inputs cannot depend on the machine: they import none of OUTSIDE.
PURE_ROOMS = ("oci", "layer", "checks", "building/graph", "building/settings")
PURE = (
    "errors.py",
    "tree/patterns.py",
    "tree/source.py",
    "output/depfile.py",
    "transfer/workers.py",
    "transfer/plan.py",
    "transfer/plan_document.py",
)
OPENERS = {"building/commands.py", "store/directory.py", "registry/user.py"}
OUTSIDE = {"os", "time", "random", "socket", "httpx", "click", "sqlite3", "pathlib", "subprocess", "tempfile", "shutil"}


def modules(package: Path = PACKAGE) -> list[Path]:
    return sorted(package.rglob("*.py"))


def name_of(path: Path, package: Path = PACKAGE) -> str:
    return path.relative_to(package).as_posix()


def room(path: Path, package: Path = PACKAGE) -> str:
    """`tree/walk.py` is in the room `tree`."""
    return path.relative_to(package).parts[0].removesuffix(".py")


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
    return {name for name in found if name in ROOMS}


def wrong_imports(package: Path) -> list[str]:
    """Imports from rooms that a module's own room may not know."""
    return [
        f"{name_of(path, package)} imports {other}"
        for path in modules(package)
        if (here := room(path, package)) in ROOMS
        for other in sorted(rooms_imported(path) - ROOMS[here] - {here, "errors"})
    ]


def is_pure(path: Path, package: Path = PACKAGE) -> bool:
    name = name_of(path, package)
    return name in PURE or name.startswith(tuple(f"{one}/" for one in PURE_ROOMS))


def impure_imports(package: Path) -> list[str]:
    """Imports of what lies outside of the program, in modules that must not see it."""
    return [
        f"{name_of(path, package)} imports {other}"
        for path in modules(package)
        if is_pure(path, package)
        for other in sorted({name.split(".")[0] for name, _ in imports(path)} & OUTSIDE)
    ]


def test_every_module_is_in_a_room() -> None:
    assert {room(path) for path in modules()} - DOORS == set(ROOMS)


def test_rooms_import_only_what_they_may() -> None:
    assert wrong_imports(PACKAGE) == []


def test_pure_modules_see_no_system() -> None:
    assert [name for name in PURE if not (PACKAGE / name).exists()] == []
    assert impure_imports(PACKAGE) == []


def test_no_room_is_needed_by_what_it_needs() -> None:
    left = {name: set(needs) for name, needs in ROOMS.items()}
    while left:
        free = {name for name, needs in left.items() if not needs & left.keys() - {name}}
        assert free, f"a cycle among {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in free}


@pytest.mark.parametrize(
    ("where", "line", "what"),
    [
        ("oci/types.py", "from detlayer.layer.entry import Entry", "oci/types.py imports layer"),
        ("store/blobs.py", "import detlayer.registry.client", "store/blobs.py imports registry"),
        ("layer/tar.py", "def f():\n    from detlayer.tree import walk", "layer/tar.py imports tree"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, where: str, line: str, what: str) -> None:
    make_tree(tmp_path, {where.partition("/")[0]: {where.partition("/")[2]: f"{line}\n"}})
    assert wrong_imports(tmp_path) == [what]


@pytest.mark.parametrize(
    "line", ["import os", "import os.path", "from time import monotonic", "def f():\n    import os"]
)
def test_an_impure_import_is_found(tmp_path: Path, line: str) -> None:
    make_tree(
        tmp_path, {"layer": {"tar.py": f"{line}\n"}, "tree": {"walk.py": f"{line}\n", "patterns.py": f"{line}\n"}}
    )
    assert [found.partition(" ")[0] for found in impure_imports(tmp_path)] == ["layer/tar.py", "tree/patterns.py"]


def test_no_module_hides_a_public_function(tmp_path: Path) -> None:
    """A submodule `detlayer.pack` would replace the function once anything imports it."""
    for found in pkgutil.walk_packages(detlayer.__path__, "detlayer."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    for _ in range(2):
        for name in detlayer.__all__:
            assert not isinstance(getattr(detlayer, name), ModuleType), name
    functions = public_functions()
    assert {
        "pack",
        "verify",
        "diff",
        "normalize",
        "inspect",
        "push",
        "plan",
        "pull",
        "resolve",
        "build",
        "lock",
    } <= set(functions)
    tree, layer = str(make_tree(tmp_path / "tree", {"a": "x"})), str(tmp_path / "layer.tar.gz")
    for _ in range(2):
        made = detlayer.pack([tree], output=layer)
        assert detlayer.normalize(layer, output=str(tmp_path / "again.tar.gz")).digest == made.digest
        assert detlayer.verify([layer]).ok
        assert detlayer.diff(tree, tree).same
        assert detlayer.inspect(layer).entries == 1


def test_every_file_that_the_map_names_exists() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_]+/[a-z_/]*\.py)`", text)
    assert len(named) > 40
    assert [name for name in named if not (PACKAGE / name).exists() and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_functions_and_modules_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 450
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 60] == []


def public_functions() -> list[str]:
    return [name for name in detlayer.__all__ if inspect.isfunction(getattr(detlayer, name))]


@pytest.mark.parametrize("name", public_functions())
def test_public_functions_have_few_parameters_and_a_docstring(name: str) -> None:
    function = getattr(detlayer, name)
    assert len(inspect.signature(function).parameters) <= 7
    assert inspect.getdoc(function)


def test_public_values_have_a_docstring() -> None:
    for name in detlayer.__all__:
        assert inspect.getdoc(getattr(detlayer, name)), name


@pytest.mark.parametrize(
    "page", [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"], ids=lambda page: page.name
)
def test_documents_import_the_public_interface_only(page: Path) -> None:
    for program in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(program)):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("detlayer.")
                if node.module == "detlayer":
                    assert {alias.name for alias in node.names} <= set(detlayer.__all__)
            if isinstance(node, ast.Import):
                assert all(alias.name == "detlayer" or "detlayer" not in alias.name for alias in node.names)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "detlayer":
                assert node.attr in detlayer.__all__


@pytest.mark.parametrize("path", [path for path in modules() if room(path) != "cli"], ids=name_of)
def test_only_the_command_line_knows_click(path: Path) -> None:
    assert not {name.split(".")[0] for name, _ in imports(path)} & {"click", "rich"}


# What a build or push in which nothing changed loads: making one dataclass takes as long as thirty structs.
STARTED_ROOMS = {"oci", "tree", "output", "store", "registry", "images", "transfer", "packing", "building"}
STARTED = {
    f"layer/{name}.py" for name in ("entry", "tar", "chunking", "codec", "key", "bytecode", "writer", "pipeline")
}


@pytest.mark.parametrize(
    "path", [path for path in modules() if room(path) in STARTED_ROOMS or name_of(path) in STARTED], ids=name_of
)
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


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_only_the_console_prints(path: Path) -> None:
    """cli/pack.py may hand stdout on for `-o -`."""
    where = name_of(path)
    if where == "cli/console.py":
        assert printing(path)
        return
    found = printing(path)
    if where == "cli/pack.py":
        found = [what for what in found if not what.endswith("sys.stdout")]
    assert not found


@pytest.mark.parametrize("path", [path for path in modules() if room(path) not in ("cli", *DOORS)], ids=name_of)
def test_only_the_command_line_and_the_openers_read_the_environment(path: Path) -> None:
    """The openers are what Python programs call for the user's cache, registries and project."""
    if name_of(path) in OPENERS:
        return
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


NETWORK = {"detlayer.transfer.push", "detlayer.registry", "httpx", "ssl", "socket", "email", "ipaddress"}
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

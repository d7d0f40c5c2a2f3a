"""Write a first detlayer.toml for a project, detected by its files.

Dependencies are in a separate layer, since they change less often than the application.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, get_args

import msgspec

Ecosystem = Literal["python", "node", "jvm", "dotnet", "go"]
ECOSYSTEMS: tuple[Ecosystem, ...] = get_args(Ecosystem)

Read = Callable[[str], bytes | None]


class Starter(msgspec.Struct, frozen=True):
    """The template for a kind of project. `first` are the commands that create the sources of layers."""

    first: Sequence[str]
    base: str
    layers: Sequence[dict[str, Any]]
    settings: dict[str, Any]


def detect_ecosystem(names: Collection[str]) -> Ecosystem | None:
    """Detect the kind of a project by the names in its directory; None if unknown."""
    if any(name.endswith((".csproj", ".fsproj", ".vbproj", ".sln", ".slnx")) for name in names):
        return "dotnet"
    signs: tuple[tuple[Ecosystem, tuple[str, ...]], ...] = (
        ("go", ("go.mod",)),
        ("jvm", ("pom.xml", "build.gradle", "build.gradle.kts", "build.sbt")),
        ("python", ("pyproject.toml", "setup.py", "setup.cfg", "requirements.txt", "Pipfile")),
        ("node", ("package.json",)),
    )
    return next((kind for kind, files in signs if any(name in names for name in files)), None)


def write_starter(kind: Ecosystem, directory: str, names: Collection[str], read: Read) -> str:
    """Return the text of a first detlayer.toml for a project in a directory of that name."""
    name = _image_name(directory)
    starter = _STARTERS[kind](name, names, read)
    lines = ["# Created by `detlayer init`. `detlayer schema` describes all keys, also for editors."]
    if starter.first:
        lines += ["# Create the sources of the layers first:", *(f"#   {command}" for command in starter.first)]
    lines += [
        "",
        f"[images.{name}]",
        f"base = {_toml(starter.base)}",
        'platforms = ["linux/amd64", "linux/arm64"]',
        f"repositories = [{_toml(f'127.0.0.1:5000/{name}')}]",
        'tags = ["latest"]',
        *(f"{key} = {_toml(value)}" for key, value in starter.settings.items()),
    ]
    for layer in starter.layers:
        lines += ["", f"[[images.{name}.layers]]", *(f"{key} = {_toml(value)}" for key, value in layer.items())]
    return "\n".join(lines) + "\n"


def _python(name: str, names: Collection[str], read: Read) -> Starter:
    project = _table(_toml_of(read("pyproject.toml")).get("project"))
    module = re.sub(r"[^A-Za-z0-9_]", "_", str(project.get("name") or name))
    pip = "pip install --no-compile --only-binary :all:"
    if "requirements.txt" in names:
        # Wheels contain machine code, so each platform has its own.
        site = "build/site-packages-{arch}"
        first = [
            f"{pip} --platform manylinux2014_{machine} --target build/site-packages-{arch} -r requirements.txt"
            for arch, machine in (("amd64", "x86_64"), ("arm64", "aarch64"))
        ]
    else:
        site, first = "build/site-packages", ["pip install --no-compile --target build/site-packages ."]
    where = "src" if "src" in names else module if module in names else "."
    application: dict[str, Any] = {
        "name": "application",
        "sources": [f"{where}:/opt/app/{'' if where != module else module}"],
    }
    application["exclude"] = ["__pycache__/"]
    if where == ".":
        application["exclude"] += [".*", "build/", "dist/", "tests/", "*.egg-info/", "detlayer.*"]
    return Starter(
        first,
        "docker.io/library/python:3-slim",
        [
            {
                "name": "dependencies",
                "sources": [f"{site}:/opt/site-packages"],
                "exclude": ["__pycache__/", "bin/"],
            },
            application,
        ],
        {
            "entrypoint": ["python3", "-m", module],
            "env": {"PYTHONPATH": {"prepend": "/opt/app:/opt/site-packages"}},
            "workdir": "/opt/app",
            "user": "65532:65532",
        },
    )


def _node(name: str, names: Collection[str], read: Read) -> Starter:
    package = _json_of(read("package.json"))
    main = package.get("main")
    script = main.removeprefix("./") if isinstance(main, str) and main else "index.js"
    return Starter(
        ["npm ci --omit=dev"],
        "docker.io/library/node:lts-slim",
        [
            {
                "name": "dependencies",
                "sources": ["node_modules:/srv/app/node_modules"],
                "exclude": [".cache/", ".bin/"],
            },
            {
                "name": "application",
                "sources": [".:/srv/app"],
                "exclude": ["/node_modules/", ".*", "/test/", "detlayer.*"],
            },
        ],
        {
            "entrypoint": ["node", script],
            "env": {"NODE_ENV": "production"},
            "workdir": "/srv/app",
            "user": "65532:65532",
        },
    )


def _jvm(name: str, names: Collection[str], read: Read) -> Starter:
    classpath = "/opt/app/classes:/opt/app/lib/*"
    if "build.sbt" in names:
        own = f"*{name}*.jar"
        staged = ["target/universal/stage/lib:/opt/app/lib"]
        first = ["sbt stage"]
        libraries: dict[str, Any] = {"sources": staged, "exclude": [own]}
        application: dict[str, Any] = {"sources": staged, "exclude": ["/*", f"!/{own}"]}
    elif "pom.xml" in names:
        first = ["mvn -q package dependency:copy-dependencies -DincludeScope=runtime"]
        libraries = {"sources": ["target/dependency:/opt/app/lib"]}
        application = {"sources": ["target/classes:/opt/app/classes"]}
    else:
        first = [
            "./gradlew installDist",
            "mkdir -p build/app && cp -r build/classes/*/main/. build/app/  # and build/resources/main",
        ]
        libraries = {"sources": [f"build/install/{name}/lib:/opt/app/lib"], "exclude": [f"/{name}*.jar"]}
        application = {"sources": ["build/app:/opt/app/classes"]}
    return Starter(
        first,
        "docker.io/library/eclipse-temurin:21-jre",
        [{"name": "dependencies", **libraries}, {"name": "application", **application}],
        {"entrypoint": ["java", "-cp", classpath, "Main"], "workdir": "/opt/app", "user": "65532:65532"},
    )


def _dotnet(name: str, names: Collection[str], read: Read) -> Starter:
    projects = sorted(one for one in names if one.endswith((".csproj", ".fsproj", ".vbproj", ".sln", ".slnx")))
    project = projects[0]
    program = project.rpartition(".")[0]
    is_web = b"Microsoft.NET.Sdk.Web" in (read(project) or b"")
    own = [
        f"{program}.dll",
        f"{program}.pdb",
        f"{program}.deps.json",
        f"{program}.runtimeconfig.json",
        "appsettings*.json",
    ]
    return Starter(
        [f"dotnet publish {project} -c Release -p:UseAppHost=false -o build/publish"],
        f"mcr.microsoft.com/dotnet/{'aspnet' if is_web else 'runtime'}:8.0",
        [
            {"name": "dependencies", "sources": ["build/publish:/opt/app"], "exclude": own},
            {
                "name": "application",
                "sources": ["build/publish:/opt/app"],
                "exclude": ["/*", *(f"!/{one}" for one in own)],
            },
        ],
        {"entrypoint": ["dotnet", f"/opt/app/{program}.dll"], "workdir": "/opt/app", "user": "65532:65532"},
    )


def _go(name: str, names: Collection[str], read: Read) -> Starter:
    return Starter(
        [
            f"CGO_ENABLED=0 GOOS=linux GOARCH={one} go build -trimpath -o build/linux-{one}/{name} ."
            for one in ("amd64", "arm64")
        ],
        "gcr.io/distroless/static-debian12:nonroot",
        [{"name": "application", "sources": [f"build/{{os}}-{{arch}}/{name}:/usr/bin/{name}"]}],
        {"entrypoint": [f"/usr/bin/{name}"], "user": "65532:65532"},
    )


_STARTERS: dict[Ecosystem, Callable[[str, Collection[str], Read], Starter]] = {
    "python": _python,
    "node": _node,
    "jvm": _jvm,
    "dotnet": _dotnet,
    "go": _go,
}


def _image_name(directory: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", directory.lower()).strip("-") or "app"


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_of(data: bytes | None) -> dict[str, Any]:
    try:
        return tomllib.loads((data or b"").decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError):
        return {}


def _json_of(data: bytes | None) -> dict[str, Any]:
    try:
        return _table(json.loads(data or b"{}"))
    except (ValueError, RecursionError):
        return {}


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}

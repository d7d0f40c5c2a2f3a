"""The command that usually creates a missing source, judged by its name and the files beside it: only for hints."""

from __future__ import annotations

import fnmatch
import os

# (the first part of a path, a file beside it, the command); the first match counts.
_COMMANDS = (
    ("node_modules", "pnpm-lock.yaml", "pnpm install --frozen-lockfile"),
    ("node_modules", "yarn.lock", "yarn install --frozen-lockfile"),
    ("node_modules", "bun.lock*", "bun install --frozen-lockfile"),
    ("node_modules", "package-lock.json", "npm ci"),
    ("node_modules", "package.json", "npm install"),
    ("vendor", "go.mod", "go mod vendor"),
    ("vendor", "composer.json", "composer install --no-dev"),
    (".venv", "uv.lock", "uv sync --frozen"),
    (".venv", "poetry.lock", "poetry install"),
    ("target", "pom.xml", "mvn package"),
    ("target", "Cargo.toml", "cargo build --release"),
    ("target", "build.sbt", "sbt stage"),
    ("build", "gradlew", "./gradlew build"),
    ("build", "build.gradle*", "gradle build"),
    ("bin", "*.*proj", "dotnet publish -c Release"),
    ("bin", "*.sln", "dotnet publish -c Release"),
    ("publish", "*.*proj", "dotnet publish -c Release -o publish"),
    *(
        (directory, lock, f"{manager} run build")
        for directory in ("dist", "build", "out", ".next", ".output", ".svelte-kit")
        for lock, manager in (
            ("pnpm-lock.yaml", "pnpm"),
            ("yarn.lock", "yarn"),
            ("bun.lock*", "bun"),
            ("package.json", "npm"),
        )
    ),
    ("dist", "pyproject.toml", "python -m build"),
    ("dist", "setup.py", "python -m build"),
)


def find_build_command(missing: bytes) -> str | None:
    """Return the command that probably creates a path; None if nothing is known about it."""
    above, first = os.path.split(os.path.abspath(os.fsdecode(missing)))
    while first:
        rules = [(beside, command) for directory, beside, command in _COMMANDS if directory == first]
        try:
            names = os.listdir(above) if rules else []
        except (OSError, ValueError):
            names = []
        for beside, command in rules:
            if fnmatch.filter(names, beside):
                return command
        above, first = os.path.split(above)
    return None

"""podman and buildah with a storage of their own, and a shell that fits into a layer."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.e2e.commands import run
from tests.privileges import program

GREET = ("/usr/bin/sh", "-c", 'read line </srv/greeting; echo "$line"')


def shell_sources() -> list[str]:
    """What `detlayer pack` has to be told so that a layer has a shell."""
    shell = os.path.realpath("/bin/sh")
    parents = [argument for name in ("lib", "lib64") for argument in ("--allow-parent", name)]
    return [f"{shell}:/usr/bin/sh", *(f"{path}:{path}" for path in _libraries(shell)), *parents]


def podman(home: Path, *arguments: str | Path) -> str:
    """Run podman; `home` is where it stores images, and must be a short path."""
    runs = ["--cgroup-manager", "cgroupfs", "--runtime", program("runc")]
    return run(program("podman"), *_stored(home), *runs, *arguments).decode()


def podman_run(home: Path, image: str, *command: str) -> str:
    limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]
    return podman(home, "run", "--rm", "--network=none", "--tls-verify=false", *limits, image, *command)


def buildah(home: Path, *arguments: str | Path) -> str:
    return run(program("buildah"), *_stored(home), *arguments).decode()


def _stored(home: Path) -> list[str | Path]:
    return ["--root", home / "root", "--runroot", home / "runroot", "--storage-driver", "vfs"]


def _libraries(executable: str) -> list[str]:
    """The shared objects that a program loads, its loader among them."""
    said = run(program("ldd"), executable).decode()
    return re.findall(r"(/\S+) \(0x", said)

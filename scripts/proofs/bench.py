"""A workspace for runs: inputs, outputs, a cache and a registry, which can be put back to how they were."""

from __future__ import annotations

import hashlib
import json
import os
import py_compile
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from scripts.proofs.disk import Disk
from scripts.proofs.warm import Said, Warm
from tests.contracts.servers import RealRegistry

TEMPORARY = re.compile(r"(^|/)\.detlayer-[^/]*\.tmp$|\.part$|(^|/)(oci-layout|index\.json)\.[0-9a-f]{12}$")
AGED_S = 3.2  # a tree that is older can be known by its scan (SPEC 10.3)
_SETTLED_S = 0.06  # a file that is older can be known by its stat record (SPEC 10.2)
_VOLATILE = ("out", "project", "cache", "tmp", "check", "registry/storage")
_PROJECT = """
[images.app]
base = "{registry}/base:1"
platforms = ["linux/amd64"]
repositories = ["{registry}/team/app"]
tags = ["1"]
entrypoint = ["/srv/app/main.py"]

[[images.app.layers]]
name = "source"
sources = ["../tree:/srv/app"]

[[images.app.layers]]
name = "data"
sources = ["../other:/srv/data"]
"""

Snapshot = dict[str, str]


class Bench:
    """A directory with everything that a command works on. With `on_disk`, the cache is a disk of its own."""

    def __init__(self, place: Path, warm: Warm, *, on_disk: bool = False) -> None:
        self.place = place
        for name in ("out", "project", "tmp", "home", "in", "registry", "cache", "check"):
            (place / name).mkdir(parents=True)
        self._warm = warm
        self._registry: RealRegistry | None = None
        self.disk = Disk(place / "disk.img", place / "cache") if on_disk else None
        self._made_at = 0.0
        self._kept: dict[str, tuple[os.stat_result, bytes]] = {}
        self._directories: set[str] = set()
        self._image = b""
        self._make_inputs()

    def close(self) -> None:
        self._unmount_others()
        if self._registry is not None:
            self._registry.close()
        if self.disk is not None:
            self.disk.close()
        shutil.rmtree(self.place)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failed: object) -> None:
        self.close()

    # -- running

    def run(self, *arguments: str, trace: Sequence[str] | None = None, file_bytes: int | None = None) -> Said:
        """Run detlayer in the workspace; `{registry}` is the registry's address."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.place / "home"),
            "TMPDIR": str(self.place / "tmp"),
            "DETLAYER_CACHE_DIR": str(self.place / "cache"),
        }
        if any("{registry}" in one for one in arguments):
            arguments = tuple(one.replace("{registry}", self.registry.direct_address) for one in arguments)
        return self._warm.run(arguments, self.place, environment, trace=trace, file_bytes=file_bytes)

    def expect(self, *arguments: str) -> Said:
        said = self.run(*arguments)
        if said.exit != 0:
            raise RuntimeError(f"{' '.join(arguments)}: exit {said.exit}\n{said.stdout}{said.stderr}")
        time.sleep(_SETTLED_S)
        return said

    def is_ours(self, path: str) -> bool:
        """Tell whether a path is of the workspace, or what a run prints to."""
        return path.startswith(f"{self.place}/") or path == str(self._warm.stdout)

    @property
    def stderr(self) -> Path:
        """Where runs complain."""
        return self._warm.stderr

    @property
    def registry(self) -> RealRegistry:
        if self._registry is None:
            self._registry = RealRegistry("open", self.place / "registry")
        return self._registry

    # -- making

    def age(self) -> None:
        """Wait until the tree is old enough to be known by its scan."""
        time.sleep(max(0.0, self._made_at + AGED_S - time.time()))

    def _make_inputs(self) -> None:
        tree = self.place / "tree"
        for name in ("pkg/__pycache__", "data", "empty", "more/deep"):
            (tree / name).mkdir(parents=True)
        (tree / "main.py").write_text("import pkg.m\nprint(pkg.m)\n")
        (tree / ".detlayerignore").write_text("*.log\n")
        (tree / "x.log").write_text("not packed\n")
        for name in ("m", "n"):
            source = tree / "pkg" / f"{name}.py"
            source.write_text(f"def {name}() -> int:\n    return 1\n")
            os.utime(source, (1_700_000_000, 1_700_000_000))
        py_compile.compile(str(tree / "pkg/m.py"), cfile=str(tree / "pkg/m.pyc"), dfile="m.py", doraise=True)
        py_compile.compile(
            str(tree / "pkg/n.py"), cfile=str(tree / "pkg/__pycache__/n.cpython-311.pyc"), dfile="n.py", doraise=True
        )
        (tree / "data" / "random").write_bytes(_random_bytes(300_000))
        (tree / "data" / "text").write_text("".join(f"line {i} of a text\n" for i in range(5000)))
        (tree / "more" / "link").symlink_to("../main.py")
        os.link(tree / "main.py", tree / "more" / "deep" / "again.py")
        other = self.place / "other"
        shutil.copytree(tree, other, symlinks=True)
        (other / "data" / "text").write_text("another text\n")
        (other / "pkg" / "m.pyc").unlink()
        (self.place / "project" / "detlayer.toml").write_text(_PROJECT)
        self._made_at = time.time()

    def make_layers(self) -> None:
        """Make layer files of two trees, and a tar in no order."""
        self.expect("pack", "tree:/srv/app", "-o", "in/a.tar.gz", "--no-cache", "-q")
        self.expect("pack", "other:/srv/app", "-o", "in/b.tar.zst", "--no-cache", "-q")
        self.expect("pack", "tree:/srv/app", "-o", "in/c.tar.gz", "--no-cache", "-q")
        with tarfile.open(self.place / "in" / "any.tar", "w") as tar:
            tar.add(self.place / "tree", "srv/app")
            tar.add(self.place / "other" / "data", "srv/app/data")

    def make_image(self) -> None:
        """Make an image of two layers in `in/image`."""
        self.expect("pack", "tree:/srv/app", "--oci", "in/image", "--descriptor", "in/one.json", "--no-cache", "-q")
        self.expect("pack", "other:/srv/data", "--oci", "in/image", "--descriptor", "in/two.json", "--no-cache", "-q")
        self.expect("image", "in/one.json", "in/two.json", "--oci", "in/image", "--tag", "1", "-q")

    def make_base(self) -> None:
        """Push a base for the project, and write its address into detlayer.toml."""
        self.make_image()
        self.expect("push", "oci:in/image:1", "{registry}/base:1", "--no-cache", "-q")
        config = self.place / "project" / "detlayer.toml"
        config.write_text(_PROJECT.replace("{registry}", self.registry.direct_address))

    # -- putting back

    def capture(self) -> None:
        """Keep what `restore` brings back. Files that nobody touches keep their stat records."""
        if self.disk is not None:
            self._image = self.disk.save()
        self._kept = {path: (os.lstat(path), Path(path).read_bytes()) for path in self._files()}
        self._directories = set(self._folders())

    def restore(self) -> None:
        self._unmount_others()
        if self.disk is not None:
            self.disk.load(self._image)
        for path in self._files():
            if path not in self._kept:
                os.unlink(path)
        for path in sorted(self._folders(), reverse=True):
            if path not in self._directories:
                os.rmdir(path)
        for path in sorted(self._directories):
            os.makedirs(path, exist_ok=True)
        for path, (status, data) in self._kept.items():
            try:
                now = os.lstat(path)
                if (now.st_ino, now.st_size, now.st_ctime_ns) == (status.st_ino, status.st_size, status.st_ctime_ns):
                    continue
            except FileNotFoundError:
                pass
            Path(path).write_bytes(data)
            os.chmod(path, status.st_mode & 0o7777)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            self._kept[path] = os.lstat(path), data

    def _unmount_others(self) -> None:
        """Unmount what a run has left mounted."""
        for line in Path("/proc/mounts").read_text().splitlines():
            at = line.split()[1].encode().decode("unicode_escape").encode("latin-1").decode()
            if at.startswith(f"{self.place}/tmp/"):
                subprocess.run(["umount", "--lazy", at], check=False)

    def _files(self) -> list[str]:
        return [os.path.join(at, name) for at, _, names in self._walk() for name in names]

    def _folders(self) -> list[str]:
        return [os.path.join(at, name) for at, names, _ in self._walk() for name in names]

    def _walk(self) -> list[tuple[str, list[str], list[str]]]:
        homes = [name for name in _VOLATILE if name != "cache" or self.disk is None]
        return [found for name in homes for found in os.walk(self.place / name)]

    # -- looking

    def results(self) -> Snapshot:
        """Tell what outputs and registry hold: paths, and digests of contents."""
        found = {}
        for name in ("out", "project"):
            for at, _, names in os.walk(self.place / name):
                for one in names:
                    path = Path(at) / one
                    found[str(path.relative_to(self.place))] = _sha256(path)
        storage = self.place / "registry" / "storage" / "docker" / "registry" / "v2"
        for path in storage.rglob("*"):
            if path.name == "link" and "_uploads" not in path.parts:
                found[str(path.relative_to(self.place))] = path.read_text()
            elif path.name == "data" and "blobs" in path.parts:
                found[f"registry blob {path.parent.name}"] = _sha256(path)
        return found

    def temporaries(self) -> list[str]:
        """List files that no run may leave behind."""
        found = []
        for name in ("out", "project", "cache", "tmp"):
            for at, _, names in os.walk(self.place / name):
                for one in names:
                    path = str((Path(at) / one).relative_to(self.place))
                    if "detlayer-bug-" in path:
                        continue
                    if TEMPORARY.search(path) or path.startswith(("cache/incoming/", "tmp/")):
                        found.append(path)
        return sorted(found)

    def blobs(self) -> list[Path]:
        """List the blobs of the cache."""
        home = self.place / "cache" / "oci" / "blobs" / "sha256"
        return sorted(home.iterdir()) if home.is_dir() else []

    def wrong_blobs(self) -> list[str]:
        """List blobs of the cache that are not what their name says."""
        return [path.name for path in self.blobs() if len(path.name) == 64 and _sha256(path) != path.name]


def is_whole(path: str, content: str, place: Path) -> bool:
    """Tell whether a file that is in neither state is right by itself, as a blob or the index of a new layout is."""
    name = path.rpartition("/")[2].removeprefix("registry blob ")
    if len(name) == 64 and name == content:
        return True
    if name == "index.json":
        document = json.loads((place / path).read_bytes())
        return bool(document == {"manifests": [], "mediaType": document.get("mediaType"), "schemaVersion": 2})
    return name == "oci-layout" or path.startswith("registry/") or ".detlayer/" in path


def _random_bytes(size: int) -> bytes:
    return b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(size // 32 + 1))[:size]


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"

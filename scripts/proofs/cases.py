"""The commands that faults are put into, each with the state that it starts from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts.proofs.bench import Bench

Command = tuple[str, ...]

_PACK: Command = ("pack", "tree:/srv/app", "-j", "1", "-q")
_FILE: Command = (*_PACK, "-o", "out/app.tar.gz", "--descriptor", "out/app.json", "--depfile", "out/app.d")
_LAYOUT: Command = (*_PACK, "--oci", "out/image", "--descriptor", "out/app.json")
_BUILD: Command = ("build", "-f", "project/detlayer.toml", "-j", "1", "-q")
_TO_LAYOUT: Command = (*_BUILD, "-o", "oci:out/image")
_TO_ARCHIVE: Command = (*_BUILD, "-o", "oci-archive:out/image.tar")
_TO_DOCKER: Command = (*_BUILD, "-o", "docker-archive:out/docker.tar")
_TO_REGISTRY: Command = (*_BUILD, "--push")
_PUSH: Command = ("push", "oci:in/image:1", "{registry}/team/app:1", "-q")
_PULL: Command = ("pull", "{registry}/base:1", "-o", "oci:out/image", "-q")


@dataclass(frozen=True)
class Case:
    """A command and the state that it starts from.

    The command must end as it does without a fault, or with a clear error; then `after` must end as it does without
    a fault, from the state that the command left. `may_say_no`: it may find what a fault did (exit 1).
    """

    name: str
    command: Command
    prepare: Callable[[Bench], None]
    after: tuple[Command, ...] = ()
    checks: tuple[Command, ...] = ()  # must end with 0 behind a run that ended with 0
    loose: str = ""  # an output whose bytes may differ: `checks` judge it
    claim: str = ""  # finds in what is printed how many blobs the cache has
    may_say_no: bool = False
    uses_blobs: bool = False  # of the cache: it is to be right if they rot
    exit: int = 0


def _nothing(bench: Bench) -> None:
    pass


def _ran(*commands: Command, remove: str = "", is_aged: bool = False) -> Callable[[Bench], None]:
    """Prepare by running commands twice, and by removing outputs. A tree that is aged can be known by its scan."""

    def prepare(bench: Bench) -> None:
        if is_aged:
            bench.age()
        if any("project/detlayer.toml" in one for one in commands):
            bench.make_base()
        for command in (*commands, *commands):
            bench.expect(*command)
        for name in remove.split():
            _remove(bench.place / "out" / name)

    return prepare


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _changed(bench: Bench) -> None:
    _ran(_FILE)(bench)
    (bench.place / "tree" / "pkg" / "added.py").write_text("added = True\n")


def _torn(bench: Bench) -> None:
    """Leave one of two layers of the project in the cache."""
    _ran(_TO_LAYOUT, remove="image")(bench)
    (bench.place / "other" / "more" / "added").write_text("added\n")


def _pushed(bench: Bench) -> None:
    bench.make_image()
    bench.expect(*_PUSH)


def _moved(bench: Bench) -> None:
    """Let the tag name another image, so that a push relies on what it remembers of blobs."""
    _pushed(bench)
    bench.expect("image", "in/one.json", "--oci", "in/image", "--tag", "2", "-q")
    bench.expect("push", "oci:in/image:2", "{registry}/team/app:1", "--no-cache", "-q")


def _exported(bench: Bench) -> None:
    _ran(_FILE)(bench)
    bench.expect("cache", "export", "in/cache.tar", "-q")
    bench.expect("cache", "clear", "-q")
    _remove(bench.place / "out" / "app.tar.gz")


def _filled(bench: Bench) -> None:
    _ran(_FILE)(bench)
    bench.expect("pack", "other:/srv/app", "-o", "out/other.tar.zst", "-q")


CASES = (
    Case("pack-cold", _FILE, _nothing),
    Case("pack-kept", _FILE, _ran(_FILE, is_aged=True)),
    Case("pack-copied", _FILE, _ran(_FILE, remove="app.tar.gz app.json app.d", is_aged=True), uses_blobs=True),
    Case("pack-changed", _FILE, _changed, uses_blobs=True),
    Case("pack-layout", _LAYOUT, _nothing),
    Case("pack-layout-copied", _LAYOUT, _ran(_LAYOUT, remove="image app.json"), uses_blobs=True),
    Case("pack-no-cache", (*_FILE, "--no-cache"), _nothing),
    Case(
        "normalize",
        ("normalize", "in/any.tar", "-o", "out/n.tar.gz", "--descriptor", "out/n.json", "-j", "1", "-q"),
        Bench.make_layers,
    ),
    Case(
        "normalize-layout",
        ("normalize", "in/any.tar", "--oci", "out/image", "--descriptor", "out/n.json", "-j", "1", "-q"),
        Bench.make_layers,
    ),
    Case("diff-trees", ("diff", "tree", "other"), _nothing, exit=1),
    Case("diff-layers", ("diff", "in/a.tar.gz", "in/b.tar.zst"), Bench.make_layers, exit=1),
    Case("diff-same", ("diff", "in/a.tar.gz", "in/c.tar.gz"), Bench.make_layers),
    Case("verify-layer", ("verify", "in/a.tar.gz"), Bench.make_layers),
    Case("verify-image", ("verify", "oci:in/image:1"), Bench.make_image),
    Case("build-layout", _TO_LAYOUT, Bench.make_base),
    Case("build-layout-copied", _TO_LAYOUT, _ran(_TO_LAYOUT, remove="image", is_aged=True), uses_blobs=True),
    Case("build-layout-changed", _TO_LAYOUT, _torn, uses_blobs=True),
    Case("build-archive", _TO_ARCHIVE, Bench.make_base),
    Case("build-archive-copied", _TO_ARCHIVE, _ran(_TO_ARCHIVE, remove="image.tar"), uses_blobs=True),
    Case("build-docker-copied", _TO_DOCKER, _ran(_TO_DOCKER, remove="docker.tar"), uses_blobs=True),
    Case("build-push", _TO_REGISTRY, Bench.make_base),
    Case("build-push-copied", _TO_REGISTRY, _ran(_TO_LAYOUT), uses_blobs=True),
    Case("push", _PUSH, Bench.make_image),
    Case("push-moved", _PUSH, _moved),
    Case("pull", _PULL, Bench.make_base),
    Case("lock", ("lock", "-f", "project/detlayer.toml", "-j", "1", "-q"), Bench.make_base),
    Case("cache-gc", ("cache", "gc", "--max-size", "0", "-q"), _filled, after=(_FILE,), claim=r"; ([\d,]+) are left"),
    Case(
        "cache-verify", ("cache", "verify", "-q"), _filled, after=(_FILE,), claim=r"([\d,]+) blobs, ", may_say_no=True
    ),
    Case(
        "cache-export",
        ("cache", "export", "out/cache.tar", "-q"),
        _filled,
        after=(_FILE, ("cache", "export", "out/cache.tar", "-q")),
        checks=(
            ("cache", "import", "out/cache.tar", "--cache-dir", "check", "-q"),
            (*_PACK, "-o", "check/app.tar.gz", "--cache-dir", "check"),
        ),
        loose="out/cache.tar",
        uses_blobs=True,
    ),
    Case("cache-import", ("cache", "import", "in/cache.tar", "-q"), _exported, after=(_FILE,)),
)

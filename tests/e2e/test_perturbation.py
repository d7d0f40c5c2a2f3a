"""Sources packed again under perturbation, and builds run twice: good ones pass, and every check can fail."""

from __future__ import annotations

import json
import os
import py_compile
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import detlayer
from detlayer.errors import ConfigError, TreeError
from detlayer.packing.options import PackOptions
from detlayer.verification import VerifyOptions, verify
from tests.privileges import program
from tests.trees import File, Link, make_tree

ONE_RUN = VerifyOptions(runs=1)
HERE = VerifyOptions(environment=os.environ)

ALWAYS = {
    "order of creation",
    "readdir order",
    "absolute path",
    "working directory",
    "TZ",
    "LC_ALL",
    "HOME",
    "PYTHONHASHSEED",
    "umask",
    "workers",
}
WHEN_NO_INPUT = {"file times", "file modes", "hard links"}


@pytest.fixture
def tree(src: Path) -> Path:
    make_tree(
        src,
        {
            "app": {"main.py": "print('hi')\n", "zeta.txt": "z", "alpha.txt": "z", "empty": "", "also-empty": ""},
            "bin": {"run": File(b"#!/bin/sh\n", 0o755), "link": Link(b"run")},
            "déjà vu": {".hidden": "x"},
            ".detlayerignore": "*.log\n",
            "noise.log": "x",
        },
    )
    py_compile.compile(str(src / "app" / "main.py"), dfile="/srv/app/main.py")
    (src / "app" / "hard.txt").hardlink_to(src / "app" / "zeta.txt")
    return src


def snapshot(tree: Path) -> dict[str, Any]:
    found = {}
    for path in sorted(tree.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_mode, status.st_uid, status.st_mtime_ns, status.st_nlink, status.st_ctime_ns)
    return found


def command(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "detlayer", "verify", "--json", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=None if environment is None else {**os.environ, **environment},
    )
    assert done.returncode in (0, 1), done.stderr
    document = json.loads(done.stdout)
    assert document["ok"] is (done.returncode == 0)
    return dict(document)


# -- sources


def test_a_good_tree_with_all_perturbations_listed(tree: Path) -> None:
    """SPEC 1.4."""
    before = snapshot(tree)
    document = command(f"{tree}:/srv")
    [target] = document["targets"]
    assert document["ok"], target["failures"]
    applied = {one["what"]: one["values"] for one in target["applied"]}
    left_out = {one["what"]: one["reason"] for one in target["left_out"]}
    assert applied.keys() >= ALWAYS | WHEN_NO_INPUT
    assert all(len(applied[what]) == 3 for what in ("umask", "TZ", "workers", "readdir order", "absolute path"))
    # What could not be done here is said, never passed over in silence.
    assert {"time of day", "processors", "owner"} <= applied.keys() | left_out.keys()
    assert all(left_out.values())
    assert snapshot(tree) == before


def test_it_is_what_pack_packs(tree: Path) -> None:
    layer = detlayer.pack([f"{tree}:/srv"])
    report = verify([f"{tree}:/srv"], against=str(layer.digest), options=ONE_RUN)
    assert report.ok
    assert report.targets[0].layers[0].key == layer.key
    assert not verify([f"{tree}:/srv"], against="sha256:" + "0" * 64, options=ONE_RUN).ok


@pytest.mark.parametrize(
    "options",
    [
        {"profile": detlayer.Profile(mtime=detlayer.Mtime("source"), mode="source", owner=None)},
        {"profile": detlayer.Profile(mtime=detlayer.Mtime("clamp", 1_000_000_000))},
        {"selection": detlayer.Selection(hardlinks="preserve")},
        {"selection": detlayer.Selection(retime_pyc=False, special="skip"), "exclude": ["__pycache__/"]},
        {"compression": "zstd:19"},
        {"profile": detlayer.Profile(xattrs=("user.*",))},
    ],
    ids=["source", "clamp", "preserve", "no-retime", "zstd", "xattrs"],
)
def test_what_is_input_is_kept(tree: Path, options: dict[str, Any]) -> None:
    os.mkfifo(tree / "fifo")
    options.setdefault("selection", detlayer.Selection(special="skip"))
    options["exclude"] = [*options.get("exclude", ()), "fifo"]
    how = VerifyOptions(PackOptions(**options))
    report = verify([f"{tree}:/srv", f"{tree / 'bin' / 'run'}:/opt/"], options=how)
    assert report.ok, report.findings


def test_rules_go_along(tree: Path) -> None:
    from detlayer.tree.patterns import parse_mode_rules, parse_owner_rules

    rules = detlayer.Profile(
        mode_rule=parse_mode_rules(["*.py=0600"]), owner_rule=parse_owner_rules(["/srv/app/**=7:8"])
    )
    assert verify([f"{tree}:/srv"], options=VerifyOptions(PackOptions(profile=rules), runs=1)).ok
    with pytest.raises(ConfigError) as caught:
        verify(
            [f"{tree}:/srv"],
            options=VerifyOptions(PackOptions(profile=detlayer.Profile(mode_rule=lambda path, is_dir: None)), runs=1),
        )
    assert caught.value.code == "rules-not-portable"


def test_errors_of_a_run_are_those_of_pack(tree: Path) -> None:
    os.mkfifo(tree / "fifo")
    with pytest.raises(TreeError) as caught:
        verify([tree], options=ONE_RUN)
    assert caught.value.code == "special-files"


def test_a_tree_is_not_copied_into_itself(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tree))
    with pytest.raises(ConfigError) as caught:
        verify([tree])
    assert caught.value.code == "temporary-in-source"
    assert verify([tree], options=VerifyOptions(PackOptions(exclude=["detlayer-*"]), runs=1)).ok


def test_what_pack_warns_of_is_noted(tree: Path) -> None:
    os.mkfifo(tree / "fifo")
    report = verify([tree], options=VerifyOptions(PackOptions(selection=detlayer.Selection(special="skip")), runs=1))
    assert ["special-skipped" in note for note in report.targets[0].notes] == [True]


# -- the check can fail: a packer with a fault, put before ours by a sitecustomize on PYTHONPATH

FAULTS = {
    # names stay as the file system lists them
    "entry-order": """
import sys
import detlayer.layer.writer
import detlayer.tree
sys.modules["detlayer.tree.walk"].order_names = list
detlayer.layer.writer.OrderChecker.check = lambda self, entry: None
""",
    "mtime": """
from detlayer.layer.entry import Profile
Profile.time_of = lambda self, seconds, path: max(seconds, 0)
""",
    "owner": """
import sys
from detlayer.tree.walk import Walk
from msgspec import structs
walk = sys.modules["detlayer.tree.walk"]
normalize = walk.normalize
walk.normalize = lambda entry, profile: structs.replace(normalize(entry, profile), uid=entry.uid)
""",
    "umask": """
import sys
from detlayer.tree.walk import Walk
from msgspec import structs
walk = sys.modules["detlayer.tree.walk"]
normalize = walk.normalize
def leaky(entry, profile):
    made = normalize(entry, profile)
    return structs.replace(made, mode=entry.mode) if entry.kind != "symlink" else made
walk.normalize = leaky
""",
    "hardlink-form": """
from detlayer.tree.walk import Walk
from msgspec import structs
file = Walk._file
def leaky(self, path, found):
    self.selection = structs.replace(self.selection, hardlinks="preserve")
    return file(self, path, found)
Walk._file = leaky
""",
    # something goes by PYTHONHASHSEED
    "content": """
from detlayer.tree.disk import FileContent
read = FileContent.read_into
def leaky(self, buffer):
    count = read(self, buffer)
    if count:
        buffer[count - 1] = hash("a") & 0x7f
    return count
FileContent.read_into = leaky
""",
    # something goes by the time zone, in the blob alone
    "chunking": """
import time
from detlayer.layer.codec import Codec
compressor = Codec.compressor
def leaky(self):
    made = compressor(self)
    return (lambda view: made(view[:512]) + made(view[512:])) if time.timezone == -14 * 3600 else made
Codec.compressor = leaky
""",
}
# What the audit of the plain run may say beside it.
BESIDE = {
    "mtime": {"pyc-timestamp"},
    "umask": {"mode"},
    "content": {"pyc-timestamp", "readdir-order", "build-path-in-content"},
}


@pytest.mark.parametrize("trap", FAULTS)
def test_a_faulty_packer_is_found_and_named(tree: Path, tmp_path: Path, trap: str) -> None:
    if trap == "owner" and os.geteuid() != 0:
        pytest.skip("root")
    (tmp_path / "fault").mkdir()
    (tmp_path / "fault" / "sitecustomize.py").write_text(FAULTS[trap])
    source = str(Path(detlayer.__file__).parent.parent)
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "fault"), source])}
    document = command(f"{tree}:/srv", environment=environment)
    assert not document["ok"]
    counts = document["targets"][0]["failures"]["counts"]
    assert trap in counts
    assert counts.keys() - {trap} <= BESIDE.get(trap, set()), counts


# -- builds


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    here = tmp_path / "project"
    make_tree(here, {"src": {name: name for name in "abcdefgh"}, "out": {"stale": "from before"}})
    monkeypatch.chdir(here)
    return here


def rebuilt(build: str, **options: Any) -> dict[str, set[str]]:
    """Trap → paths of what two builds differ in."""
    report = verify(
        rebuild=f"mkdir out; {build}",
        output="out",
        options=VerifyOptions(PackOptions(**options), environment=os.environ),
    )
    found: dict[str, set[str]] = {}
    for finding in report.findings:
        found.setdefault(finding.trap, set()).add(finding.path)
    assert report.ok is not bool(found)
    return found


def test_a_good_build(project: Path) -> None:
    report = verify(
        rebuild="mkdir out; cat src/* > out/all", output="out", options=VerifyOptions(environment=os.environ)
    )
    assert report.ok, report.findings
    [target] = report.targets
    what = {one.what for one in target.applied} | {name for name, _ in target.left_out}
    expected = {"absolute path", "time of day", "TZ", "LC_ALL", "HOME", "PYTHONHASHSEED", "umask", "processors"}
    assert what >= expected | {"readdir order"}
    assert [layer.entries for layer in target.layers] == [1, 1]
    assert (project / "out" / "stale").exists()
    assert stat.S_IMODE((project / "src").stat().st_mode) == 0o755


def test_date_path_random_home_and_umask_are_found(project: Path) -> None:
    found = rebuilt(
        "date > out/date; date +%s > out/epoch; pwd > out/path; od -An -N16 -tx1 /dev/urandom > out/random;"
        " echo $HOME > out/home; gzip -c src/a > out/same.gz; cp src/a out/x; touch out/x; gzip out/x"
    )
    assert found == {
        "environment": {"home"},
        "time-in-content": {"date", "epoch"},
        "build-path-in-content": {"path"},
        "content": {"random"},
        "gzip-in-content": {"x.gz"},
    }


def test_the_working_directory_may_hold_the_temporary_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(project / "tmp"))
    assert verify(rebuild="cat src/* > all", output="all", options=HERE).ok
    assert list((project / "tmp").iterdir()) == []


def test_a_build_that_is_interrupted_leaves_no_process(project: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "detlayer",
        "verify",
        "--rebuild",
        "sleep 60 & echo $! > $PIDS; wait",
        "--output",
        "o",
    ]
    environment = {**os.environ, "PIDS": str(project / "pids")}
    with subprocess.Popen(command, cwd=project, env=environment, stderr=subprocess.DEVNULL) as process:
        while not (project / "pids").exists() or not (project / "pids").read_text():
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait() == 143
    left = int((project / "pids").read_text())
    for _ in range(100):  # it is dead at once, and gone when init has seen that
        try:
            state = Path(f"/proc/{left}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    os.kill(left, 9)
    raise AssertionError("the build went on")


def test_a_build_beside_a_fifo(project: Path) -> None:
    os.mkfifo(project / "fifo")
    assert rebuilt("mkdir -p out && echo a > out/a") == {}


def test_bytecode_of_two_builds(project: Path) -> None:
    python = f"{sys.executable} -c"
    script = "import py_compile, os; py_compile.compile(os.path.abspath('out/m.py'), 'out/m.pyc')"
    found = rebuilt(f'echo "def f(): pass" > out/m.py; {python} "{script}"', exclude=["m.py"])
    assert found["pyc-path"] == {"m.pyc"}


def test_find_order_is_found(project: Path) -> None:
    program("disorderfs")
    program("fusermount")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse")
    assert rebuilt("find src -type f > out/list") == {"readdir-order": {"list"}}


def test_another_day_where_faketime_is(project: Path, tmp_path: Path) -> None:
    """A stand-in that passes its offset on: whether the real one is installed decides nothing here."""
    fake = tmp_path / "bin" / "faketime"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nDAY="$2" && export DAY && shift 2 && exec "$@"\n')
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"}
    report = verify(
        rebuild="mkdir out; echo $DAY > out/day", output="out", options=VerifyOptions(environment=environment)
    )
    assert [finding.path for finding in report.findings] == ["day"]
    assert ("time of day", ("+400d",)) in {(one.what, one.values) for one in report.targets[0].applied}


@pytest.mark.parametrize(
    ("build", "output", "code"),
    [
        ("echo oh no; exit 3", "out", "rebuild-failed"),
        ("true", "out", "rebuild-output"),
        ("true", "../elsewhere", "output-outside"),
    ],
)
def test_builds_that_fail(project: Path, build: str, output: str, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        verify(rebuild=build, output=output, options=HERE)
    assert caught.value.code == code
    if code == "rebuild-failed":
        assert "oh no" in caught.value.message

"""`detlayer verify` as a command: exit codes, formats, and the last line."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

import detlayer
from detlayer.checks.audit import Findings
from detlayer.checks.findings import Finding
from detlayer.cli.report import to_github, to_junit, to_text
from detlayer.verification import TargetReport, VerifyReport


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "detlayer", "verify", *arguments], capture_output=True, text=True, check=False, cwd=cwd
    )


@pytest.fixture
def good(src: Path, tmp_path: Path) -> Path:
    (src / "a").write_text("a")
    detlayer.pack([src], output=tmp_path / "good.tar.gz")
    return tmp_path / "good.tar.gz"


@pytest.fixture
def bad(src: Path, tmp_path: Path) -> Path:
    (src / "b%\n::c").write_text("a")
    detlayer.pack(
        [src],
        output=tmp_path / "bad.tar.gz",
        options=detlayer.PackOptions(profile=detlayer.Profile(mtime=detlayer.Mtime("fixed", 5))),
    )
    return tmp_path / "bad.tar.gz"


def test_a_good_layer(good: Path) -> None:
    done = run(good)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "reproducible: nothing to do"
    for word in ("digest", "diff_id", "key", "codec"):
        assert f"  {word} " in done.stdout


def test_a_bad_layer(bad: Path) -> None:
    done = run(bad)
    assert done.returncode == 1
    assert "  mtime (1): " in done.stdout
    assert "mtime is 5; expected 946684800" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("not reproducible: fix mtime (1 place): set a fixed time")


def test_the_options_of_pack_set_the_expected_values(bad: Path) -> None:
    assert run(bad, "--mtime", "5").returncode == 0


def test_a_corrupt_blob_exits_6(good: Path, tmp_path: Path) -> None:
    at = tmp_path / "layout"
    (at / "blobs" / "sha256").mkdir(parents=True)
    digest = "0" * 64
    (at / "blobs" / "sha256" / digest).write_bytes(b"{}")
    manifest = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": f"sha256:{digest}", "size": 2}
    (at / "index.json").write_text(json.dumps({"manifests": [manifest]}))
    done = run(f"oci:{at}")
    assert done.returncode == 6
    assert f"sha256:{digest}: digest is sha256:" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("corrupt: fix blob-digest (1 place)")


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        ([], "no-target", 2),
        (["nowhere"], "source-missing", 3),
        (["oci:nowhere"], "layout-missing", 3),
        (["--rebuild", "true"], "rebuild-incomplete", 2),
        (["x", "--against", "sha256:1"], "against-invalid", 2),
        (["--runs", "0", "x"], "usage", 2),
    ],
)
def test_errors(tmp_path: Path, arguments: list[str], code: str, exit_code: int) -> None:
    done = run(*arguments, "--format", "json", cwd=tmp_path)
    assert done.returncode == exit_code
    assert done.stderr.startswith(f"error[{code}]: ")
    assert json.loads(done.stdout)["code"] == code


def test_a_damaged_layer_is_an_error(good: Path) -> None:
    good.write_bytes(good.read_bytes()[:-20])
    done = run(good)
    assert (done.returncode, done.stdout) == (3, "")
    assert "error[blob-truncated]" in done.stderr


def test_json(bad: Path) -> None:
    for form in (["--json"], ["--format", "json"]):
        done = run(bad, *form)
        document = json.loads(done.stdout)
        assert (done.returncode, document["type"], document["ok"], document["corrupt"]) == (1, "result", False, False)
        [target] = document["targets"]
        assert target["failures"]["counts"] == {"mtime": 1}
        [finding] = target["failures"]["first"]
        assert finding.keys() == {"trap", "path", "field", "found", "wanted", "hint"}


def commands(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("::")]


def test_github(bad: Path) -> None:
    done = run(bad, "--format", "github")
    assert done.returncode == 1
    [line] = commands(done.stdout)
    assert line.startswith("::error title=detlayer mtime::")
    assert r"b%25\n::c: mtime is 5" in line


def odd_report() -> VerifyReport:
    """Malicious names, and more findings than are shown."""
    failures, advice = Findings(), Findings()
    for number in range(5):
        failures.add(Finding("mtime", f"<a & 'b' \"c\"> %0A {number}", "mtime", "\x01\n::error::x\r", "]]>"))
    advice.add(Finding("pyc-path", "x", "y", "\ud800", "z"))
    return VerifyReport((TargetReport("a, b: 100%\n::warning::", "layer", (), failures, advice),))


def test_github_escapes() -> None:
    lines = to_github(odd_report()).splitlines()
    found = commands("\n".join(lines))
    assert len(found) == 5
    assert len(lines) == 6  # plus the conclusion
    assert all(line.startswith("::error title=detlayer mtime::a, b: 100%25") for line in found[:4])
    assert found[3].endswith("mtime in 2 more places")
    assert "%250A" in found[0]
    assert found[4].startswith("::warning title=detlayer pyc-path::")


def test_junit_is_valid_and_escaped(bad: Path) -> None:
    done = run(bad, "--format", "junit")
    assert done.returncode == 1
    [suite] = ElementTree.fromstring(done.stdout)
    assert (suite.get("tests"), suite.get("failures")) == ("2", "2")
    cases = {case.get("name"): case.find("failure") for case in suite}
    assert cases.keys() == {"reproducible", "mtime"}
    assert all(failure is not None for failure in cases.values())
    [suite] = ElementTree.fromstring(to_junit(odd_report()).encode("utf-8"))
    failure = suite[1].find("failure")
    assert failure is not None
    assert failure.text is not None
    assert failure.text.startswith("<a & 'b' \"c\"> %0A 0: mtime is ?\n")


def test_junit_of_a_good_layer_has_no_failure(good: Path) -> None:
    done = run(good, "--format", "junit")
    [suite] = ElementTree.fromstring(done.stdout)
    assert (done.returncode, suite.get("tests"), suite.get("failures"), len(suite[0])) == (0, "1", "0", 0)


def test_text_shows_three_examples_and_counts_the_rest() -> None:
    lines = to_text(odd_report()).splitlines()
    assert "  mtime (5): " in "\n".join(lines)
    assert "    and 2 more" in lines


def test_advice_alone_fails_only_with_strict(src: Path, tmp_path: Path) -> None:
    (src / ".DS_Store").write_text("x")
    layer = tmp_path / "l.tar"
    detlayer.pack([src], output=layer)
    done = run(layer)
    assert done.returncode == 0
    assert "warning: editor-and-os-files (1)" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("reproducible; 1 warning")
    done = run(layer, "--strict")
    assert done.returncode == 1


def test_help_examples_run_as_they_stand(tmp_path: Path) -> None:
    from detlayer.cli.verify import verify

    shown = CliRunner().invoke(verify, ["--help"]).output
    examples = [line.strip() for line in shown.splitlines() if line.strip().startswith("detlayer verify ")]
    assert len(examples) == 3
    (tmp_path / "main.py").write_text("print('hi')\n")
    for example in examples:
        done: Any = run(*shlex.split(example)[2:], cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr


def test_pack_and_verify_take_the_same_options() -> None:
    from detlayer.cli.pack import pack
    from detlayer.cli.verify import verify

    # Except outputs, progress and the cache: verify always repacks.
    own = {"sources", "output", "oci", "descriptor", "depfile", "progress", "verbose"}
    own |= {"cache_dir", "no_cache", "explain", "paranoid"}
    assert {one.name for one in pack.params} - own <= {one.name for one in verify.params}


def test_formats_hold_errors_too(tmp_path: Path) -> None:
    """CI reads stdout, where an error must not look like an empty result."""
    github = run("missing", "--format", "github", cwd=tmp_path)
    assert github.returncode == 3
    assert re.match(r"::error title=detlayer source-missing::\S+ not found; ", github.stdout)
    junit = run("missing", "--format", "junit", cwd=tmp_path)
    error = ElementTree.fromstring(junit.stdout).find("testsuite/testcase/error")
    assert error is not None
    assert error.get("type") == "source-missing"
    assert "error[source-missing]: " in junit.stderr

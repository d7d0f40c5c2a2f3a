"""Every code that detlayer uses has a text, every text a code, and `detlayer explain` and the docs show them."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from detlayer import errors
from detlayer.checks.findings import TRAPS
from detlayer.cli.exits import exit_code
from detlayer.cli.explain import explain
from detlayer.explanations import GROUPS, Explanation, find_explanations, read_explanations, similar_codes
from tests.vectors import ROOT

SOURCES = sorted((ROOT / "src").rglob("*.py"))
CODE = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*\Z")
EXPLANATIONS = read_explanations()
ERRORS = [one for one in EXPLANATIONS if one.type == "error"]


def used_codes() -> dict[str, set[str]]:
    """Codes that are given to errors and warnings anywhere in the source, with the names of what they are given to."""
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).rpartition(".")[2]
                if re.search(r"(Error|error|warning|warn|tell|fail)\Z", name):
                    for argument in node.args[:2]:
                        value = argument.value if isinstance(argument, ast.Constant) else None
                        if isinstance(value, str) and CODE.match(value):
                            found.setdefault(value, set()).add(name)
    return found


def texts_in_source() -> set[str]:
    """All string constants of the source."""
    return {
        node.value
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_every_code_has_a_text() -> None:
    used = used_codes()
    assert len(used) > 190
    assert sorted(used.keys() - {one.code for one in EXPLANATIONS}) == []


def test_every_text_has_a_code() -> None:
    known = texts_in_source()
    assert [one.code for one in EXPLANATIONS if one.code not in known] == []


def test_traps_are_explained_in_the_order_of_the_table() -> None:
    assert [one.code for one in EXPLANATIONS if one.type == "trap"] == list(TRAPS)


@pytest.mark.parametrize("one", ERRORS, ids=lambda one: one.code)
def test_exit_codes_are_those_of_the_error_classes(one: Explanation) -> None:
    classes = [getattr(errors, name, None) for name in used_codes().get(one.code, ())]
    known = {exit_code(found("code", "")) for found in classes if isinstance(found, type)}
    assert one.exit is not None
    assert not known or one.exit in known or one.code in ("bug", "interrupted")


@pytest.mark.parametrize("one", EXPLANATIONS, ids=lambda one: f"{one.type}-{one.code}")
def test_texts_are_complete_and_short(one: Explanation) -> None:
    assert one.title
    assert len(one.title) <= 75
    assert not one.title.endswith(".")
    for text in (one.meaning, one.fix):
        assert text.endswith((".", ":", "`", "?"))
        for sentence in re.split(r"(?<=[.?:])\s", text):
            assert len(sentence.split()) <= 30, sentence
    assert one.example
    assert (one.exit is None) == (one.type != "error")


def test_codes_are_unique_in_their_type() -> None:
    keys = [(one.type, one.code) for one in EXPLANATIONS]
    assert len(keys) == len(set(keys))


def test_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "docs", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_explain_prints_meaning_example_and_fix() -> None:
    done = CliRunner().invoke(explain, ["output-in-source"])
    (one,) = find_explanations("output-in-source")
    assert done.exit_code == 0
    assert done.output.startswith("output-in-source (error, exit 2)\n")
    words = " ".join(done.output.split())
    for text in (one.meaning, one.fix, one.example):
        assert " ".join(text.split()) in words
    assert max(map(len, done.output.splitlines())) <= 120


@pytest.mark.parametrize("written", ["error[usage]:", "warning[usage]", "usage"])
def test_a_code_may_be_pasted_from_a_message(written: str) -> None:
    assert CliRunner().invoke(explain, [written]).output.startswith("usage (error")


def test_a_code_with_two_meanings_has_both() -> None:
    assert [one.type for one in find_explanations("blob-digest")] == ["error", "trap"]
    output = CliRunner().invoke(explain, ["blob-digest"]).output
    assert "blob-digest (error, exit 6)" in output
    assert "blob-digest (trap)" in output


def test_without_a_code_all_are_listed_by_group() -> None:
    output = CliRunner().invoke(explain, []).output
    lines = output.splitlines()
    assert [title for title in GROUPS.values() if f"{title}:" in lines] == list(GROUPS.values())
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert listed == [one.code for one in EXPLANATIONS]


def test_json_has_one_object_a_line() -> None:
    lines = CliRunner().invoke(explain, ["--json", "usage"]).output.splitlines()
    assert [json.loads(line)["code"] for line in lines] == ["usage"]


def test_an_unknown_code_gets_a_suggestion() -> None:
    assert similar_codes("output-in-sorce")[0] == "output-in-source"
    done = subprocess.run(
        [sys.executable, "-m", "detlayer", "explain", "output-in-sorce"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error[code-unknown]: unknown code: output-in-sorce\n  hint: did you mean output-in-source"
    )


def test_texts_are_in_the_wheel(tmp_path: Path) -> None:
    """They are data beside the modules: what is built must hold them."""
    assert sorted(path.stem for path in (ROOT / "src" / "detlayer" / "explanations").glob("*.toml")) == sorted(GROUPS)

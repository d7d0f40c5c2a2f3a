"""The help: commands in groups and in the order of use, each with an example; a mistyped command gets a suggestion."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from detlayer.cli import _GROUPS, detlayer, run
from tests.trees import File, make_tree

COMMANDS = [name for group in _GROUPS.values() for name in group]


def help_of(*arguments: str) -> str:
    return CliRunner().invoke(detlayer, [*arguments, "--help"], terminal_width=100).output


def test_commands_are_in_groups_and_in_the_order_of_use() -> None:
    shown = help_of()
    places = [shown.index(f"\n  {name} ") for name in COMMANDS]
    assert places == sorted(places)
    assert COMMANDS[:3] == ["init", "build", "push"]
    for title in _GROUPS:
        assert f"\n{title}:\n" in shown
    examples = shown.partition("Examples:")[2]
    assert examples.split()[:2] == ["detlayer", "init"]
    assert "detlayer build" in examples


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_summary_and_an_example(name: str) -> None:
    shown = help_of(name)
    assert re.search(rf"\n  Examples?:\n(?:.*\n)*.*detlayer {name}", shown)
    command = detlayer.get_command(click.Context(detlayer), name)
    assert command is not None
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, parameter.name


@pytest.mark.parametrize(
    ("typed", "meant"), [("biuld", "build"), ("psuh", "push"), ("verfy", "verify"), ("lok", "lock")]
)
def test_a_mistyped_command_gets_a_suggestion(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([typed]) == 2
    assert capsys.readouterr().err == (
        f"error[usage]: unknown command: {typed}\n  hint: did you mean `detlayer {meant}`?\n"
    )


def test_a_command_like_no_other_is_led_to_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["xyzzy"]) == 2
    assert "hint: `detlayer --help` lists the commands" in capsys.readouterr().err


def test_the_earlier_name_of_an_option_works_and_is_hidden(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = make_tree(tmp_path / "old", {"a": "x"}), make_tree(tmp_path / "new", {"a": File(b"x", 0o600)})
    assert run(["diff", str(old), str(new)]) == 1
    for name in ("--normalized", "--normalised"):
        assert run(["diff", name, str(old), str(new)]) == 0
    capsys.readouterr()
    assert run(["diff", "--help"]) == 0
    assert "--normalised" not in capsys.readouterr().out

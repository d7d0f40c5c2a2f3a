"""The door: environment, terminal, exits. Commands load when they are called, so that `--version` starts at once."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from itertools import pairwise
from typing import Any, NoReturn

import click

from detlayer import __version__
from detlayer.cli import exits
from detlayer.cli.console import Console
from detlayer.errors import ConfigError, DetlayerError, OutputError

_COMMANDS = {
    "pack": "Turn directories and files into one reproducible layer.",
    "verify": "Prove a layer, image, tree or build reproducible, or name what keeps it from being so.",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(f"detlayer.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", "-V", message="detlayer %(version)s")
def detlayer() -> None:
    """Reproducible container layers: the same files give the same bytes, on any machine.

    \b
    Example:
      detlayer pack .:/srv/app --exclude .git -o ../app.tar.gz
    """


class _Terminated(KeyboardInterrupt):
    """SIGTERM: what is open is closed and undone as for Ctrl-C."""


def _terminate(number: int, frame: Any) -> NoReturn:
    raise _Terminated


def main() -> NoReturn:
    """Run the command line and exit; no exception gets out."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Run one command; returns its exit code."""
    console = Console(json=_wants_json(args))
    console.use_colour("NO_COLOR" not in os.environ)
    try:
        done = detlayer.main(args, prog_name="detlayer", standalone_mode=False, obj=console)
    except DetlayerError as error:
        console.error(error)
        return exits.exit_code(error)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "detlayer"
        console.error(ConfigError("usage", error.format_message(), f"see `{where} --help`"))
        return exits.USAGE
    except (KeyboardInterrupt, click.Abort) as stop:
        console.close()
        console.warning("interrupted", "stopped; nothing was left half written")
        return exits.TERMINATED if isinstance(stop, _Terminated) else exits.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone. Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.exit_code(OutputError("output-closed", ""))
    except Exception as error:
        console.error(_bug(error))
        return exits.BUG
    return done if isinstance(done, int) else 0  # `ctx.exit` comes out as a value here


def _wants_json(args: list[str]) -> bool:
    """Tell whether errors are to be JSON, too, before the arguments are understood."""
    after = dict(pairwise(args))
    return "--json" in args or "--format=json" in args or after.get("--format") == "json"


def _bug(error: Exception) -> DetlayerError:
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="detlayer-bug-", suffix=".txt", delete=False) as report:
        report.write(f"detlayer {__version__}, Python {sys.version}\n")
        traceback.print_exception(error, file=report)
    return DetlayerError(
        "bug", f"{type(error).__name__}: {error}", f"this is a mistake of ours; please report it with {report.name}"
    )

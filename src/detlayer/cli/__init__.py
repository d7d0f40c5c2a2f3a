"""Entry point: command groups, signals and exit codes. A command's module is imported only when it runs."""

from __future__ import annotations

import errno
import gc
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
from detlayer.errors import ConfigError, DetlayerError, OutputError, printable

_GROUPS = {
    "Images": {
        "init": "Write a detlayer.toml for the project in this directory.",
        "build": "Build the images of a project, running only the steps that changed.",
        "push": "Push an image, uploading only what the registry lacks.",
        "plan": "Show what a push would send, and why.",
        "pull": "Pull an image into an OCI layout.",
        "resolve": "Print the digest that a tag points to.",
        "lock": "Pin the bases of a project and record its layers in detlayer.lock.",
        "graph": "Show the steps of a build.",
    },
    "Layers": {
        "pack": "Pack directories and files into one reproducible layer.",
        "verify": "Check that a layer, image, tree or build is reproducible, and name what prevents it.",
        "diff": "Compare two directories, layers or images, and name the cause of each difference.",
        "inspect": "List the contents of a layer.",
        "normalize": "Rewrite a layer from any tool in canonical form.",
        "image": "Assemble an image from existing layers, for other build tools.",
    },
    "More": {
        "cache": "Show, clean, export or import the cache.",
        "explain": "Explain an error code, a warning or a trap.",
        "schema": "Print the JSON schema of detlayer.toml.",
    },
}
_COMMANDS = {name: summary for group in _GROUPS.values() for name, summary in group.items()}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(f"detlayer.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-"):
            from difflib import get_close_matches

            similar = get_close_matches(name, _COMMANDS, n=1)
            hint = f"did you mean `detlayer {similar[0]}`?" if similar else "`detlayer --help` lists the commands"
            raise ConfigError("usage", f"unknown command: {printable(name)}", hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, _COMMANDS))
        for title, commands in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), summary) for name, summary in commands.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", "-V", message="detlayer %(version)s")
def detlayer() -> None:
    """Build reproducible container images and layers: the same files give the same bytes, on any machine.

    \b
    Examples:
      detlayer init && detlayer build -o oci:image
      detlayer build --push
      detlayer pack .:/srv/app --exclude .git -o ../app.tar.gz
    """


class _Stopped(BaseException):
    """Raised by signal handlers, so that open outputs are undone. click would replace a KeyboardInterrupt by Abort."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def _stop(number: int, frame: Any) -> NoReturn:
    raise _Stopped(number)


def main() -> NoReturn:
    """Run the command line and exit. No exception escapes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, _stop)
    # Walks create no reference cycles. Searching records of 100,000 files for them takes a tenth of a pack.
    gc.set_threshold(50_000)
    code = run(sys.argv[1:])
    gc.freeze()  # skips the collection at exit, which takes as long as a short command
    sys.exit(code)


def run(args: list[str]) -> int:
    """Run one command and return its exit code."""
    console = Console(json=_wants_json(args))
    console.use_colour(os.environ.get("NO_COLOR"))
    try:
        # With standalone_mode=False, click returns the code of ctx.exit(): 1 for a negative result.
        answer = detlayer.main(args, prog_name="detlayer", standalone_mode=False)
    except DetlayerError as error:
        console.error(error)
        if isinstance(error, OutputError):  # stdout may have failed with data in its buffer
            console.abandon_stdout()
        return exits.exit_code(error)
    except click.exceptions.NoArgsIsHelpError as error:
        console.note(error.format_message())
        return exits.USAGE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "detlayer"
        console.error(ConfigError("usage", error.format_message(), f"see `{where} --help`"))
        return exits.USAGE
    except click.exceptions.Exit as done:
        return done.exit_code
    except (_Stopped, KeyboardInterrupt, click.Abort) as stop:
        console.stopped("stopped; every output is either complete or unchanged")
        return stop.exit_code if isinstance(stop, _Stopped) else exits.INTERRUPTED
    except SystemExit:  # click's, when its help cannot be written
        console.abandon_stdout()
        console.failure(_closed("the reader of stdout has gone"))
        return exits.OUTPUT
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EPIPE):  # click's output
            console.abandon_stdout()
            console.failure(_closed(os.strerror(error.errno)))
            return exits.OUTPUT
        console.error(_bug(error))
        return exits.BUG
    return answer if isinstance(answer, int) else 0


def _closed(reason: str) -> OutputError:
    return OutputError("output-closed", f"stdout cannot be written: {reason}", "check where stdout goes")


def _wants_json(args: list[str]) -> bool:
    """Return whether errors are printed as JSON, before the arguments are parsed."""
    after = dict(pairwise(args))
    return "--json" in args or "--format=json" in args or after.get("--format") == "json"


def _bug(error: Exception) -> DetlayerError:
    import tempfile
    import traceback

    attachment = "the traceback above"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="detlayer-bug-", suffix=".txt", delete=False) as report:
            report.write(f"detlayer {__version__}, Python {sys.version}\n")
            traceback.print_exception(error, file=report)
            attachment = report.name
    except OSError:  # no writable temporary directory
        traceback.print_exception(error)
    return DetlayerError(
        "bug", f"{type(error).__name__}: {error}", f"this is a bug in detlayer; report it with {attachment}"
    )

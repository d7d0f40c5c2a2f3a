"""Run a build command twice in varied environments, and compare the results: is the *content* reproducible?

Each build has its own copy of the working directory. The first runs as the user runs it, the second with everything
varied that can be varied here. The caller passes the environment.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace

from detlayer.checks.audit import audit
from detlayer.checks.layer_diff import Run, diff_layers
from detlayer.errors import ConfigError, OutputError, printable
from detlayer.filesystem import look
from detlayer.images.files import open_file
from detlayer.packing.options import PackOptions
from detlayer.packing.packer import pack
from detlayer.packing.sources import parse_source
from detlayer.tree import copy_file, fail
from detlayer.tree.patterns import parse_patterns
from detlayer.verification.machine import CannotViewError, disordered, find_program, on_one_processor, time_prefix
from detlayer.verification.options import VerifyOptions
from detlayer.verification.report import Perturbation, TargetReport, divide, facts_of

_TRUSTED = 1 << 40  # no expansion limit: these layers are our own
# Without faketime, the second build starts at least this much later: archives count in steps of two seconds.
_LATER_S = 2.1
_SAID_LINES = 20


@dataclass(frozen=True, slots=True)
class Build:
    """One run of the command: directory, environment, umask, and command prefix."""

    name: str
    directory: str
    environment: Mapping[str, str]
    umask: int
    prefix: tuple[str, ...] = ()


def check_rebuild(command: str, output: str, options: VerifyOptions, *, directory: str = ".") -> TargetReport:
    """Run a shell command in two copies of a directory, pack `output` of each, and report every difference.

    Raises ConfigError if the command fails or creates no output, and the errors of `pack`.
    """
    directory = os.path.realpath(directory)
    relative = os.path.relpath(os.path.join(directory, output), directory)
    if relative.split("/")[0] == "..":
        raise ConfigError(
            "output-outside",
            f"{printable(output)} is outside of the working directory",
            "build into a directory below it",
        )
    with tempfile.TemporaryDirectory(prefix="detlayer-", ignore_cleanup_errors=True) as scratch, ExitStack() as stack:
        session = _Session(scratch, directory, relative, options.environment)
        builds = session.run_both(command, stack)
        runs = [_pack(one, relative, os.path.join(scratch, f"layer-{one.name}"), options.pack) for one in builds]
        reports = []
        for run in runs:
            with run.open() as file:
                reports.append(audit(file, profile=options.pack.profile, max_expansion=_TRUSTED))
        failures, advice = divide(reports[0].findings, strict=options.strict)
        if reports[0].facts.diff_id != reports[1].facts.diff_id:
            failures.extend(diff_layers(*runs, max_expansion=_TRUSTED))
        facts = tuple(facts_of(run.name, report) for run, report in zip(runs, reports, strict=True))
        return TargetReport(
            f"rebuild of {relative}",
            "rebuild",
            facts,
            failures,
            advice,
            tuple(session.applied),
            tuple(session.left_out),
        )


def _pack(build: Build, output: str, blob: str, options: PackOptions) -> Run:
    """Pack the output of a build; its environment has the marks that its files may contain."""
    source = replace(parse_source(os.path.join(build.directory, output)), patterns=parse_patterns(options.exclude))
    pack([source], blob, options=PackOptions(options.codec_for(), options.profile, options.selection))
    marks = {"build path": os.fsencode(build.directory)}
    for label, name in (("home", "HOME"), ("time zone", "TZ")):
        if len(build.environment.get(name, "")) > 3:
            marks[label] = os.fsencode(build.environment[name])
    return Run(f"the {build.name} build", partial(open_file, blob), marks)


class _Session:
    def __init__(self, scratch: str, directory: str, output: str, environment: Mapping[str, str]) -> None:
        self._scratch = scratch
        self._directory = directory
        self._output = output
        self._environment = environment
        self.applied: list[Perturbation] = []
        self.left_out: list[tuple[str, str]] = []

    def run_both(self, command: str, stack: ExitStack) -> tuple[Build, Build]:
        """Run the command in two copies, the second under varied conditions."""
        first, second = self.prepare_first(), self.prepare_second(stack)
        started = time.monotonic()
        self.build(first, command)
        if not second.prefix:
            time.sleep(max(0.0, _LATER_S - (time.monotonic() - started)))
        with on_one_processor() as is_alone:
            self.note("processors", "one in the second build", "" if is_alone else "there is only one")
            self.build(second, command)
        return first, second

    def note(self, what: str, value: str, reason: str = "") -> None:
        """Record a perturbation, or why it was omitted."""
        if reason:
            self.left_out.append((what, reason))
        else:
            self.applied.append(Perturbation(what, (value,)))

    def prepare_first(self) -> Build:
        return Build("first", self._copy("first"), {**self._environment, "PYTHONHASHSEED": "0"}, 0o022)

    def prepare_second(self, stack: ExitStack) -> Build:
        """Prepare the build that varies everything; each difference is recorded."""
        copy = self._copy("second one/in a longer path")
        directory = copy
        try:
            view = os.path.join(self._scratch, "second view of it")
            directory = stack.enter_context(disordered(copy, view, "--reverse-dirents=yes", self._environment))
            self.note("readdir order", "disorderfs, reversed")
        except CannotViewError as reason:
            self.note("readdir order", "", str(reason))
        self.note("absolute path", directory)
        prefix = time_prefix(self._environment)
        if prefix:
            self.note("time of day", prefix[-1])
        else:
            self.note("time of day", f"at least {_LATER_S:.0f} s later")
            self.note("time of day by months", "", "faketime is not installed")
        home = os.path.join(self._scratch, "home of the second")
        self._link_home(home)
        varied = {
            "TZ": "<+14>-14" if self._environment.get("TZ") != "<+14>-14" else "<-1230>12:30",
            "LC_ALL": self._other_locale(),
            "HOME": home,
            "PYTHONHASHSEED": "4242",
        }
        for name, value in varied.items():
            self.note(name, value)
        self.note("umask", "0027")
        return Build("second", directory, {**self._environment, **varied}, 0o027, prefix)

    def build(self, build: Build, command: str) -> None:
        """Run the command; its output is shown only if it fails."""
        # Its own session, so that all its processes can be ended.
        process = subprocess.Popen(
            [*build.prefix, "sh", "-c", command],
            cwd=build.directory,
            env={**build.environment, "PWD": build.directory},
            umask=build.umask,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with process:
            try:
                output, _ = process.communicate()
            except BaseException:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        said = "\n  ".join(map(printable, output.decode(errors="replace").splitlines()[-_SAID_LINES:]))
        if process.returncode:
            raise ConfigError(
                "rebuild-failed",
                f"the {build.name} build ended with {process.returncode}:\n  {said}",
                "check that it succeeds in a copy of the working directory"
                + (" under any time zone, locale, umask and HOME" if build.name == "second" else ""),
            )
        output_path = os.path.join(build.directory, self._output)
        try:
            is_missing = look(output_path, follow_symlinks=False) is None
        except OSError as error:
            fail(error, os.fsencode(output_path))
        if is_missing:
            raise ConfigError(
                "rebuild-output", f"the {build.name} build did not create {printable(self._output)}", "check --output"
            )

    def _copy(self, place: str) -> str:
        """Copy the working directory, without the output of an earlier build."""
        at = os.path.join(self._scratch, place)
        try:
            shutil.copytree(self._directory, at, symlinks=True, ignore=self._leaves_out, copy_function=_copy_file)
        except (shutil.Error, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error.args[0])[:300]
            raise OutputError(
                "copy-failed",
                f"the working directory can't be copied: {reason}",
                "set TMPDIR to a directory with more space",
            ) from error
        return at

    def _leaves_out(self, directory: str, names: list[str]) -> set[str]:
        """Skip an earlier build's output, our own directory if it is in this one, sockets and FIFOs."""
        ours = {os.path.realpath(self._scratch)}
        if self._output != ".":
            ours.add(os.path.join(self._directory, self._output))
        return {name for name in names if (path := os.path.join(directory, name)) in ours or _is_special(path)}

    def _link_home(self, home: str) -> None:
        """Create another home with links to everything in the user's: builds find their settings and caches."""
        os.mkdir(home)
        old = self._environment.get("HOME", "")
        try:
            names = os.listdir(old) if old else []
        except (FileNotFoundError, NotADirectoryError, PermissionError):  # the first build can't list it either
            names = []
        except OSError as error:
            fail(error, os.fsencode(old))
        for name in names:
            os.symlink(os.path.join(old, name), os.path.join(home, name))

    def _other_locale(self) -> str:
        now = self._environment.get("LC_ALL") or self._environment.get("LANG") or "C"
        program = find_program("locale", self._environment)
        known: list[str] = []
        if program is not None:
            done = subprocess.run([program, "-a"], capture_output=True, check=False)
            known = done.stdout.decode(errors="replace").split()
        others = [name for name in known if name not in ("C", "POSIX", now) and not name.startswith("C.")]
        return others[0] if others else ("C.UTF-8" if now in ("C", "POSIX") else "C")


def _copy_file(old: str, new: str) -> None:
    copy_file(os.fsencode(old), os.fsencode(new))
    shutil.copystat(old, new)


def _is_special(path: str) -> bool:
    """Tell whether a file can't be copied: a socket (as of git's file system monitor), a FIFO, a device."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return False  # the copy reports it
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))

"""Pack sources again under perturbation (fresh processes, other environments, copies of the tree) and compare.

The first run packs the sources unchanged. Each perturbed run varies everything that must not matter at once, which
needs fewer runs; the comparison then finds the trap.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from msgspec.structs import replace

from detlayer.checks.audit import LayerReport, audit
from detlayer.checks.findings import Finding
from detlayer.checks.layer_diff import Run, diff_layers
from detlayer.errors import ConfigError
from detlayer.images.files import open_file
from detlayer.layer.codec import Codec
from detlayer.packing.options import PackOptions
from detlayer.packing.sources import resolve
from detlayer.tree import Source, takes
from detlayer.verification.layers import Expectation
from detlayer.verification.machine import CannotViewError, disordered, on_one_processor, time_prefix
from detlayer.verification.options import VerifyOptions
from detlayer.verification.pack_process import PackJob, run_pack
from detlayer.verification.report import Perturbation, TargetReport, divide, facts_of
from detlayer.verification.tree_copies import CannotCopyError, TreeCopies
from detlayer.verification.variation import Variation

_TRUSTED = 1 << 40  # no expansion limit: these layers are our own
_VIEWED = 3  # the first run with a disordered view, if the system itself lists names in another order


def check_sources(
    sources: Sequence[Source | str | os.PathLike[str]], expectation: Expectation | None, options: VerifyOptions
) -> TargetReport:
    """Pack sources once unchanged and several times under varied conditions; every difference is a failure.

    Raises the errors of `pack`, from any run.
    """
    pack = options.pack
    codec = pack.codec_for()
    resolved = resolve(sources, pack)
    with tempfile.TemporaryDirectory(prefix="detlayer-") as scratch:
        _check_outside(scratch, resolved)
        session = _Session(scratch, resolved, pack, codec, options.environment)
        reference, report = session.pack_plainly(pack.count_jobs())
        facts = replace(facts_of("the layer", report), codec=codec.name, codec_class=codec.codec_class)
        failures, advice = divide(report.findings, strict=options.strict)
        if expectation is not None:
            failures.extend(expectation.check(facts, reference.open, max_expansion=_TRUSTED))
        for number in range(1, options.runs + 1):
            failures.extend(session.pack_perturbed(Variation(number), reference, report))
        return TargetReport(
            " ".join(map(str, resolved)),
            "sources",
            (facts,),
            failures,
            advice,
            tuple(Perturbation(what, tuple(values)) for what, values in session.applied.items()),
            tuple(session.left_out.items()),
            tuple(session.warnings),
        )


def _check_outside(scratch: str, sources: Sequence[Source]) -> None:
    """Refuse to copy a tree into itself."""
    for source in sources:
        if takes(source, os.fsencode(scratch)):
            raise ConfigError(
                "temporary-in-source",
                f"the directory for temporary files is in {source}",
                "set TMPDIR to another directory: TMPDIR=/var/tmp",
            )


class _Session:
    """The runs of one verification, and what was varied in them."""

    def __init__(
        self,
        scratch: str,
        sources: Sequence[Source],
        options: PackOptions,
        codec: Codec,
        environment: Mapping[str, str],
    ) -> None:
        self._scratch = scratch
        self._sources = tuple(replace(source, path=os.path.abspath(source.path)) for source in sources)
        self._profile = options.profile
        self._selection = options.selection
        self._codec = codec
        self._environment = environment
        self.applied: dict[str, list[str]] = {}
        self.left_out: dict[str, str] = {}
        self.warnings: list[str] = []

    def pack_plainly(self, jobs: int) -> tuple[Run, LayerReport]:
        """Pack the sources in place, and read the layer back."""
        output = os.path.join(self._scratch, "plain")
        job = PackJob(self._sources, self._profile, self._selection, self._codec, jobs, output)
        self.warnings = run_pack(job, environment=self._environment, cwd=os.getcwd(), umask=0o022)
        run = Run("the plain run", partial(open_file, output))
        with run.open() as file:
            return run, audit(file, profile=self._profile, max_expansion=_TRUSTED)

    def pack_perturbed(self, variation: Variation, reference: Run, expected: LayerReport) -> Iterator[Finding]:
        """Pack a perturbed copy, and report its differences from the reference."""
        home = os.path.join(self._scratch, str(variation.number))
        os.mkdir(home)
        output = os.path.join(home, "layer")
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, home, ignore_errors=True)
            self._pack(variation, home, output, stack)
            run = Run(f"run {variation.number}", partial(open_file, output))
            with run.open() as file:
                report = audit(file, profile=self._profile, contents=False, keep=0, max_expansion=_TRUSTED)
            if report.facts.diff_id != expected.facts.diff_id:
                yield from diff_layers(reference, run, max_expansion=_TRUSTED)
            elif report.facts.digest != expected.facts.digest:
                trap = "chunking" if report.facts.members != expected.facts.members else "compressor-class"
                yield Finding(trap, "", "digest", str(report.facts.digest), str(expected.facts.digest))

    def _pack(self, variation: Variation, home: str, output: str, stack: ExitStack) -> None:
        at = os.path.join(self._scratch, *variation.place.split("/"))
        order = variation.order
        try:
            sources = self._copy(variation, at)
            viewed = self._view(variation, at, os.path.join(home, "view"), stack)
            if viewed:
                sources = [
                    replace(one, path=one.path.replace(os.fsencode(at), os.fsencode(viewed), 1)) for one in sources
                ]
                order = ""
                self._apply("readdir order", "disorderfs, reversed")
            self._apply("absolute path", at)
        except CannotCopyError as reason:
            # The system still perturbs the run and lists names in another order.
            sources = list(self._sources)
            self.left_out["a copy of the tree"] = str(reason)
        cwd = home
        if variation.is_relative:
            cwd = os.path.commonpath([os.fsdecode(os.path.dirname(source.path)) for source in sources])
            sources = [replace(one, path=os.path.relpath(one.path, os.fsencode(cwd))) for one in sources]
        if order:
            self._apply("readdir order", order)
        environment = self._vary_environment(variation, home)
        prefix = time_prefix(environment) if variation.number == 1 else ()
        if prefix:
            self._apply("time of day", prefix[-1])
        elif variation.number == 1:
            self.left_out["time of day"] = "faketime is not installed"
        self._apply("working directory", cwd)
        self._apply("umask", f"{variation.umask:04o}")
        self._apply("workers", str(variation.jobs))
        if variation.number == 1:
            if stack.enter_context(on_one_processor()):
                self._apply("processors", "1")
            else:
                self.left_out["processors"] = "there is only one, or it can't be chosen here"
        job = PackJob(
            tuple(sources),
            self._profile,
            self._selection,
            self._codec,
            variation.jobs,
            output,
            order,
            variation.number,
        )
        run_pack(job, environment=environment, cwd=cwd, umask=variation.umask, prefix=prefix)

    def _vary_environment(self, variation: Variation, home: str) -> dict[str, str]:
        varied = {
            "TZ": variation.zone,
            "LC_ALL": variation.locale,
            "HOME": home,
            "PYTHONHASHSEED": variation.hash_seed,
        }
        for name, value in varied.items():
            self._apply(name, value)
        return {**self._environment, **varied}

    def _copy(self, variation: Variation, at: str) -> list[Source]:
        """Copy all sources below `at`; raises CannotCopyError."""
        twins = TreeCopies(variation, self._profile, self._selection, os.geteuid() == 0)
        made = []
        for number, source in enumerate(self._sources):
            place = os.path.join(os.fsencode(at), b"%d" % number)
            if not stat.S_ISDIR(os.stat(source.path).st_mode):
                place = os.path.join(place, os.path.basename(source.path))
            made.append(twins.make(source, place))
        self._apply("order of creation", f"shuffled by {variation.number}")
        for what, is_varied, value, reason in (
            ("file times", twins.shifts_times, "another second for each file", "they are input with this --mtime"),
            (
                "file modes",
                twins.varies_modes,
                f"as umask {variation.umask:04o} leaves them",
                "they are input with --mode",
            ),
            (
                "owner",
                twins.varies_owners,
                "{}:{}".format(*variation.owner),
                "it is input with --owner source" if self._profile.owner is None else "only root can change it",
            ),
            (
                "hard links",
                twins.varies_links,
                "equal files linked" if variation.links else "all broken",
                "their structure or values are input with these options",
            ),
        ):
            if is_varied:
                self._apply(what, value)
            else:
                self.left_out[what] = reason
        if not twins.shifts_times:
            self._apply("file times below a second", f"other ones by {variation.number}")
        return made

    def _view(self, variation: Variation, directory: str, at: str, stack: ExitStack) -> str:
        """Mount a view of the copies through disorderfs, in one run; empty if there is none."""
        if variation.number != _VIEWED:
            return ""
        if self._selection.hardlinks == "preserve" or self._profile.xattrs or self._profile.owner is None:
            self.left_out["disorderfs"] = "it does not preserve links, attributes or owners"
            return ""
        try:
            return stack.enter_context(disordered(directory, at, "--reverse-dirents=yes", self._environment))
        except CannotViewError as reason:
            self.left_out["disorderfs"] = str(reason)
            return ""

    def _apply(self, what: str, value: str) -> None:
        values = self.applied.setdefault(what, [])
        value = value.replace(self._scratch + "/", "")
        if value not in values:
            values.append(value)

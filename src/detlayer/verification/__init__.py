"""`verify`: check whether a target is reproducible, and if not, find the cause.

A finished layer or image is checked by its bytes, sources by packing them several times under varied conditions, and a
build command by running it twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from detlayer.errors import ConfigError, printable
from detlayer.filesystem import is_file
from detlayer.images.files import find_kind, open_file
from detlayer.images.layout import SAVED, LayoutName, name_layout, split_name
from detlayer.layer.formats import HEAD_BYTES, format_of, image_archive
from detlayer.tree import Source
from detlayer.verification.images import check_layout
from detlayer.verification.layers import Expectation, check_layer, parse_expectation
from detlayer.verification.options import DEFAULT_RUNS, VerifyOptions
from detlayer.verification.perturbation import check_sources
from detlayer.verification.rebuild import check_rebuild
from detlayer.verification.report import LayerFacts, Perturbation, TargetReport, VerifyReport

__all__ = ["DEFAULT_RUNS", "LayerFacts", "Perturbation", "TargetReport", "VerifyOptions", "VerifyReport", "verify"]

Path = str | os.PathLike[str]


def verify(
    targets: Iterable[Source | Path] = (),
    *,
    against: str | None = None,
    rebuild: str | None = None,
    output: str | None = None,
    options: VerifyOptions | None = None,
) -> VerifyReport:
    """Check that targets are reproducible, and name what prevents it.

    A target is `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`, a layer file, or otherwise a source as for `pack`. Layouts
    and archives of layouts are recognised without a prefix; with a destination (`DIR:/srv`) a target is a source. All
    sources together are one layer. `against` is the expected digest, diff_id, descriptor (JSON) or layer. `rebuild` is
    a shell command that creates `output` in a copy of the working directory; it runs twice.

    Negative results are returned. Raises ConfigError, TreeError, LayerError or OutputError if there is no result.
    """
    options = options or VerifyOptions()
    if options.runs < 1:
        raise ConfigError("runs-invalid", f"invalid number of runs: {options.runs}", "use --runs 1 or more")
    if (rebuild is None) != (output is None):
        raise ConfigError(
            "rebuild-incomplete", "--rebuild and --output must be used together", "add the missing option"
        )
    expectation = None
    if against is not None:
        expectation = parse_expectation(against, max_expansion=options.max_expansion)
    reports: list[TargetReport] = []
    sources: list[Source | Path] = []
    for target in targets:
        name = _name(target)
        if name is None:
            sources.append(target)
        else:
            reports.append(_check_finished(str(target), name, expectation, options))
    if sources:
        reports.append(check_sources(sources, expectation, options))
    if rebuild is not None and output is not None:
        reports.append(check_rebuild(rebuild, output, options))
    if not reports:
        raise ConfigError("no-target", "nothing to verify", "name a layer, oci:DIR, SOURCE[:DEST], or use --rebuild")
    return VerifyReport(tuple(reports))


def _check_finished(
    target: str, name: LayoutName | str, expectation: Expectation | None, options: VerifyOptions
) -> TargetReport:
    """Check a layer file, a layout or an archive of a layout."""
    if isinstance(name, str):
        report = check_layer(name, expectation, options)
        if report is not None:
            return report
        name = LayoutName(name, "", is_archive=True)
    return check_layout(target, name, expectation, options)


def _name(target: Source | Path) -> LayoutName | str | None:
    """Find out by prefix or file type whether `text` is a layout, an archive or a layer file; None for sources."""
    if isinstance(target, Source):
        return None
    text = os.fspath(target)
    if text.startswith(SAVED):
        path, _ = split_name(text.removeprefix(SAVED), is_file)
        with open_file(path) as file:
            raise image_archive("docker-archive", path, format_of(file.read(HEAD_BYTES)))
    named = name_layout(text)
    if named is not None:
        return named
    match find_kind(text):
        case "layer":
            return text
        case "layout":
            return LayoutName(text, "", is_archive=False)
    path, colon, right = text.rpartition(":")
    kind = find_kind(path) if colon and not right.startswith("/") else ""
    if kind:
        prefix = "oci:" if kind == "layout" else "oci-archive:"
        raise ConfigError(
            "target-ambiguous",
            f"ambiguous target {printable(text)}: a source with a destination, or an image with a tag",
            f"image: {prefix}{printable(text)}; source: {printable(path)}:/{printable(right)}",
        )
    return None

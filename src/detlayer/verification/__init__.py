"""The recipe of `verify`: is a layer reproducible, and if not, which trap is it? Joins the checks; never prints.

A target is judged by what it is: a finished layer or image by what stands in it, sources by packing them again under
perturbation, a build command by running it twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from detlayer.errors import ConfigError, printable
from detlayer.filesystem import is_file
from detlayer.images.files import find_kind, open_file
from detlayer.images.layout import SAVED, LayoutName, name_layout, split_name
from detlayer.layer.codec import DEFAULT_CODEC, Codec, parse_compression
from detlayer.layer.entry import Profile
from detlayer.layer.formats import HEAD_BYTES, format_of, image_archive
from detlayer.packing.sources import resolve
from detlayer.tree import Selection, Source
from detlayer.tree.patterns import parse_patterns
from detlayer.verification.images import check_layout
from detlayer.verification.layers import check_layer, parse_expectation
from detlayer.verification.perturbation import check_sources
from detlayer.verification.rebuild import check_rebuild
from detlayer.verification.report import LayerFacts, Perturbation, TargetReport, VerifyReport

__all__ = ["LayerFacts", "Perturbation", "TargetReport", "VerifyReport", "verify"]

DEFAULT_RUNS = 3

Path = str | os.PathLike[str]


def verify(
    targets: Iterable[Source | Path] = (),
    *,
    runs: int = DEFAULT_RUNS,
    against: str | None = None,
    rebuild: str | None = None,
    output: str | None = None,
    compression: str | Codec | None = None,
    profile: Profile | None = None,
    selection: Selection | None = None,
    exclude: Sequence[str] = (),
    ignore_files: Sequence[Path] = (),
    use_ignore_file: bool = True,
    jobs: int | None = None,
    strict: bool = False,
    max_expansion: int = 200,
    environment: Mapping[str, str] | None = None,
) -> VerifyReport:
    """Prove targets reproducible, or name the traps.

    A target is `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`, a layer file, or else a source as `pack` takes it. A layout
    and an archive of one are found without a prefix, too, and with a destination (`DIR:/srv`) anything is a source.
    All sources are one layer, packed once plainly and `runs` times perturbed. `against` is a digest, a diff_id, a
    descriptor's JSON or a layer. `rebuild` is a shell command that makes `output` in a copy of the working directory.
    `environment` is what processes are started with, such as `os.environ`; by default they get none but what is
    perturbed. `strict` counts suspicious contents as failures. `max_expansion` bounds how far a foreign layer may
    expand.

    A "no" is in the report. Raises ConfigError, TreeError, LayerError or OutputError where there is no answer.
    """
    profile, selection = profile or Profile(), selection or Selection()
    codec = compression if isinstance(compression, Codec) else None
    codec = codec or (parse_compression(compression) if isinstance(compression, str) else DEFAULT_CODEC)
    environment = {} if environment is None else environment
    if runs < 1:
        raise ConfigError("runs-invalid", f"{runs} runs show nothing", "let there be one at least")
    if (rebuild is None) != (output is None):
        raise ConfigError("rebuild-incomplete", "--rebuild and --output go together", "add the other of the two")
    expectation = parse_expectation(against, max_expansion=max_expansion) if against is not None else None
    reports: list[TargetReport] = []
    sources: list[Source | Path] = []
    for target in targets:
        name = _name(target)
        if name is None:
            sources.append(target)
            continue
        report = None
        if isinstance(name, str):
            report = check_layer(
                name, profile=profile, expectation=expectation, strict=strict, max_expansion=max_expansion
            )
            name = LayoutName(name, "", is_archive=True)
        reports.append(
            report
            or check_layout(
                str(target),
                name,
                profile=profile,
                expectation=expectation,
                strict=strict,
                max_expansion=max_expansion,
            )
        )
    if sources:
        resolved = resolve(sources, exclude=exclude, ignore_files=ignore_files, use_ignore_file=use_ignore_file)
        reports.append(
            check_sources(
                resolved,
                runs=runs,
                profile=profile,
                selection=selection,
                codec=codec,
                jobs=jobs,
                environment=environment,
                expectation=expectation,
                strict=strict,
            )
        )
    if rebuild is not None and output is not None:
        reports.append(
            check_rebuild(
                rebuild,
                output,
                profile=profile,
                selection=selection,
                codec=codec,
                patterns=parse_patterns(exclude),
                environment=environment,
                strict=strict,
            )
        )
    if not reports:
        raise ConfigError(
            "no-target", "there is nothing to verify", "name a layer, oci:DIR, SOURCE[:DEST], or use --rebuild"
        )
    return VerifyReport(tuple(reports))


def _name(target: Source | Path) -> LayoutName | str | None:
    """Tell a layout and a layer file, or an archive, by prefix or by what is there; None for sources."""
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
            f"{printable(text)} may be a source with a destination, or an image with a tag",
            f"{prefix}{printable(text)} is the image; {printable(path)}:/{printable(right)} packs {printable(path)}",
        )
    return None

"""Render a VerifyReport as text, JSON, GitHub annotations or JUnit XML."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from xml.etree import ElementTree

from detlayer.checks.audit import Findings
from detlayer.checks.findings import TRAPS, Finding
from detlayer.cli.console import counted, size
from detlayer.errors import DetlayerError, printable
from detlayer.oci.types import canonical_json
from detlayer.verification import LayerFacts, TargetReport, VerifyReport
from detlayer.verification.report import INTEGRITY

_SHOWN = 3  # examples of a trap
# Characters that XML 1.0 can't contain, even escaped (its production 2).
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_text(report: VerifyReport) -> str:
    """Render for people: by target and trap, with advice in the last line."""
    lines: list[str] = []
    for target in report.targets:
        lines += _target_lines(target)
        lines.append("")
    return "\n".join([*lines, conclusion(report)])


def to_json(report: VerifyReport) -> str:
    return canonical_json(report.to_document()).decode()


def to_github(report: VerifyReport) -> str:
    """Render as GitHub workflow commands: errors and warnings, by trap."""
    lines = []
    for target in report.targets:
        for level, found in (("error", target.failures), ("warning", target.advice)):
            for trap, count, examples in _by_trap(found):
                for finding in examples:
                    message = f"{printable(target.target)}: {_sentence(finding)}"
                    lines.append(f"::{level} title={_property(f'detlayer {trap}')}::{_data(message)}")
                if count > len(examples):
                    message = f"{printable(target.target)}: {trap} in {count - len(examples):,} more places"
                    lines.append(f"::{level} title={_property(f'detlayer {trap}')}::{_data(message)}")
    return "\n".join([*lines, conclusion(report)])


def to_junit(report: VerifyReport) -> str:
    """Render as JUnit XML: a suite for each target, with a case for each trap found and one for the verdict."""
    root = ElementTree.Element("testsuites", name="detlayer verify")
    for target in report.targets:
        name = _xml(printable(target.target))
        traps = list(_by_trap(target.failures))
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=name,
            tests=str(1 + len(traps) + len(target.advice.counts)),
            failures=str(len(traps) + (not target.ok)),
            errors="0",
            skipped="0",
        )
        whole = ElementTree.SubElement(suite, "testcase", classname=name, name="reproducible")
        if not target.ok:
            ElementTree.SubElement(whole, "failure", type="verify", message=_xml(_verdict(target)))
        for trap, count, examples in traps:
            case = ElementTree.SubElement(suite, "testcase", classname=name, name=trap)
            failure = ElementTree.SubElement(case, "failure", type=trap, message=_xml(f"{count:,}: {TRAPS[trap]}"))
            failure.text = _xml("\n".join(map(_sentence, examples)))
        for trap, _, examples in _by_trap(target.advice):
            case = ElementTree.SubElement(suite, "testcase", classname=name, name=trap)
            ElementTree.SubElement(case, "system-out").text = _xml("\n".join(map(_sentence, examples)))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode")


def error_to(form: str, error: DetlayerError) -> str:
    """Render an error that ended `verify`, for formats that need it on stdout; empty for the others."""
    if form == "github":
        message = f"{error.message}; {error.hint}" if error.hint else error.message
        return f"::error title={_property(f'detlayer {error.code}')}::{_data(message)}"
    if form == "junit":
        root = ElementTree.Element("testsuites", name="detlayer verify")
        suite = ElementTree.SubElement(
            root, "testsuite", name="verify", tests="1", failures="0", errors="1", skipped="0"
        )
        case = ElementTree.SubElement(suite, "testcase", classname="verify", name="answered")
        ElementTree.SubElement(case, "error", type=error.code, message=_xml(error.message)).text = _xml(error.hint)
        ElementTree.indent(root)
        return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode")
    return ""  # text readers see stderr, and JSON has its own error


FORMATS: dict[str, Callable[[VerifyReport], str]] = {
    "text": to_text,
    "json": to_json,
    "github": to_github,
    "junit": to_junit,
}


def conclusion(report: VerifyReport) -> str:
    """Return the verdict and what to do, in one line."""
    counts: dict[str, int] = {}
    warnings = 0
    for target in report.targets:
        warnings += len(target.advice)
        for trap, count in target.failures.counts.items():
            counts[trap] = counts.get(trap, 0) + count
    if not counts:
        if warnings:
            return f"reproducible; {_plural(warnings, 'warning')} about contents: review them, or fail with --strict"
        return "reproducible: nothing to do"
    # Corruption comes first, because it makes all other findings unreliable.
    trap = max(counts, key=lambda trap: (trap in INTEGRITY, trap != "content", counts[trap]))
    word = "corrupt" if report.is_corrupt else "not reproducible"
    first = f"{trap} ({_plural(counts[trap], 'place')})"
    others = f", then {len(counts) - 1} more" if len(counts) > 1 else ""
    return f"{word}: fix {first}{others}: {TRAPS[trap]}"


def _target_lines(target: TargetReport) -> Iterator[str]:
    yield f"{printable(target.target)}: {_verdict(target)}"
    for layer in target.layers:
        yield from _layer_lines(layer, named=len(target.layers) > 1 or target.kind == "layout")
    for note in target.notes:
        yield f"  note: {note}"
    if target.applied:
        yield "  perturbed"
        width = max(len(one.what) for one in target.applied)
        for one in target.applied:
            yield f"    {one.what:{width}}  {', '.join(map(printable, one.values))}"
    if target.left_out:
        yield "  not perturbed"
        width = max(len(what) for what, _ in target.left_out)
        for what, reason in target.left_out:
            yield f"    {what:{width}}  {printable(reason)}"
    for kind, found in (("", target.failures), ("warning: ", target.advice)):
        for trap, count, examples in _by_trap(found):
            yield f"  {kind}{trap} ({count:,}): {TRAPS[trap]}"
            for finding in examples:
                yield f"    {_place(finding)}"
            if count > len(examples):
                yield f"    and {count - len(examples):,} more"


def _layer_lines(layer: LayerFacts, *, named: bool) -> Iterator[str]:
    if named:
        yield f"  {printable(layer.name)}"
    yield f"  digest   {layer.digest}"
    yield f"  diff_id  {layer.diff_id}"
    yield f"  key      {layer.key}"
    codec = f"{layer.codec}, class {layer.codec_class}" if layer.codec else "unknown"
    yield f"  codec    {codec}; {size(layer.size_bytes)} for {counted(layer.entries, 'entry')}, {size(layer.tar_bytes)}"


def _verdict(target: TargetReport) -> str:
    about = {
        "layer": "a layer",
        "layout": "an OCI layout",
        "sources": "packed again",
        "rebuild": "built twice",
    }[target.kind]
    if target.ok:
        return f"{about}, reproducible"
    return f"{about}, {'corrupt' if target.is_corrupt else 'not reproducible'}"


def _by_trap(found: Findings) -> Iterator[tuple[str, int, list[Finding]]]:
    """Yield each trap with its count and first findings, the most frequent first."""
    for trap, count in sorted(found.counts.items(), key=lambda item: (-item[1], item[0])):
        yield trap, count, [finding for finding in found.kept if finding.trap == trap][:_SHOWN]


def _place(finding: Finding) -> str:
    where = f"{finding.path}: " if finding.path else ""
    return f"{where}{finding.field} is {finding.found}; expected {finding.wanted}"


def _sentence(finding: Finding) -> str:
    return f"{_place(finding)} ({finding.hint})"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _data(text: str) -> str:
    """Escape the message of a workflow command (actions/toolkit, command.ts)."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _xml(text: str) -> str:
    return _NOT_XML.sub("?", text)

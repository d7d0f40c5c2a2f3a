"""`diff`: report what differs between two directories, layer files or OCI layouts, and why.

The first pass over each side keeps a summary of each entry; the second reads only the contents that differ. Memory is
bounded by the summaries and two contents.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from detlayer.checks.compare import Difference, Summary, compare, first_out_of_order
from detlayer.checks.findings import TRAPS, Change, Finding
from detlayer.difference.changed_contents import explain_contents, first_offset
from detlayer.difference.image import ImageSide, NamedLayer, diff_images
from detlayer.difference.report import Compared, DiffReport, Verdict
from detlayer.difference.sides import HeaderFindings, LayerSide, Side, TreeSide
from detlayer.errors import ConfigError, printable
from detlayer.filesystem import is_dir
from detlayer.images.files import open_file
from detlayer.images.layout import name_layout, open_layout
from detlayer.layer.identify_codec import recognise
from detlayer.layer.ports import Reporter, Silence
from detlayer.tree import fail

__all__ = ["Compared", "DiffReport", "diff"]

EXPLAIN_LIMIT = 50


def diff(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    normalized: bool = False,
    explain_limit: int = EXPLAIN_LIMIT,
    max_expansion: int = 200,
    reporter: Reporter | None = None,
) -> DiffReport:
    """Compare two directories, layer files or OCI layouts, and explain the differences.

    A layout is `oci:DIR[:TAG]` or `oci-archive:FILE[:TAG]`. Directories are compared unchanged, including modes,
    owners, times, hard links and extended attributes. With `normalized`, both sides get the values that `pack` writes
    (SPEC 4), and the form of a layer is ignored. `explain_limit` contents are explained. Raises LayerError, TreeError,
    ConfigError, and IntegrityError for a layout whose blobs do not match their digests.
    """
    names = os.fspath(a), os.fspath(b)
    comparison = _Comparison(normalized, explain_limit, max_expansion, reporter or Silence())
    left, right = map(name_layout, names)
    if left is not None and right is not None:
        with (
            open_layout(left, max_expansion=max_expansion) as old,
            open_layout(right, max_expansion=max_expansion) as new,
        ):
            sides = ImageSide(names[0], left.tag, old), ImageSide(names[1], right.tag, new)
            return diff_images(*sides, comparison.layers)
    if left is not None or right is not None:
        raise ConfigError(
            "diff-kinds",
            f"cannot compare {printable(names[0])} with {printable(names[1])}: only one of them is an image",
            "compare a layer with a layer: those of a layout are in its blobs/sha256",
        )
    return comparison.run(comparison.side(names[0]), comparison.side(names[1]))


class _Comparison:
    def __init__(self, normalized: bool, explain_limit: int, max_expansion: int, reporter: Reporter) -> None:
        self._normalized = normalized
        self._left = explain_limit
        self._max_expansion = max_expansion
        self._reporter = reporter

    def side(self, name: str) -> Side:
        try:
            is_tree = is_dir(name)
        except OSError as error:
            fail(error, os.fsencode(name))
        if is_tree:
            return TreeSide(name, self._normalized, self._reporter)
        return LayerSide(
            name, partial(open_file, name), self._normalized, self._reporter, max_expansion=self._max_expansion
        )

    def layers(self, *layers: NamedLayer) -> DiffReport:
        """Compare two layers of two layouts."""
        a, b = (
            LayerSide(
                layer.name,
                layer.opened,
                self._normalized,
                self._reporter,
                max_expansion=self._max_expansion,
                expected=layer.digest,
            )
            for layer in layers
        )
        return self.run(a, b)

    def run(self, a: Side, b: Side) -> DiffReport:
        old, new = a.summaries(), b.summaries()
        facts = _compared(a, len(old)), _compared(b, len(new))
        if facts[0].digest and facts[0].digest == facts[1].digest:
            return DiffReport("same", *facts)
        layers = (a, b) if isinstance(a, LayerSide) and isinstance(b, LayerSide) and not self._normalized else None
        if layers is not None and facts[0].diff_id == facts[1].diff_id:
            return DiffReport("compressor", *facts, blob=tuple(_compressor_changes(*layers)))
        differences = list(compare(old, new))
        parents = _parents(differences, old, new)
        differences = [_as_parent(one) if one.raw_path in parents else one for one in differences]
        chosen = _choose([one for one in differences if one.content], self._left)
        self._left -= len(chosen)
        explained = {
            one.raw_path: one
            for one in explain_contents(a, b, chosen, _positions(chosen, old), _positions(chosen, new))
        }
        unexplained = sum(one.content for one in differences) - len(chosen)
        differences = [explained.get(one.raw_path, one) for one in differences]
        form: list[Change] = []
        if layers is not None:
            form = [*_order_changes(old, new), *_form_changes(*(one.form for one in layers))]
            if not form and not differences:
                form = _unknown_form(*layers)
        verdict: Verdict = "entries" if differences else "form" if form else "same"
        return DiffReport(
            verdict, *facts, differences=tuple(differences), form=tuple(form), unexplained=max(unexplained, 0)
        )


def _compared(side: Side, entries: int) -> Compared:
    if not isinstance(side, LayerSide):
        return Compared(side.name, "tree", entries)
    facts = side.facts
    return Compared(
        side.name, "layer", entries, facts.blob_bytes, str(facts.digest), str(facts.diff_id), facts.compression
    )


def _choose(differences: list[Difference], limit: int) -> list[Difference]:
    """Take the first of each suffix, then the second: a thousand .pyc files must not hide one program."""
    ranks: list[tuple[int, int]] = []
    seen: Counter[bytes] = Counter()
    for number, one in enumerate(differences):
        suffix = one.raw_path.rpartition(b"/")[2].rpartition(b".")[2]
        ranks.append((seen[suffix], number))
        seen[suffix] += 1
    return [differences[number] for _, number in sorted(ranks)[:limit]]


def _positions(differences: list[Difference], summaries: list[Summary]) -> dict[int, bytes]:
    """Positions of the contents of these differences; those of hard links are elsewhere and are skipped."""
    wanted = {one.raw_path for one in differences}
    return {
        one.position: one.path
        for one in summaries
        if one.path in wanted and one.values.kind == "file" and not one.is_link
    }


def _parents(differences: list[Difference], old: list[Summary], new: list[Summary]) -> frozenset[bytes]:
    """Directories without an entry on one side, although both sides have entries below them."""
    found: set[bytes] = set()
    for kind, others in (("removed", new), ("added", old)):
        alone = {one.raw_path for one in differences if one.kind == kind and one.what == "dir"}
        if alone:
            for summary in others:
                above = summary.path.rpartition(b"/")[0]
                while above:
                    if above in alone:
                        found.add(above)
                    above = above.rpartition(b"/")[0]
    return frozenset(found)


def _as_parent(difference: Difference) -> Difference:
    return replace(difference, changes=tuple(change._replace(trap="parents") for change in difference.changes))


def _order_changes(old: list[Summary], new: list[Summary]) -> Iterator[Change]:
    twins = {one.path: one for one in new}
    found = first_out_of_order((one, twins[one.path]) for one in old if one.path in twins)
    if found is not None:
        path, other = map(printable, found)
        yield Change("entry-order", f"order of {path}", f"after {other}", "before it")


def _form_changes(a: HeaderFindings, b: HeaderFindings) -> Iterator[Change]:
    """Compare findings of form trap by trap, in the order of the table; one example per trap."""
    for trap in TRAPS:
        counts = a.counts.get(trap, 0), b.counts.get(trap, 0)
        if a.sums.get(trap, 0) == b.sums.get(trap, 0) and counts[0] == counts[1]:
            continue
        left, right = a.kept.get(trap, []), b.kept.get(trap, [])
        known = set(right), set(left)
        example = next((one for one in left if one not in known[0]), None)
        reverse = example is None
        example = example or next((one for one in right if one not in known[1]), None) or (left or right)[0]
        twin = _twin(example, left if reverse else right)
        shown = example.found or "empty", twin or example.wanted or "empty"
        where = f"{example.field} of {example.path}" if example.path else example.field
        if counts[0] != counts[1]:
            where += f" ({counts[0]:,} in A, {counts[1]:,} in B)"
        elif counts[0] > 1:
            where += f" (and {counts[0] - 1:,} more)"
        yield Change(trap, where, *(shown[::-1] if reverse else shown))


def _twin(finding: Finding, others: list[Finding]) -> str:
    return next((one.found for one in others if (one.path, one.field) == (finding.path, finding.field)), "")


def _unknown_form(a: LayerSide, b: LayerSide) -> list[Change]:
    at = first_offset(a.pieces(), b.pieces())
    sizes = a.facts.tar_bytes, b.facts.tar_bytes
    return [Change("header-bytes", f"the tar from offset {at}", *(f"{size} bytes in total" for size in sizes))]


def _compressor_changes(a: LayerSide, b: LayerSide) -> Iterator[Change]:
    """Explain why equal tars are different blobs (SPEC 6.3)."""
    old, new = a.facts, b.facts
    codecs = [recognise(facts) for facts in (old, new)]
    names = [
        f"{codec.name} (class {codec.codec_class})"
        if codec is not None
        else f"{facts.compression} of another compressor"
        for codec, facts in zip(codecs, (old, new), strict=True)
    ]
    if names[0] != names[1]:
        yield Change("compressor-class", "codec", *names)
    if old.members != new.members and old.compression == new.compression:
        what = "members" if old.compression == "gzip" else "frames"
        counts = [str(len(facts.members)) for facts in (old, new)]
        if counts[0] != counts[1]:
            yield Change("chunking", f"number of {what}", *counts)
        else:
            at = next(n for n, pair in enumerate(zip(old.members, new.members, strict=True)) if pair[0] != pair[1])
            lengths = [f"{facts.members[at]} bytes" for facts in (old, new)]
            yield Change("chunking", f"length of number {at + 1} of the {what}", *lengths)
    if old.gzip_headers and new.gzip_headers:
        heads = [next(iter(facts.gzip_headers)) for facts in (old, new)]
        fields = (("mtime", 4, 8), ("extra flags", 8, 9), ("OS byte", 9, 10))
        for name, start, end in fields:
            values = [str(int.from_bytes(head[start:end], "little")) for head in heads]
            if values[0] != values[1]:
                yield Change("gzip-header", f"gzip header, {name}", *values)
        if old.gzip_name != new.gzip_name:
            yield Change("gzip-header", "gzip header, name", printable(old.gzip_name), printable(new.gzip_name))
    with a.blob() as left, b.blob() as right:
        offset = first_offset(iter(lambda: left.read(1 << 18), b""), iter(lambda: right.read(1 << 18), b""))
    sizes = [f"{facts.blob_bytes} bytes in total" for facts in (old, new)]
    yield Change("compressor-class", f"compressed bytes from offset {offset}", *sizes)

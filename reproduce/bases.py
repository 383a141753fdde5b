"""The order of methods on two bases, side by side, from the rows of `second/run.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from compared import NO_METHODS, finished, less, told, verdict
from experiments import section, stand_on
from stored import runs_in

from hilora.evaluate.report import Results, Summary, summarise
from hilora.evaluate.tables import markdown_table

BASES = ("smollm2-135m", "gemma-3-270m")
TITLES = {
    "iid": "Two bases: every adapter in the pool",
    "within": "Two bases: half of the tasks' adapters",
    "cross": "Two bases: no related adapter",
}
Found = Mapping[str, Mapping[str, Summary]]
"""Base -> method -> its summary."""


def ranks(found: Mapping[str, Summary]) -> dict[str, int]:
    """Method -> its place, 1 for the best; without the oracle, the base and the constant answer."""
    ranked = sorted((s for s in found.values() if s.method not in NO_METHODS), key=lambda s: -s.average.value)
    return {s.method: place for place, s in enumerate(ranked, 1)}


def agreement(one: Mapping[str, int], other: Mapping[str, int]) -> tuple[int, int]:
    """Pairs of methods that stand alike in two orders, and all pairs."""
    pairs = list(combinations(sorted(one.keys() & other.keys()), 2))
    return sum((one[a] < one[b]) == (other[a] < other[b]) for a, b in pairs), len(pairs)


def beside(found: Found) -> str:
    """A line per method: its place and average on each base, and the difference to hilora-plus there."""
    places = {base: ranks(of) for base, of in found.items()}
    methods = [method for method in next(iter(found.values())) if all(method in of for of in found.values())]
    rows = []
    for method in methods:
        cells = [method]
        for base, of in found.items():
            s, own = of[method], of.get("hilora-plus")
            place = f"{places[base][method]}. " if method in places[base] else ""
            cells.append(f"{place}{s.average.value:.1f} ({s.average.low:.1f} to {s.average.high:.1f})")
            d = None if own is None or own is s else less(s, own)
            cells.append("-" if d is None else f"{told(d)} {verdict(d)}")
        rows.append(cells)
    heading = ["method", *(cell for base in found for cell in (base, "less hilora-plus"))]
    return markdown_table(heading, rows)


def changed(found: Found) -> str:
    """Pairs of methods whose order differs between the bases, and is significant on one of them at least."""
    (one, first), (other, second) = found.items()
    places = ranks(first), ranks(second)
    alike, pairs = agreement(*places)
    lines = [f"{alike} of {pairs} pairs of methods stand alike on both bases."]
    for a, b in combinations(sorted(places[0].keys() & places[1].keys()), 2):
        if (places[0][a] < places[0][b]) != (places[1][a] < places[1][b]):
            told_of = [less(of[a], of[b]) for of in (first, second)]
            if any(verdict(d) != "a tie" for d in told_of):
                lines.append(f"* {a} less {b}: {one} {told(told_of[0])}, {other} {told(told_of[1])}")
    return "\n".join(lines)


def sections(rows: Path, bases: Sequence[str] = BASES) -> list[str]:
    """A section for each setting that has rows of both bases.

    Args:
        rows: holds a folder of rows for each base.
        bases: names of the two.
    """
    text = []
    for setting, title in TITLES.items():
        files = {base: runs_in(rows / base, setting) for base in bases}
        if all(files.values()):
            found = {
                base: {s.method: s for s in summarise(finished(Results(paths)), setting)}
                for base, paths in files.items()
            }
            basis = stand_on(list(next(iter(found.values())).values()))
            text.append(section(title, basis, beside(found), changed(found)))
    return text

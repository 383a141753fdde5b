"""The order of methods on two bases, side by side, from the rows of `second/run.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

from compared import NO_METHODS, finished, less, told, verdict
from experiments import section, stand_on
from stored import runs_in

from hilora.evaluate.report import Results, Summary, summarise
from hilora.evaluate.tables import markdown_table
from hilora.jsonl import read_lines

BASES = ("smollm2-135m", "gemma-3-270m")
TITLES = {
    "iid": "Two bases: every adapter in the pool",
    "within": "Two bases: half of the tasks' adapters",
    "cross": "Two bases: no related adapter",
}
COLUMNS = {"iid": "own", "within": "half", "cross": "none"}
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


def order(found: Mapping[str, Found]) -> str:
    """A line per method: its place and its average in each setting on each base.

    Args:
        found: setting -> what was found on each base.
    """
    heading, columns = ["method"], list[tuple[Mapping[str, Summary], dict[str, int]]]()
    for base in next(iter(found.values())):
        for setting, of in found.items():
            heading.append(f"{base}: {COLUMNS[setting]}")
            columns.append((of[base], ranks(of[base])))
    rows = []
    for method in columns[0][0]:
        if all(method in of for of, _ in columns):
            cells = (f"{of[method].average.value:.1f}" for of, _ in columns)
            places = (f"{places[method]}. " if method in places else "" for _, places in columns)
            rows.append((method, *(place + cell for place, cell in zip(places, cells, strict=True))))
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


def gains(found: Found) -> str:
    """Which methods are significantly better than the base itself, on each."""
    parts = []
    for name, of in found.items():
        ahead = [m for m in ranks(of) if verdict(less(of[m], of["base"])) == "ahead"]
        parts.append(f"on {name} {', '.join(sorted(ahead)) or 'none'}")
    return f"Significantly better than the base itself: {'; '.join(parts)}."


def uses_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Whose ROCs the tokens of a prompt use most, by pool and method, from the lines of `second/uses.py`."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        if "method" in line:
            groups.setdefault((line["pool"], line["method"]), []).append(line)
    rows = []
    for (pool, method), found in groups.items():
        ((winner, times),) = Counter(line["first"] for line in found).most_common(1)
        own = mean(line["first"] == line["id"].split("/")[0] for line in found)
        share = mean(line["own"] for line in found)
        rows.append(
            (pool, method, str(len(found)), f"{own:.0%}", f"{share:.0%}", f"{winner}, {times / len(found):.0%}")
        )
    heading = ("pool", "method", "prompts", "own adapter first", "its share", "first most often")
    return markdown_table(heading, rows)


def sections(folder: Path, bases: Sequence[str] = BASES) -> list[str]:
    """A section for each setting that has rows of both bases, and one about whose ROCs tokens use.

    Args:
        folder: holds rows/BASE/ for each base, and uses.jsonl.
        bases: names of the two.
    """
    files = {setting: {base: runs_in(folder / "rows" / base, setting) for base in bases} for setting in TITLES}
    found = {setting: _found(of, setting) for setting, of in files.items() if all(of.values())}
    text = []
    if found:
        about = "Place and average of each method: own adapter in the pool, half of the adapters, none related."
        text.append(section("Two bases", about, order(found)))
    for setting, of in found.items():
        basis = stand_on(list(next(iter(of.values())).values()))
        text.append(section(TITLES[setting], f"On each base {basis}", beside(of), gains(of), changed(of)))
    if (uses := folder / "uses.jsonl").exists():
        about = "Of what is added to a prompt's tokens, mean over tokens and sites; every adapter in the pool."
        text.append(section("Two bases: whose ROCs tokens use", about, uses_table(list(read_lines(uses)))))
    return text


def _found(files: Mapping[str, Sequence[Path]], setting: str) -> Found:
    """Summaries of the tasks that both bases have adapters for."""
    read = {base: finished(Results(paths)) for base, paths in files.items()}
    tasks = [
        {key[1].split("/")[0] for (of, _), rows in results.rows.items() if of == setting for key in rows}
        for results in read.values()
    ]
    both = set.intersection(*tasks)
    keep = lambda row: row["id"].split("/")[0] in both  # noqa: E731
    return {base: {s.method: s for s in summarise(results, setting, keep=keep)} for base, results in read.items()}

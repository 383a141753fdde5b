"""Intervals and verdicts of rows counted as independent beside those of prompts, from committed rows: intervals.md.

    python reproduce/hilora/intervals.py

A prompt that is answered in several halves has as many rows. Until they were drawn together
(`hilora/evaluate/statistics.py`), each counted as a prompt of its own, and intervals were too narrow.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from compared import less, told, useful_tasks, verdict
from experiments import page_main
from rounding import note
from stored import joined, runs_in

from hilora.evaluate.report import Results, Summary, summarise
from hilora.evaluate.tables import markdown_table

HERE = Path(__file__).parent
Keep = Callable[[Mapping[str, Any]], bool]
PARTS: dict[str, Keep] = {
    "all tasks": lambda row: True,
    "tasks whose adapter is in the pool": lambda row: row["seen"],
    "tasks whose adapter is not in the pool": lambda row: not row["seen"],
}
RUNS = {
    "within": ("hilora", "hilora-plus"),
    "nli": ("hilora", "hilora-plus"),
    "gamma": ("hilora:gamma=0.4",),
    "choose": ("hilora",),
    "ablation": ("hilora",),
}
"""Runs in which a prompt has several rows -> the methods that the others are compared with."""


def as_prompts(results: Results) -> Results:
    """Every row as a prompt of its own, in place."""
    for key, rows in results.rows.items():
        found = {}
        for (split, row_id), row in rows.items():
            name = f"{row_id} in {split}"
            results.items[name] = results.items[row_id] | {"prompt": name}
            found[split, name] = row | {"id": name}
        results.rows[key] = found
    return results


def both_ways(paths: list[Path], keep: Keep) -> tuple[dict[str, Summary], dict[str, Summary]]:
    """Method -> its summary, with rows and with prompts counted as independent."""
    old, new = (summarise(each, "within", keep=keep) for each in (as_prompts(Results(paths)), Results(paths)))
    return {s.method: s for s in old}, {s.method: s for s in new}


def averages(old: Mapping[str, Summary], new: Mapping[str, Summary]) -> str:
    """Each method's average with both intervals."""
    rows = []
    for method, s in new.items():
        one, two = old[method].average, s.average
        width = one.high - one.low
        factor = f"{(two.high - two.low) / width:.1f}" if width else "-"
        ends = (f"{each.low:.1f} to {each.high:.1f}" for each in (one, two))
        rows.append((method, f"{two.value:.1f}", *ends, factor))
    return markdown_table(("method", "average", "of rows", "of prompts", "times as wide"), rows)


def differences(old: Mapping[str, Summary], new: Mapping[str, Summary], reference: str) -> str:
    """Each method's difference to a reference with both intervals and verdicts; those that changed in bold."""
    rows = []
    for method in new:
        if method != reference:
            one, two = (less(of[method], of[reference]) for of in (old, new))
            verdicts = verdict(one), verdict(two)
            last = verdicts[1] if verdicts[0] == verdicts[1] else f"**{verdicts[1]}**"
            rows.append((method, told(one), f"{one.p:.3f}", verdicts[0], told(two), f"{two.p:.3f}", last))
    heading = ("method", "of rows (95 %)", "p", "", "of prompts (95 %)", "p", "")
    return markdown_table(heading, rows)


def page(rows: Path) -> str:
    """intervals.md."""
    text = [
        "# Intervals of rows and of prompts\n\nMade by `python reproduce/hilora/intervals.py` from `rows/`. Left, "
        "each row counted as independent, as it was until they were drawn with their prompts; right, as it is. "
        f"Verdicts that are no longer the same are bold. {note('batches.md')}"
    ]
    for run, references in RUNS.items():
        if not (paths := runs_in(rows, *joined(run))):
            continue
        for title, keep in PARTS.items() if run in ("within", "nli") else [("all tasks", PARTS["all tasks"])]:
            old, new = both_ways(paths, keep)
            first = next(iter(new.values()))
            text += [f"## {run}, {title}: {first.num_rows} rows of {first.num_prompts} prompts", averages(old, new)]
            text += [f"Against {name}:\n\n{differences(old, new, name)}" for name in references]
            if run == "within" and title == "all tasks":
                one, two = (useful_tasks(of) for of in (old, new))
                text += [
                    f"Tasks whose adapter significantly beats base and the most frequent answer: {len(one)} by rows, "
                    f"{len(two)} by prompts; no longer: {', '.join(sorted(one - two))}."
                ]
    return "\n\n".join(text) + "\n"


def main() -> None:
    page_main(__doc__, HERE / "intervals.md", HERE / "rows", page)


if __name__ == "__main__":
    main()

"""Why methods differ on NLI and paraphrase in words that the adapters were not trained on: wording.md.

    python reproduce/ramole/run.py --data DATA --only wording     # rows of training samples, not of the test set
    python reproduce/ramole/wording.py

Beside each method's score it says which adapter had the largest weight, and how often a method gave the answer that
it gave most often: one that always says the same scores like the most frequent answer does.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments import page_main
from rounding import note
from stored import runs_in

from hilora.evaluate.report import Results, Summary, summarise
from hilora.evaluate.tables import grid, markdown_table

HERE = Path(__file__).parent
Rows = Iterable[Mapping[str, Any]]


def first_adapter(row: Mapping[str, Any]) -> str:
    """Name of the adapter of the largest weight; "" where the base answered."""
    return max(row["route"], key=lambda part: part[2])[0] if row["route"] else ""


def same_answer(rows: Rows) -> float:
    """Share of the rows whose answer is the most frequent one."""
    found = Counter(row["answer"] for row in rows)
    return max(found.values()) / found.total()


def one_task(results: Results, found: Mapping[str, Summary], task: str) -> str:
    """A line per method."""
    lines = []
    for method, summary in found.items():
        rows = results.select("iid", method, lambda row: results.items[row["id"]]["task"] == task)[task]
        routed = Counter(map(first_adapter, rows))
        routed.pop("", None)
        own = f"{100 * routed[task] / len(rows):.0f}" if routed else "-"
        other = [f"{name} {count}" for name, count in routed.most_common() if name != task][:3]
        lines.append(
            (method, f"{summary.tasks[task]:.1f}", f"{100 * same_answer(rows):.0f}", own, ", ".join(other) or "-")
        )
    heading = ("method", "score", "the same answer %", "own adapter first %", "others first (prompts)")
    return markdown_table(heading, lines)


def page(rows: Path) -> str:
    """The page."""
    results = Results(runs_in(rows, "wording"))
    found = {s.method: s for s in summarise(results, "iid")}
    base = found["base"]
    tasks = sorted(base.tasks, key=lambda task: (results.clusters[task], task))
    text = [
        "# NLI and paraphrase in other words\n\nMade by `python reproduce/ramole/wording.py`, whose first lines say "
        f"how it is meant, of {base.num_prompts} training samples of {len(tasks)} tasks. "
        f"{note('../hilora/batches.md')}"
    ]
    text += [
        f"## Means of tasks\n\n{markdown_table(*grid('cluster', {s.method: s.clusters for s in found.values()}))}"
    ]
    text += [f"## {task} ({results.clusters[task]})\n\n{one_task(results, found, task)}" for task in tasks]
    return "\n\n".join(text) + "\n"


def main() -> None:
    page_main(__doc__, HERE / "wording.md", HERE / "rows", page)


if __name__ == "__main__":
    main()

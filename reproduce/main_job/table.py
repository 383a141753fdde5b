"""The main job's table, as Markdown, from the rows that evaluate.py wrote.

python reproduce/main_job/table.py [--rows reproduce/main_job/rows.jsonl]
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

ORDER = ("constant", "base", "oracle", "hilora", "hilora-gs", "hilora-roc")
RESAMPLES = 2000


def interval(scores: np.ndarray) -> str:
    """95 % bootstrap interval of a mean, in points."""
    rng = np.random.default_rng(0)
    means = scores[rng.integers(0, len(scores), (RESAMPLES, len(scores)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{100 * low:.1f} to {100 * high:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=Path, default=Path("reproduce/main_job/rows.jsonl"))
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()]
    rows = [row for row in rows if "method" in row]
    methods = [m for m in ORDER if any(row["method"] == m for row in rows)]
    by_task: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        by_task[row["task"]][row["method"]][row["id"]] = row["score"]
    metric = {row["task"]: row["metric"] for row in rows if "metric" in row}

    print("| task | n | metric | " + " | ".join(methods) + " |")
    print("|---|---|---|" + "---|" * len(methods))
    for task, found in sorted(by_task.items()):
        means = [f"{100 * np.mean(list(found[m].values())):.1f}" for m in methods]
        print(f"| {task} | {len(found[methods[0]])} | {metric[task].replace('_', ' ')} | " + " | ".join(means) + " |")
    ids = {row["id"] for row in rows}
    for method in methods:  # a table of unequal rows would compare nothing
        missing = len(ids) - sum(len(found[method]) for found in by_task.values())
        if missing:
            raise SystemExit(f"{method} lacks {missing} rows: run evaluate.py again, it resumes")
    macro = [f"**{100 * np.mean([np.mean(list(f[m].values())) for f in by_task.values()]):.1f}**" for m in methods]
    print(f"| **mean of tasks** | {len(ids)} | | " + " | ".join(macro) + " |\n")

    print(
        "| method | mean over prompts (95 % interval) | right adapter first | right adapter used | adapters | ROCs |"
    )
    print("|---|---|---|---|---|---|")
    for method in methods:
        mine = [row for row in rows if row["method"] == method]
        scores = np.array([row["score"] for row in mine])
        cells = [f"{100 * scores.mean():.1f} ({interval(scores)})"]
        if any(row.get("route") for row in mine):
            cells.append(f"{100 * np.mean([row['route'][0][0] == row['task'] for row in mine]):.1f}")
            used = [any(r[0] == row["task"] and r[3] for r in row["route"]) for row in mine]
            cells.append(f"{100 * np.mean(used):.1f}")
            cells.append(f"{np.mean([len(row['route']) for row in mine]):.2f}")
            cells.append(f"{np.mean([sum(r[3] for r in row['route']) for row in mine]):.1f}")
        else:
            cells += ["-"] * 4
        if method == "hilora-roc":
            cells[1] = "-"  # it ranks no adapters
            cells[4] = "24"
        print(f"| {method} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

"""RAMoLE Table II with trained retrievers: LoraRetriever on 0, 40 and 100 % of the tasks, like for like.

    python reproduce/ramole/retriever.py --data RAMOLE48

RAMOLE48 holds samples.jsonl (20 training texts per task, which is all that the retriever is trained on) and
test_half.jsonl. Trained embedders go to runs/ramole-retriever, where an interrupted training goes on; numbers to
retriever.json beside this file, the table to retriever.md and the screen. Without --data the table is made again from
the numbers. Half an hour on one core.
"""

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from pages import numbers_main, show
from training_log import minutes_of

from hilora.evaluate.routing import TOPS, read_samples, run_routing
from hilora.evaluate.tables import markdown_table
from hilora.jsonl import entry_lines
from hilora.train.retriever import RetrieverRecipe, train_retriever

WORK = Path("runs/ramole-retriever")
SHARES = (0.0, 0.4, 1.0)
METHODS = {
    "cosine": "as the paper scores",
    "own": "hilora's Gaussians",
    "tied": "one covariance for all",
    "experts": "hilora-plus",
}
STEPS = 300
LEFT_OUT = {
    True: "Prompts that are samples of their own task are left out.",
    False: "Prompts that are samples of their own task count here: these numbers are from before they were left out.",
}
PAPER = {0.0: (60.80, 79.29, 85.57, 91.58), 0.4: (63.16, 89.09, 95.45, 98.97), 1.0: (74.08, 97.37, 99.15, 99.82)}


def measure(data: Path, embedder: str) -> dict[str, Any]:
    """Train what is not trained yet, and retrieve with each."""
    samples, test = data / "samples.jsonl", data / "test_half.jsonl"
    known, found = read_samples(samples), {}
    for share in SHARES:
        name, tasks, minutes = embedder, [], 0.0
        if share:
            name, tasks, minutes = trained(known, embedder, share)
        result = run_routing(samples, test, list(METHODS), None, name, on_progress=show)
        found[str(share)] = {
            "minutes": minutes,
            "tasks": tasks,
            "methods": {
                method: {
                    "top": [row[f"top{k}"] for k in TOPS],
                    "interval": row["intervals"]["top1"],
                    "unseen": mean({task: top for task, top in row["tasks"].items() if task not in tasks}),
                    "seen": mean({task: top for task, top in row["tasks"].items() if task in tasks}),
                }
                for method, row in result["methods"].items()
            },
        }
        header = result["setup"]
    return {"setup": header | {"embedder": embedder}, "paper": {str(k): v for k, v in PAPER.items()}, "shares": found}


def trained(known: Mapping[str, list[str]], embedder: str, share: float) -> tuple[str, list[str], float]:
    """Folder of the retriever trained on a share of the tasks, those tasks, and the minutes that it took."""
    recipe = RetrieverRecipe(steps=STEPS, share=share, embedder=embedder)
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()[:8]
    out = WORK / f"share-{share}-{digest}"
    WORK.mkdir(parents=True, exist_ok=True)
    if not out.exists():

        def log(step: int, loss: float, speed: float) -> None:
            if step % 10 == 0:
                print(f"share {share}: step {step} of {STEPS}, loss {loss:.3f}", file=sys.stderr, flush=True)

        train_retriever(known, out, recipe, on_step=log)
    tasks = json.loads((out / "recipe.json").read_text())["tasks"]
    texts = 2 * min(recipe.batch, len(tasks))
    return str(out), tasks, minutes_of(out / "training.jsonl", repeat(texts), least=math.inf)  # all at the median


def mean(tops: Mapping[str, float]) -> float | None:
    """Mean over tasks; None of none."""
    return round(sum(tops.values()) / len(tops), 4) if tops else None


def report(result: dict[str, Any]) -> str:
    """The page."""
    rows = []
    for share, of in result["shares"].items():
        paper = " / ".join(f"{v:.1f}" for v in result["paper"][share])
        rows.append((f"paper: LoraRetriever {float(share):.0%}", paper, "", "", ""))
        for method, row in of["methods"].items():
            low, high = (100 * end for end in row["interval"])
            cells = (row["seen"], row["unseen"])
            rows.append(
                (
                    f"**{method}**, {float(share):.0%}",
                    " / ".join(f"{100 * v:.1f}" for v in row["top"]),
                    f"{low:.1f} to {high:.1f}",
                    *("-" if cell is None else f"{100 * cell:.1f}" for cell in cells),
                )
            )
    heading = ("", "top 1 / 3 / 5 / 8", "95 % of top 1", "trained tasks", "other tasks")
    about = "\n".join(f"* {method}: {what}." for method, what in METHODS.items())
    minutes = ", ".join(f"{of['minutes']:.0f} for {float(s):.0%}" for s, of in result["shares"].items() if float(s))
    return f"""# RAMoLE Table II: retrievers that are trained

Made by `python reproduce/ramole/retriever.py --data RAMOLE48`; numbers in `retriever.json`. Percent of test prompts
whose own adapter is among the best 1, 3, 5, 8; top 1 also for the tasks that the retriever was trained on and for the
others. {LEFT_OUT[bool(result["setup"].get("left_out"))]}

{markdown_table(heading, rows)}

{about}

The embedder is {result["setup"]["embedder"]}, trained by `hilora train retriever` on the samples alone
({STEPS} steps; minutes: {minutes}). The paper's is Instructor-xl, 70 times as large.

Scores that learn from the samples (own, tied, experts) see samples here that a trained embedder has learnt by heart:
they cannot tell how sure to be.
"""


def main() -> None:
    numbers_main(__doc__, Path(__file__).with_suffix(""), measure, report, partial(entry_lines, depth=3))


if __name__ == "__main__":
    main()

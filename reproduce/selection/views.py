"""What witnesses are worth together; and does it help to embed a prompt's first and its last words by themselves?

    python reproduce/selection/views.py --data RAMOLE48

RAMOLE48 holds samples.jsonl; everything is cross-fitted on these samples, no test prompt is looked at. Numbers go to
views.json beside this file, the table to views.md and the screen. Without --data the table is made again.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from pages import numbers_main

from hilora.base.embed import INSTRUCTION, Embedder
from hilora.evaluate.routing import look_at, read_samples
from hilora.evaluate.setup import setup
from hilora.evaluate.tables import markdown_table
from hilora.jsonl import entry_lines
from hilora.route.crossfit import folds
from hilora.route.experts import sum_scores, weigh, witness_scores
from hilora.route.features import Features
from hilora.route.witnesses import Meaning

WORDS = 25
TOPS = (1, 3, 5, 8)
VIEWS: dict[str, Callable[[list[str]], list[str]]] = {
    "head": lambda words: words[:WORDS],
    "tail": lambda words: words[-WORDS:],
    "middle": lambda words: words[len(words) // 4 : max(1, 3 * len(words) // 4)],
}
WORDING = ("meaning", "spelling", "phrases")
PLUS = (*WORDING, "outline")
SETS = (
    ("meaning",),
    ("head",),
    ("tail",),
    ("middle",),
    ("meaning", "head"),
    ("meaning", "tail"),
    WORDING,
    (*WORDING, "tail"),
    ("meaning", "outline"),
    PLUS,
    (*PLUS, "head"),
    (*PLUS, "tail"),
    (*PLUS, "head", "tail", "middle"),
)


def measure(data: Path, model: str) -> dict[str, Any]:
    """Top-k shares and mean log-loss of held-out samples for each set of witnesses, its weights fitted on them."""
    embedder = Embedder(model, instruction=INSTRUCTION)
    samples = read_samples(data / "samples.jsonl")
    names = sorted(samples)
    owner, scores = witness_scores([look_at(samples[name], embedder, True) for name in names])
    for view, cut in VIEWS.items():
        seen = [Features(embedder([" ".join(cut(text.split())) for text in samples[name]])) for name in names]
        scores[view] = torch.cat([Meaning().fit(kept).score(held) for kept, held, _ in folds(seen)])
    header = setup("reproduce/selection/views.py", embedder=embedder.name, words=WORDS, samples=len(owner))
    return {"setup": header, "sets": [judge(owner, scores, witnesses) for witnesses in SETS]}


def judge(owner: Tensor, scores: dict[str, Tensor], witnesses: tuple[str, ...]) -> dict[str, Any]:
    own = {name: scores[name].double() for name in witnesses}
    summed = sum_scores(own, weigh(owner, own))
    better = (summed > summed.gather(1, owner[:, None])).sum(1)
    return {
        "witnesses": list(witnesses),
        "tops": [round(float((better < k).double().mean()), 4) for k in TOPS],
        "log_loss": round(float(torch.nn.functional.cross_entropy(summed, owner)), 4),
    }


def page(found: dict[str, Any]) -> str:
    rows = [
        (" + ".join(of["witnesses"]), *(f"{100 * top:.1f}" for top in of["tops"]), f"{of['log_loss']:.3f}")
        for of in found["sets"]
    ]
    table = markdown_table(("witnesses", *(f"top {k}" for k in TOPS), "log-loss"), rows)
    setup, ours = found["setup"], ", ".join(PLUS)
    return (
        f"# What witnesses are worth, and several embeddings of one prompt\n\n{setup['samples']} held-out samples of "
        f"RAMoLE's tasks, cross-fitted. `hilora-plus` has {ours}. *head* and *tail* are tied Gaussians over "
        f"embeddings of the first and the last {setup['words']} words, *middle* of the middle half.\n\n{table}\n"
    )


def main() -> None:
    numbers_main(__doc__, Path(__file__).with_suffix(""), measure, page, partial(entry_lines, depth=2))


if __name__ == "__main__":
    main()

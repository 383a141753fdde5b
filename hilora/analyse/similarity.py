"""How similar the prompts of each task are to each adapter: HiLoRA Fig. 4 and 9, RAMoLE Fig. 4.

Mean scores of a task's prompts under "own" (HiLoRA Eq. 3), "cosine" (Retriever) and "tied" (one covariance for all
adapters), and the mean number of adapters that Eq. 4 selects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hilora.errors import InputError
from hilora.evaluate.routing import SCORERS, Scorer, own_scorer, read_samples
from hilora.evaluate.tasks import paper_cluster
from hilora.jsonl import numbered_lines
from hilora.route.candidates import sign_sizes
from hilora.route.crossfit import folds
from hilora.route.features import Features

K = 3
"""Of Eq. 4, as in the method `hilora`."""
SCORES = ("own", "cosine", "tied")
WITHOUT_ROWS = "without rows"
PROMPTS = "task of the prompts"

Numbers = dict[str, Any]


def read_tasks(path: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Task -> prompts, and task -> cluster, from JSON Lines with "task", "inputs" and, if known, "cluster".

    Raises:
        InputError: the file cannot be read, or a row is bad (names the line).
    """
    texts = read_samples(path)
    rows = [json.loads(line) for _, line in numbered_lines(path)]
    return texts, {row["task"]: str(row.get("cluster") or "all") for row in rows}


def against_prompts(
    asked: Mapping[str, Features],
    clusters: Mapping[str, str],
    names: Sequence[str],
    known: Sequence[Features],
    ridge: float,
) -> Numbers:
    """Mean scores of tasks' prompts.

    Args:
        asked: task -> its prompts.
        clusters: task -> cluster.
        names, known: the adapters and their samples.
        ridge: of "own".

    Returns:
        "prompts", what they are; "tasks" and "adapters", (name, cluster) pairs cluster by cluster; for each of
        `SCORES` a matrix (task, adapter); "candidates" (task,), the mean number of adapters that Eq. 4 selects.
    """
    tasks, adapters = ordered(clusters, names)
    columns = [names.index(name) for name, _ in adapters]
    scorers = _fitted(known, ridge)
    rows = {name: [scorer.score(asked[task])[:, columns] for task, _ in tasks] for name, scorer in scorers.items()}
    return {"prompts": PROMPTS, "tasks": tasks, "adapters": adapters, **_means(rows)}


def against_samples(names: Sequence[str], known: Sequence[Features], ridge: float) -> Numbers:
    """The same for the adapters' own samples, each scored by statistics that have not seen it.

    Raises:
        InputError: an adapter has too few samples to hold some out.
    """
    order = sorted(range(len(names)), key=lambda i: names[i])
    held: dict[str, list[list[Tensor]]] = {name: [[] for _ in names] for name in SCORES}
    for kept, out, owner in folds(known):
        for name, scorer in _fitted(kept, ridge).items():
            scores = scorer.score(out)[:, order]
            for i in range(len(names)):
                held[name][i].append(scores[owner == i])
    rows = {name: [torch.cat([torch.empty(0, len(names)), *own[i]]) for i in order] for name, own in held.items()}
    for i, scores in zip(order, rows["own"], strict=True):
        if not len(scores):
            raise InputError(
                f"Adapter {names[i]!r} has {len(known[i])} samples, too few to hold some out. "
                f"Give prompts with --test."
            )
    pairs = [(names[i], "all") for i in order]
    return {"prompts": "held-out samples of the adapter", "tasks": pairs, "adapters": pairs, **_means(rows)}


def ordered(clusters: Mapping[str, str], names: Sequence[str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(task, cluster) of the tasks and of the adapters, cluster by cluster; adapters without rows come last."""
    shown = {task: paper_cluster(cluster) for task, cluster in clusters.items()}
    tasks = sorted(shown.items(), key=lambda pair: (pair[1].lower(), pair[0]))
    adapters = [pair for pair in tasks if pair[0] in set(names)]
    return tasks, adapters + [(name, WITHOUT_ROWS) for name in sorted(set(names) - shown.keys())]


def _fitted(known: Sequence[Features], ridge: float) -> dict[str, Scorer]:
    return {name: own_scorer(known, ridge) if name == "own" else SCORERS[name](known) for name in SCORES}


def _means(rows: Mapping[str, Sequence[Tensor]]) -> Numbers:
    """Score -> mean over each task's rows; "candidates" from the scores that Eq. 4 goes by."""
    means = {
        name: [[round(mean, 3) for mean in scores.mean(0).tolist()] for scores in of_tasks]
        for name, of_tasks in rows.items()
    }
    return means | {"candidates": [round(float(sign_sizes(scores, K).mean()), 3) for scores in rows["own"]]}

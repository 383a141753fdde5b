"""How well adapters are selected from unlabelled prompts, how sure that is, and whether it shows when none fits.

    python reproduce/selection/selection.py --data DATA

DATA holds ramole48/{samples,test_half}.jsonl (20 texts of 48 tasks, half of that paper's test prompts) and
flan_mini/{train,val}, of which the tasks of pools/flan-mini are used: samples are drawn from train, tests are the
second halves of val. No base model runs. Numbers go to selection.json beside this file, tables to selection.md and
the screen. Without --data the tables are made again from the numbers.

Everything is chosen on the samples by cross-validation; the test prompts are looked at once, here.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from pages import numbers_main, show
from selection_tables import report

from hilora.base.embed import Embedder, Remembering
from hilora.evaluate.routing import TOPS, evaluate_routing, look_at, not_sampled, read_samples
from hilora.evaluate.rows import choose_rows, cluster_of, load_rows
from hilora.evaluate.setup import setup
from hilora.evaluate.statistics import task_seed
from hilora.jsonl import entry_lines
from hilora.route.candidates import sign_sizes
from hilora.route.conformal import own_surprises, surprises, threshold
from hilora.route.experts import Experts, calibrate
from hilora.route.features import Features, join
from hilora.route.gaussian import OwnGaussian
from hilora.route.novelty import leads
from hilora.route.ridge import choose_ridge

HERE = Path(__file__).parent
VERDICTS = HERE.parent / "pool" / "verdicts.json"
METHODS = ("cosine", "own", "tied", "experts")
SIZES = (5, 10, 20, 50)
SAMPLES = 20
ALPHAS = (0.2, 0.1, 0.05, 0.02)
RESPLITS = 200
FAMILIES = (
    ("anli_r1", "anli_r2", "anli_r3"),
    ("mnli_matched", "mnli_mismatched"),
    ("arc_easy", "arc_challenge"),
    ("squad_v1", "squad_v2"),
)
"""Tasks that differ in how their rows were collected, not in what is asked; every other task is a family alone."""


@dataclass(frozen=True)
class Corpus:
    """Texts by task: up to 50 samples each, and test prompts; clusters by task."""

    samples: Mapping[str, list[str]]
    test: Mapping[str, list[str]]
    cluster: Mapping[str, str]

    def family(self, task: str) -> str:
        """The family that a task belongs to, by the name of its first member."""
        return next((family[0] for family in FAMILIES if task in family), task)


def ramole48(data: Path) -> Corpus:
    """RAMoLE's tasks: samples and test prompts differ in wording."""
    samples, test = (data / "ramole48" / f"{name}.jsonl" for name in ("samples", "test_half"))
    known = read_samples(samples)
    return Corpus(known, not_sampled(known, read_samples(test)), cluster_of(load_rows(test)))


def flan_mini(data: Path) -> Corpus:
    """The tasks of the pool."""
    tasks = {task for task, verdict in json.loads(VERDICTS.read_text()).items() if verdict == "kept"}
    train = load_rows(data / "flan_mini" / "train")
    held_out = load_rows(data / "flan_mini" / "val")
    by_task: dict[str, list[str]] = defaultdict(list)
    for row in train:
        if row.task in tasks:
            by_task[row.task].append(row.inputs)
    samples = {}
    for task, texts in by_task.items():
        chosen = np.random.default_rng(task_seed(0, task)).permutation(len(texts))[: max(SIZES)]
        samples[task] = [texts[i] for i in chosen]
    test: dict[str, list[str]] = defaultdict(list)
    for row in choose_rows([row for row in held_out if row.task in tasks], part="second"):
        test[row.task].append(row.inputs)
    return Corpus(samples, test, cluster_of(held_out))


def measure(data: Path, embedder_name: str) -> dict[str, Any]:
    """All numbers."""
    embedder = Remembering(Embedder(embedder_name))
    found = {}
    for name, corpus in (("ramole48", ramole48(data)), ("flan_mini", flan_mini(data))):
        counts = [n for n in SIZES if n <= min(map(len, corpus.samples.values()))]
        found[name] = {
            "tasks": len(corpus.samples),
            "prompts": sum(map(len, corpus.test.values())),
            "retrieval": {str(n): retrieval(corpus, n, embedder) for n in counts},
        } | sets_and_novelty(corpus, embedder)
    return {"setup": setup("reproduce/selection", embedder=embedder_name, resplits=RESPLITS), **found}


def retrieval(corpus: Corpus, count: int, embedder: Embedder) -> dict[str, Any]:
    """Method -> share of prompts whose own adapter is among the best 1, 3, 5, 8; and the interval of the first."""
    say(f"top k with {count} samples")
    samples = {task: texts[:count] for task, texts in corpus.samples.items()}
    found = evaluate_routing(samples, corpus.test, METHODS, embedder, on_progress=show)
    return {
        method: [*(each[f"top{k}"] for k in TOPS), [short(end) for end in each["intervals"]["top1"]]]
        for method, each in found.items()
    }


def sets_and_novelty(corpus: Corpus, embedder: Embedder) -> dict[str, Any]:
    """Conformal sets and seen-or-unseen, with `SAMPLES` samples per adapter."""
    names = sorted(corpus.samples)
    samples = [look_at(corpus.samples[name][:SAMPLES], embedder, True) for name in names]
    test = join([look_at(corpus.test[name], embedder, True) for name in names])
    owner = torch.tensor([i for i, name in enumerate(names) for _ in corpus.test[name]])
    say("conformal sets")
    found = calibrate(samples)
    scores = Experts(found.weights).fit(samples).score(test)

    @cache  # most families have one task
    def scored_without(gone: tuple[int, ...]) -> tuple[Tensor, float]:
        rest = [own for i, own in enumerate(samples) if i not in gone]
        rows = torch.isin(owner, torch.tensor(gone)).nonzero()[:, 0]
        fitted = calibrate(rest)
        assert fitted.seen_above is not None
        return Experts(fitted.weights).fit(rest).score(test.take(rows)), fitted.seen_above

    sets = {str(alpha): conformal(scores, owner, found.surprises, alpha) for alpha in ALPHAS}
    return {
        "conformal": sets,
        "eq4": eq4(samples, test, owner),
        "top": [short(float(hit)) for hit in hits(scores, owner).double().mean(0)[: max(TOPS)]],
        "novelty": {
            kind: novelty(corpus, names, owner, scores, found.seen_above, scored_without, kind)
            for kind in ("own", "family", "cluster")
        },
    }


def conformal(scores: Tensor, owner: Tensor, calibration: Sequence[float], alpha: float) -> dict[str, Any]:
    """Coverage and mean size: thresholds from half of the test prompts, and from cross-fitted samples."""
    surprise, own = surprises(scores), own_surprises(scores, owner)
    random = np.random.default_rng(0)
    rows: list[tuple[float, ...]] = []
    for _ in range(RESPLITS):
        order = torch.from_numpy(random.permutation(len(owner)))
        known, new = order[: len(owner) // 2], order[len(owner) // 2 :]
        rows.append(covered(surprise[new], own[new], threshold(own[known].tolist(), alpha)))
    coverage, used, size = np.mean(rows, axis=0)
    at_test = covered(surprise, own, threshold(calibration, alpha))
    spread = 1.96 * np.sqrt(at_test[1] * (1 - at_test[1]) / len(owner))
    return {
        "resplits": [short(coverage), short(used), short(size)],
        "samples": [*map(short, at_test), short(spread)],
    }


def covered(surprise: Tensor, own: Tensor, limit: float) -> tuple[float, float, float]:
    """Coverage of the sets as defined, and as used (never empty), and the mean size as used."""
    best = own <= surprise.min(1).values
    size = (surprise <= limit).sum(1).clamp_min(1)
    inside = own <= limit
    return share(inside), share(inside | best), float(size.double().mean())


def eq4(samples: Sequence[Features], test: Features, owner: Tensor) -> dict[str, float]:
    """HiLoRA's own rule: coverage and mean size."""
    embeddings = [own.embeddings for own in samples]
    scores = OwnGaussian(choose_ridge(embeddings)).fit(embeddings).score(test.embeddings)
    sizes = sign_sizes(scores, 3)
    place = hits(scores, owner).int().argmax(1)
    return {"coverage": short(share(place < sizes)), "size": short(float(sizes.mean()))}


def hits(scores: Tensor, owner: Tensor) -> Tensor:
    """(prompt, k): whether the own adapter is among the k + 1 best."""
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return (order == owner[:, None]).cumsum(1).bool()


def novelty(
    corpus: Corpus,
    names: Sequence[str],
    owner: Tensor,
    scores: Tensor,
    seen_above: float | None,
    scored_without: Callable[[tuple[int, ...]], tuple[Tensor, float]],
    kind: str,
) -> dict[str, Any]:
    """Each prompt with all adapters, and with its own, its family or its cluster removed; all is fitted anew.

    `scored_without` gives the scores of the removed adapters' prompts, and the lead above which they count as seen.
    """
    group = {"own": lambda task: task, "family": corpus.family, "cluster": corpus.cluster.__getitem__}[kind]
    removed: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        removed[group(name)].append(i)
    seen, unseen = tests_of_novelty(scores), {name: torch.zeros(len(owner)) for name in tests_of_novelty(scores)}
    called = torch.zeros(len(owner), dtype=torch.bool)
    for number, gone in enumerate(removed.values()):
        say(f"{kind} removed, {number + 1} of {len(removed)}")
        rows = torch.isin(owner, torch.tensor(gone)).nonzero()[:, 0]
        without, least = scored_without(tuple(gone))
        for name, values in tests_of_novelty(without).items():
            unseen[name][rows] = values
        called[rows] = leads(without) <= least
    truth = np.repeat([1, 0], len(owner))
    assert seen_above is not None
    return {
        "auroc": {
            name: short(float(roc_auc_score(truth, torch.cat([seen[name], unseen[name]]).numpy()))) for name in seen
        },
        "called_unseen": [short(share(leads(scores) <= seen_above)), short(share(called))],
    }


def tests_of_novelty(scores: Tensor) -> dict[str, Tensor]:
    """Name -> a number per prompt that should be large where an adapter fits."""
    best, second = scores.topk(2, dim=1).values.unbind(1)
    return {
        "lead": leads(scores),
        "best score": best,
        "best posterior": torch.log_softmax(scores, dim=1).max(1).values,
        "margin": best - second,
    }


def share(flags: Tensor) -> float:
    return float(flags.double().mean())


def short(number: float) -> float:
    return round(float(number), 4)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    numbers_main(__doc__, HERE / "selection", measure, report, partial(entry_lines, depth=3))


if __name__ == "__main__":
    main()

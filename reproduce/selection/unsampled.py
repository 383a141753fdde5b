"""What it costs to register an adapter without samples of its training data.

    python reproduce/selection/unsampled.py --data RAMOLE48

RAMOLE48 holds samples.jsonl and test_half.jsonl. In place of samples: five prompts that somebody wrote for each task
without looking at its data, or a description as in a model card (cards.json, in this folder); and fewer samples, to
compare with. Numbers go to unsampled.json beside this file, tables to unsampled.md and the screen. Without --data the
tables are made again from the numbers.
"""

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from pages import numbers_main

from hilora.base.embed import Embedder
from hilora.evaluate.routing import SCORERS, look_at, not_sampled, own_scorer, read_samples
from hilora.evaluate.setup import setup
from hilora.evaluate.tables import markdown_table
from hilora.jsonl import entry_lines
from hilora.pool.described import description_texts
from hilora.route.experts import Experts, calibrate
from hilora.route.features import Features, join
from hilora.route.ridge import choose_ridge

HERE = Path(__file__).parent
CARDS = HERE / "cards.json"
SAMPLES = 20
WAYS = {
    "20 samples": "of its training data, as in both papers",
    "5 samples": "of them",
    "2 samples": "of them",
    "5 prompts": "written for it by hand",
    "2 prompts": "of those",
    "description": "two or three sentences, their wording not counted",
}
Samples = Sequence[Features]
Scorer = Callable[[Samples, Features], Tensor]


def ways(samples: dict[str, list[str]], names: Sequence[str], embedder: Embedder) -> dict[str, list[Features]]:
    """Way -> what each adapter is known by."""
    cards = json.loads(CARDS.read_text())

    real = [look_at(samples[name][:SAMPLES], embedder, True) for name in names]
    written = [look_at(cards[name]["prompts"], embedder, True) for name in names]
    few = {f"{n} samples": [own.take(torch.arange(n)) for own in real] for n in (SAMPLES, 5, 2)}
    prompts = {f"{n} prompts": [own.take(torch.arange(n)) for own in written] for n in (5, 2)}
    described = [look_at(description_texts(cards[name]["description"]), embedder, False) for name in names]
    return few | prompts | {"description": described}


def scorers(real: Samples) -> dict[str, Scorer]:
    """Method -> scores of texts for adapters known by some samples; what is chosen is chosen on the real ones."""
    ridge = choose_ridge([own.embeddings for own in real])
    weights = calibrate(real).weights
    return {
        "cosine": lambda known, texts: SCORERS["cosine"](known).score(texts),
        "hilora": lambda known, texts: own_scorer(known, ridge).score(texts),
        "hilora-plus": lambda known, texts: Experts(weights).fit(known).score(texts),
    }


def measure(data: Path, embedder_name: str) -> dict[str, Any]:
    """All numbers."""
    embedder = Embedder(embedder_name)
    samples = read_samples(data / "samples.jsonl")
    test = not_sampled(samples, read_samples(data / "test_half.jsonl"))
    names = sorted(samples)
    texts = join([look_at(test[name], embedder, True) for name in names])
    owner = torch.tensor([i for i, name in enumerate(names) for _ in test[name]])
    header = setup("reproduce/selection/unsampled.py", embedder=embedder_name, tasks=len(names), prompts=len(owner))
    return {"setup": header} | compare(ways(samples, names, embedder), texts, owner)


def compare(known: dict[str, list[Features]], texts: Features, owner: Tensor) -> dict[str, Any]:
    """What each way to know adapters finds: all of them known so, and one at a time."""
    real = known[f"{SAMPLES} samples"]
    methods = scorers(real)
    everyone: dict[str, Any] = {}
    alone: dict[str, Any] = {}
    for way, own in known.items():
        everyone[way] = {method: found(score(own, texts), owner) for method, score in methods.items()}
        alone[way] = {method: one_of_many(score, real, own, texts, owner) for method, score in methods.items()}
        print(f"{way}: done", file=sys.stderr, flush=True)
    return {"everyone": everyone, "alone": alone}


def found(scores: Tensor, owner: Tensor) -> list[float]:
    """Share of prompts whose own adapter is the best, and among the three best."""
    ahead = (scores > scores.gather(1, owner[:, None])).sum(1)
    return [short(float((ahead < k).double().mean())) for k in (1, 3)]


def one_of_many(score: Scorer, real: Samples, own: Samples, texts: Features, owner: Tensor) -> list[float]:
    """The same, where one adapter at a time is known so and all others by samples; and what it takes from them."""
    hits, taken = torch.zeros(2, dtype=torch.double), 0.0
    for i in range(len(real)):
        scores = score([own[i] if j == i else each for j, each in enumerate(real)], texts)
        mine = owner == i
        ahead = (scores[mine] > scores[mine][:, i : i + 1]).sum(1)
        hits += torch.tensor([(ahead < k).sum() for k in (1, 3)])
        taken += float((scores[~mine].argmax(1) == i).double().mean())
    return [*(short(float(share)) for share in hits / len(owner)), short(taken / len(real))]


def short(number: float) -> float:
    return round(number, 4)


def report(result: dict[str, Any]) -> str:
    """The page."""
    methods = list(next(iter(result["everyone"].values())))
    setup_ = result["setup"]
    everyone = [
        (f"**{way}** {WAYS[way]}", *(" / ".join(f"{100 * v:.1f}" for v in each[method]) for method in methods))
        for way, each in result["everyone"].items()
    ]
    alone = [
        (f"**{way}**", *(cell for method in methods for cell in cells(*each[method])))
        for way, each in result["alone"].items()
    ]
    heading = ["known by", *(cell for method in methods for cell in (f"{method}: top 1 / 3", "takes"))]
    return f"""# Adapters without samples

Made by `python reproduce/selection/unsampled.py --data RAMOLE48`; numbers in `unsampled.json`. Percent of
{setup_["prompts"]} test prompts of RAMoLE's {setup_["tasks"]} tasks whose own adapter is best / among the three best.

## All adapters known in this way

{markdown_table(["known by", *methods], everyone)}

## One adapter known in this way, all others by {SAMPLES} samples

Mean over the adapters, each in turn. "takes": share of the others' prompts on which it is best; in a fair world about
{100 / setup_["tasks"]:.1f} % of what is misrouted.

{markdown_table(heading, alone)}

The prompts and descriptions (`cards.json`) were written from knowledge of what such data sets ask, without looking at
them, and in the manner of instruction-tuning prompts. Somebody who does not know that manner will do worse.
"""


def cells(first: float, third: float, taken: float) -> tuple[str, str]:
    return f"{100 * first:.1f} / {100 * third:.1f}", f"{100 * taken:.2f}"


def main() -> None:
    numbers_main(__doc__, HERE / "unsampled", measure, report, partial(entry_lines, depth=2))


if __name__ == "__main__":
    main()

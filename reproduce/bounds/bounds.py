"""HiLoRA's error bounds (section 3.4) beside what is measured: seen tasks (Theorem 1), unseen tasks (Theorem 2).

    python reproduce/bounds/bounds.py --data RAMOLE48

RAMOLE48 holds samples.jsonl (20 training texts per task) and test_half.jsonl (test prompts), both with "task" and
"inputs". The numbers go to bounds.json beside this file, the tables to bounds.md and the screen. Without --data the
tables are made again from the numbers.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from bounds_tables import report
from pages import numbers_main

from hilora.analyse.bounds import bhattacharyya, log_densities, normals, overtaken, top_k_bound
from hilora.analyse.confusion import HeldOut, diagnose, held_out, ranked
from hilora.analyse.unseen import chernoff, fit_unseen
from hilora.base import embed
from hilora.base.embed import Remembering, describe_embedder
from hilora.evaluate.routing import not_sampled, read_samples
from hilora.evaluate.setup import setup
from hilora.jsonl import entry_lines
from hilora.route.gaussian import OwnGaussian
from hilora.route.ridge import choose_ridge
from hilora.route.tied import TiedGaussian

KS = (1, 2, 3, 5, 8, 12, 16, 24)
DRAWS = 200
"""Random prompts from each Gaussian: is the theorem right about what it speaks of?"""

Fresh = Callable[[], OwnGaussian | TiedGaussian]
Texts = Mapping[str, Tensor]


def measure(data: Path, embedder_name: str) -> dict[str, Any]:
    """All numbers; no texts."""
    embedder = Remembering(embed.Embedder(embedder_name))
    known = read_samples(data / "samples.jsonl")
    asked = not_sampled(known, read_samples(data / "test_half.jsonl"))
    samples, test = ({task: embedder(texts) for task, texts in sorted(own.items())} for own in (known, asked))
    ridge = choose_ridge(list(samples.values()))
    models: dict[str, Fresh] = {"own": lambda: OwnGaussian(ridge), "tied": TiedGaussian}
    header = setup(
        "reproduce/bounds/bounds.py",
        embedder=asdict(describe_embedder(embedder)),
        adapters=len(samples),
        samples=sum(map(len, samples.values())),
        prompts=sum(map(len, test.values())),
        draws=DRAWS,
        ridge=ridge,
        shrinkage=TiedGaussian().shrinkage,
    )
    found = {
        name: {
            "seen": seen(samples, test, fresh),
            "halves": halves(samples, test, fresh),
            "flags": flags(samples, fresh),
        }
        | {"unseen": {task: unseen(task, samples, test[task], fresh) for task in test}}
        for name, fresh in models.items()
    }
    return {"setup": header, "ks": KS, **found}


def seen(samples: Texts, test: Texts, fresh: Fresh) -> dict[str, Any]:
    """Theorem 1 per adapter, and the share missed among the k best: random, held-out and test prompts."""
    known = list(samples.values())
    model = fresh().fit(known)
    pool = normals(model)
    distance = bhattacharyya(pool)
    random = pool.draw(DRAWS, torch.Generator().manual_seed(0))
    owner = torch.arange(len(known)).repeat_interleave(DRAWS)
    held = held_out(known, fresh)
    rates = {
        "bound": torch.stack([top_k_bound(distance, k) for k in KS], 1),
        "drawn": missed(ranked(owner, torch.cat([log_densities(pool, prompts) for prompts in random]))),
        "held": missed(held),
        "test": missed(routed(samples, test, model)),
    }
    lost = held.share(held.ahead)
    total = overtaken(distance)
    rivals = {}
    for i, name in enumerate(samples):
        near = int(distance[i].scatter(0, torch.tensor(i), torch.inf).argmin())
        rivals[name] = [list(samples)[near], short(distance[i, near]), short(lost[i, near]), short(total[i])]
    return {"nearest": rivals, **{what: by_name(samples, values) for what, values in rates.items()}}


def halves(samples: Texts, test: Texts, fresh: Fresh) -> dict[str, Any]:
    """Lemma 3 for seen tasks: the pool is fitted to every other sample, q to the rest."""
    model = fresh().fit([own[::2] for own in samples.values()])
    pool = normals(model)
    bound = [
        [chernoff(fit_unseen(model, own[1::2]), pool, target=i).miss(k) for k in KS]
        for i, own in enumerate(samples.values())
    ]
    return {
        "bound": by_name(samples, torch.tensor(bound)),
        "test": by_name(samples, missed(routed(samples, test, model))),
    }


def unseen(task: str, samples: Texts, test: Tensor, fresh: Fresh) -> dict[str, Any]:
    """Theorem 2 for one task that the pool knows nothing of."""
    names = [name for name in samples if name != task]
    model = fresh().fit([samples[name] for name in names])
    pool, q = normals(model), fit_unseen(model, samples[task])
    found = chernoff(q, pool)
    random = log_densities(pool, q.draw(DRAWS, torch.Generator().manual_seed(0))[0])
    return {
        "nearest": names[found.nearest],
        "alpha": short(found.alpha[torch.arange(len(names)) != found.nearest].median()),
        "bound": [short(found.miss(k)) for k in KS],
        **{
            what: [
                short(rate)
                for rate in missed(ranked(torch.full((len(scores),), found.nearest), scores))[found.nearest]
            ]
            for what, scores in (("drawn", random), ("test", model.score(test)))
        },
    }


def flags(samples: Texts, fresh: Fresh) -> dict[str, Any]:
    """What `diagnose` finds, and one adapter's advice as an example."""
    found = diagnose(samples, fresh)
    return {
        "duplicates": {each.name: each.duplicates for each in found if each.duplicates},
        "captures": {each.name: [short(each.captured), short(each.fair)] for each in found if each.captures_others},
        "longest": max(([each.name, *each.advice] for each in found), key=len),
    }


def routed(samples: Texts, test: Texts, model: OwnGaussian | TiedGaussian) -> HeldOut:
    """Test prompts under all adapters."""
    owner = [torch.full((len(test[name]),), i) for i, name in enumerate(samples)]
    return ranked(torch.cat(owner), model.score(torch.cat([test[name] for name in samples])))


def missed(found: HeldOut) -> Tensor:
    return torch.stack([found.missed(k) for k in KS], 1)  # (adapter, k)


def by_name(samples: Texts, rates: Tensor) -> dict[str, list[float]]:
    return {name: [short(rate) for rate in row] for name, row in zip(samples, rates, strict=True)}


def short(number: Tensor | float) -> float:
    return float(f"{float(number):.4g}")


def main() -> None:
    name = Path(__file__).with_suffix("")
    numbers_main(__doc__, name, measure, report, partial(entry_lines, depth=3))  # a line per task


if __name__ == "__main__":
    main()

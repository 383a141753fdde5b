"""Whom the bound on what a newcomer takes refuses: honest adapters, and attacks of growing strength.

    python benchmarks/capture.py --json benchmarks/capture.jsonl

A server refuses an upload that is first on more than half of the other adapters' samples, by any way of scoring, its
nearest neighbour's left out (`hilora.route.capture`). Honest newcomers: each adapter of the pool in turn comes to the
pool of the others, with its own samples; the calibration (three weights) stays the whole pool's. Attacks come to the
whole pool:

    copies     the very samples of so many of its adapters
    mixed      samples drawn from all of its adapters
    bare       the same, embeddings alone (`hilora pool push --private --no-terms`)
    generic    short prompts that fit any task
    mean       embeddings near the mean of all samples; no texts

Each line has the share that the bound looks at (of the others' samples, the neighbour's left out), the way by which
it is most, and the share that is taken of the adapter that is worst hit, by the way that hits it hardest.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from lines import Line, add
from torch import Tensor

from hilora import Pool
from hilora.base.embed import Embedder
from hilora.evaluate.setup import setup
from hilora.pool.newcomer import CAPTURE
from hilora.route.capture import captures
from hilora.route.features import Features, hash_terms, join

VERBS = (
    "Answer",
    "Explain",
    "Summarize",
    "Translate",
    "Rewrite",
    "Continue",
    "Classify",
    "Describe",
    "Check",
    "Solve",
)
OBJECTS = (
    "this.",
    "it.",
    "the question.",
    "the text below.",
    "the following sentence.",
    "this for me, please.",
    "it in a few words.",
    "what is asked here.",
    "the passage.",
    "the problem, step by step.",
)
NOISE = 0.02
"""Standard deviation of each coordinate around the mean of all embeddings, whose length is about 1."""


class Bound:
    """The bound, over a pool's adapters.

    Args:
        pool: the pool.
    """

    def __init__(self, pool: Pool) -> None:
        self.names, self.samples = pool.names, pool.samples()
        self.about = {"ridge": pool.ridge, "calibration": pool.calibration, "epoch": pool.epoch}

    def __call__(self, newcomer: Features, without: int | None = None) -> Line:
        """What a newcomer takes of all adapters, or of all but one."""
        places = [place for place in range(len(self.names)) if place != without]
        found = captures(newcomer, [self.samples[place] for place in places], **self.about)
        most, worst = max(found, key=lambda each: each.share), max(found, key=lambda each: each.neighbour_share)
        return {
            "samples": len(newcomer),
            "share": round(most.share, 4),
            "by": most.by,
            "worst": round(worst.neighbour_share, 4),
            "worst_hit": None if worst.neighbour is None else self.names[places[worst.neighbour]],
            "refused": most.share > CAPTURE,
            "shares": {each.by: round(each.share, 4) for each in found},
        }


def newcomers(bound: Bound) -> Iterator[Line]:
    """Each adapter of the pool, to the others."""
    for place, name in enumerate(bound.names):
        yield {"what": "newcomer", "adapter": name} | bound(bound.samples[place], place)


def attacks(bound: Bound, embedder: Embedder, args: argparse.Namespace) -> Iterator[Line]:
    """Each attack, the weakest first."""
    whole = join(bound.samples)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(whole)))
    for count in args.copies:
        places = evenly(range(len(bound.names)), count)
        yield {"what": "copies", "adapters": len(places)} | bound(join([bound.samples[place] for place in places]))
    for count in args.mixed:
        yield {"what": "mixed"} | bound(whole.take(order[:count].sort().values))
    for count in args.bare:
        yield {"what": "bare"} | bound(Features(whole.embeddings[order[:count]]))
    for count in args.generic:
        texts = evenly([" ".join(words) for words in product(VERBS, OBJECTS)], count)
        yield {"what": "generic"} | bound(Features(embedder(texts), hash_terms(texts)))
    for count in args.mean:
        yield {"what": "mean"} | bound(Features(near_mean(whole.embeddings, count)))


def evenly(things: Sequence[str] | Sequence[int], count: int) -> list:  # type: ignore[type-arg]
    """So many of some things, from the first to the last."""
    return [things[int(place)] for place in np.linspace(0, len(things) - 1, min(count, len(things))).round()]


def near_mean(embeddings: Tensor, count: int) -> Tensor:
    """(count, dim) of the samples' length, around the direction of their mean."""
    mean = torch.nn.functional.normalize(embeddings.mean(0), dim=0)
    noise = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(0)) * NOISE
    return torch.nn.functional.normalize(mean + noise, dim=1) * embeddings.norm(dim=1).median()


def summary(found: Sequence[Line], seconds: float) -> Line:
    """How honest newcomers fare, and how many samples of each attack are the fewest that is refused."""
    honest = [line for line in found if line["what"] == "newcomer"]
    others: dict[str, list[Line]] = {}
    for line in found:
        if line["what"] != "newcomer":
            others.setdefault(line["what"], []).append(line)
    refused = {name: [line["samples"] for line in group if line["refused"]] for name, group in others.items()}
    return {
        "what": "summary",
        "newcomers": len(honest),
        "refused": sum(line["refused"] for line in honest),
        "highest": max(line["share"] for line in honest),
        "highest_worst": max(line["worst"] for line in honest),
        "refused_from": {name: min(counts) if counts else None for name, counts in refused.items()},
        "seconds": round(seconds, 1),
    }


def measure(args: argparse.Namespace) -> Iterator[Line]:
    """All lines."""
    began, pool = time.perf_counter(), Pool.open(args.pool)
    bound, found = Bound(pool), list[Line]()
    yield setup("benchmarks/capture.py", adapters=len(pool), bound=CAPTURE)
    embedder = pool.embedder.load(pool.path)
    for lines in (newcomers(bound), attacks(bound, embedder, args)):
        for line in lines:
            found.append(line)
            yield line
    yield summary(found, time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pool", type=Path, default=Path("pools/flan-mini"))
    parser.add_argument("--copies", type=int, nargs="*", default=[1, 2, 3, 4, 5, 10, 50], help="adapters")
    parser.add_argument("--mixed", type=int, nargs="*", default=[20, 50, 75, 100, 1000], help="samples")
    parser.add_argument("--bare", type=int, nargs="*", default=[50, 100])
    parser.add_argument("--generic", type=int, nargs="*", default=[100])
    parser.add_argument("--mean", type=int, nargs="*", default=[20, 200])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    add(args.json, measure(args))


if __name__ == "__main__":
    main()

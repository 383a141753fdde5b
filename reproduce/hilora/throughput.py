"""HiLoRA's Fig. 5: throughput against the number of seen tasks.

    python reproduce/hilora/throughput.py --data DATA --pool pools/flan-mini

Prompts of ten tasks, five of which have their adapter in every pool and five in none, 32 new tokens each; tokens per
second are those of the answers, routing included. Methods that are trained join once they are. Nothing else may run
on the machine; run again to resume. Without --data, throughput.md and throughput.svg are made again from
throughput.jsonl.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from speed import Line, lines_of, prompts_of, routers_of, speed_main, timed_rounds, with_adapters

from hilora import Pool
from hilora.base.models import load_base

METHODS = ("base", "hilora", "hilora-plus", "mixture", "arrow", "phatgoose")
SEEN = (5, 10, 20, 30, 40)
TESTED = 5
"""Seen tasks that prompts are taken from, and as many unseen ones."""


def measure(args: argparse.Namespace, pool: Pool, places: Sequence[int]) -> Iterator[list[Line]]:
    model, tokenizer = load_base(pool.base.name, dtype="bf16")
    embedder = pool.embedder.load(pool.path, "bf16")
    order = np.random.default_rng(0).permutation(sorted(pool.names)).tolist()
    unseen, seen = order[:TESTED], order[TESTED:]
    prompts = prompts_of(args.data / "flan_mini/val", [*unseen, *seen[:TESTED]], -(-args.batch // (2 * TESTED)))
    prompts = prompts[: args.batch]
    for count in places:
        view = with_adapters(pool, seen[:count])
        routers = routers_of(view, METHODS, model, tokenizer, embedder)
        took = timed_rounds(routers, prompts, args.new_tokens, args.batch, args.rounds)
        yield lines_of(took, count, args.new_tokens * len(prompts))


def main() -> None:
    speed_main(__doc__, Path(__file__).with_suffix(""), "seen tasks", SEEN, METHODS, measure)


if __name__ == "__main__":
    main()

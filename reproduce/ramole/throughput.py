"""RAMoLE's Fig. 7b: throughput against the batch size, input and output tokens, first token only.

    python reproduce/ramole/throughput.py --data DATA --pool pools/flan-mini --new-tokens 1

Prompts of all tasks, mixed; `single` is one adapter for all rows. Methods that are trained join once they are.
Nothing else may run on the machine; run again to resume. Without --data, throughput.md and throughput.svg are made
again from throughput.jsonl.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from speed import Line, lines_of, prompts_of, routers_of, speed_main, timed_rounds, with_adapters

from hilora import Pool
from hilora.base.models import load_base
from hilora.base.prompts import encode_prompts

METHODS = ("selection", "fusion", "mixture", "ramole", "hilora")
BATCHES = (1, 2, 4, 8, 16, 32, 64)
PROMPTS = 64


def measure(args: argparse.Namespace, pool: Pool, places: Sequence[int]) -> Iterator[list[Line]]:
    model, tokenizer = load_base(pool.base.name, dtype="bf16")
    embedder = pool.embedder.load(pool.path, "bf16")
    prompts = prompts_of(args.data / "flan_mini/val", pool.names, 2)[:PROMPTS]
    tokens = sum(map(len, encode_prompts(prompts, tokenizer))) + args.new_tokens * len(prompts)
    routers = routers_of(pool, METHODS, model, tokenizer, embedder)
    alone = with_adapters(pool, pool.names[:1])
    routers["single"] = routers_of(alone, ["selection"], model, tokenizer, embedder)["selection"]
    routers |= routers_of(pool, ["base"], model, tokenizer, embedder)
    for batch in places:
        took = timed_rounds(routers, prompts, args.new_tokens, batch, args.rounds)
        yield lines_of(took, batch, tokens)


def main() -> None:
    speed_main(__doc__, Path(__file__).with_suffix(""), "batch size", BATCHES, METHODS, measure)


if __name__ == "__main__":
    main()

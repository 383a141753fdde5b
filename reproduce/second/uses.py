"""Whose ROCs tokens use, on both bases: does the prompt decide, or do the same adapters win whatever it is?

    python reproduce/second/uses.py --data DATA --pools runs/smollm2-20 runs/gemma-20      # uses.jsonl; minutes

DATA holds flan_mini/val. Prompts are of the first halves, every adapter is in the pool. Of each, all adapters' shares
of what is added to its tokens, mean over tokens and sites, are looked at; a line says whose is the largest, how large
it is, and how large its own task's. `tables.py` of HiLoRA's folder makes the table.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hilora import HiLoRA, Planner, Pool, get_method
from hilora.analyse.activation import record
from hilora.base.models import load_base
from hilora.evaluate.rows import Row, choose_rows, load_rows
from hilora.evaluate.setup import setup

METHODS = ("hilora-plus", "hilora", "arrow", "spectr", "lag", "logo")


def lines(router: HiLoRA, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """A line for each prompt."""
    for row in rows:
        found = record(router, row.inputs, max_new_tokens=1)
        shares = found.shares()[: found.num_prompt].mean(0)
        of = dict(zip(found.names, shares.tolist(), strict=True))
        first = max(of, key=lambda name: of[name])
        yield {"id": row.id, "first": first, "share": round(of[first], 4), "own": round(of.get(row.task, 0.0), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pools", type=Path, nargs="+", required=True)
    parser.add_argument("--per-task", type=int, default=3)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--out", type=Path, default=Path("reproduce/second/uses.jsonl"))
    args = parser.parse_args()
    every = choose_rows(load_rows(args.data / "flan_mini/val"), part="first", per_task=args.per_task)
    with args.out.open("w", encoding="utf-8") as out:
        print(json.dumps(setup("reproduce/second/uses.py", dtype=args.dtype, per_task=args.per_task)), file=out)
        for path in args.pools:
            pool = Pool.open(path)
            model, tokenizer = load_base(pool.base.name, dtype=args.dtype)
            embedder = pool.embedder.load(pool.path)
            for name in METHODS:
                router = HiLoRA(model, tokenizer, Planner(pool, get_method(name), embedder))
                for line in lines(router, [row for row in every if row.task in pool.names]):
                    print(json.dumps({"pool": path.name, "method": name} | line), file=out, flush=True)
                print(f"{path.name} {name}", flush=True)


if __name__ == "__main__":
    main()

"""LoRAHub in its original form: for each task an adapter made of twenty others, from a few of the task's examples.

    python reproduce/ramole/lorahub.py --data DATA --pool pools/flan-mini

DATA holds flan_mini/train/<task>.jsonl and ramole48/test_half.jsonl. The task's own adapter is never among the
twenty. Adapters go to runs/lorahub, where an interrupted search goes on; rows of `oracle` over them to
rows/lorahub.jsonl.gz, for tables.py. The original has 20 examples of each task; here it is 8 of at most 256 tokens,
and 40 evaluations as there.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments import Run, carry_out

from hilora import Pool
from hilora.base.models import load_base
from hilora.evaluate.rows import choose_rows, load_rows
from hilora.pool.source import samples_for
from hilora.train.data import read_lines
from hilora.train.lorahub import make_adapter
from hilora.train.recipe import HubRecipe

TEST = "ramole48/test_half.jsonl"
RECIPE = HubRecipe(per_task=8, max_tokens=256)


def tasks_of(pool: Pool, data: Path) -> list[str]:
    """Tasks of the test set that the pool has an adapter for."""
    return sorted({row.task for row in choose_rows(load_rows(data / TEST), part="all")} & set(pool.names))


def make_pool(pool: Pool, data: Path, work: Path, recipe: HubRecipe) -> Path:
    """A pool of made adapters, one for each task, under the tasks' names."""
    model, tokenizer = load_base(pool.base.name, dtype="bf16")
    embedder = pool.embedder.load(pool.path)
    work.mkdir(parents=True, exist_ok=True)
    path = work / "pool"
    made = Pool.open(path) if path.exists() else Pool.create(path, pool.base, pool.embedder)
    for task in tasks_of(pool, data):
        began, folder = time.perf_counter(), work / task
        if not folder.exists():
            rows = read_lines(data / "flan_mini/train" / f"{task}.jsonl")
            make_adapter(pool, rows, folder, recipe, model=model, tokenizer=tokenizer, without=[task])
            print(f"{task}: {(time.perf_counter() - began) / 60:.1f} min", flush=True)
        if task not in made.names:
            made.add(task, folder, samples_for(task, folder, None), embedder)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pool", type=Path, default=Path("pools/flan-mini"))
    parser.add_argument("--work", type=Path, default=Path("runs/lorahub"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "rows")
    args = parser.parse_args()
    made = make_pool(Pool.open(args.pool), args.data, args.work, RECIPE)
    carry_out([Run("lorahub", ["iid"], ("base", "oracle"), TEST, part="all")], args.data, made, args.out, "bf16")


if __name__ == "__main__":
    main()

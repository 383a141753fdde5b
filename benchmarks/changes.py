"""What it costs when the rows of a step, or the adapters that they use, change: milliseconds, beside a step's own.

    python benchmarks/changes.py --json benchmarks/changes.jsonl        # two minutes

a row leaves        the adapters stay the same: one of several rows that use an adapter ends
an adapter comes    a row joins whose adapter served others before, but none of these
... first use       the same, and the adapter has not been used yet: its file lies in the system's cache
all new             nothing is bound, stacked or read before the first rows come

Timed is how long the engine's bank (`engine.bank.Bank`) takes until the model serves the rows after a change, without
the step that follows; whatever a form leaves to that step is not seen here. "rows" are those that stay; with one row,
it uses all adapters, with more each uses those that fall to it in turn. Every time is of a bank that has seen nothing
else. "steps" are one token more of prompts of 60 words, by the base alone. Medians of interleaved rounds, the pool's
own adapters, half of each one's ROCs. Run it with nothing else on the machine.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lines import Line, write
from made import decoding_step

from hilora import HiLoRA, Planner, Pool, get_method
from hilora.base.models import load_base
from hilora.bench.rounds import spread, stopwatch, turns
from hilora.bench.workload import make_workload
from hilora.engine.bank import Bank
from hilora.engine.pick import Pick
from hilora.engine.plans import row_plans
from hilora.engine.request import Request
from hilora.evaluate.setup import setup
from hilora.pool.memory import Memory
from hilora.pool.source import find_pool
from hilora.pool.view import Source
from hilora.types import Plan

LEAVES, COMES, FIRST, NEW = "a row leaves", "an adapter comes", "... first use", "all new"
CHANGES = (LEAVES, COMES, FIRST, NEW)
"""What changes."""
TIMED = stopwatch(torch.device("cpu"))
METHOD = "hilora"
Rows = list[Request]


def shared_out(adapters: int, rows: int) -> list[list[int]]:
    """Which of the adapters each row uses: in turn, until all rows have some and all adapters are used."""
    return [sorted({row % adapters, *range(row, adapters, rows)}) for row in range(rows)]


def requests(bank: Bank, source: Source, used: Sequence[Sequence[int]]) -> Rows:
    """Rows that use these adapters, by their positions, with half of each one's ROCs."""
    ids = sorted({each for row in used for each in row})
    ranks = torch.tensor([source.entries[i].rank for i in ids])
    chosen = torch.tensor([[i in row for i in ids] for row in used]).long()
    weights = chosen / chosen.sum(1, keepdim=True)
    plan = Plan(tuple(ids), ranks, weights, chosen * (ranks // 2).clamp_min(1), torch.ones(len(used)))
    return [Request([0], 1, None, Pick(), bank, each) for each in row_plans(plan, source)]


def before_and_after(change: str, bank: Bank, source: Source, adapters: int, rows: int) -> tuple[list[Rows], Rows]:
    """Rows that are served one after another before a change, and those after it."""
    there = shared_out(adapters, rows)
    if change == LEAVES:
        found = requests(bank, source, [*there, [0]])
        return [found], found[:-1]
    found = requests(bank, source, [*there, [adapters]])
    stay, comes = found[:-1], found[-1:]
    return {COMES: ([comes, stay], found), FIRST: ([stay], found), NEW: ([], stay)}[change]


def serve(bank: Bank, rows: Rows) -> None:
    """Make the model serve rows, as a step would."""
    with bank(rows):
        pass


def timed(change: str, router: HiLoRA, adapters: int, rows: int) -> float:
    """Milliseconds of a change; the router is new."""
    bank, source = router.lanes.bank, router.planner.source
    before, after = before_and_after(change, bank, source, adapters, rows)
    with router.lanes.engine.alone(), torch.inference_mode():
        try:
            for each in before:
                serve(bank, each)
            return 1e3 * TIMED(partial(serve, bank, after))
        finally:
            bank.close()
            bank.drop()


def steps(model: Any, tokenizer: Any, sizes: Sequence[int], rounds: int) -> Iterator[Line]:
    """Milliseconds of a step of the base alone."""
    for rows in sizes:
        work = make_workload(["base"], batch=rows, adapters=1, share="identical", words=60, new_tokens=1)
        step, back = decoding_step(model, tokenizer, work.prompts)
        took = []
        with torch.inference_mode():
            for _ in range(rounds + 1):
                took.append(1e3 * TIMED(step))
                back()
        yield {"change": None, "rows": rows, "ms": spread(took[1:], 2)}


def measure(pool: Pool, args: argparse.Namespace) -> Iterator[Line]:
    """All lines of results."""
    model, tokenizer = load_base(pool.base.name)
    dtype = str(model.dtype).removeprefix("torch.")
    yield setup("benchmarks/changes.py", pool=pool.path.name, method=METHOD, dtype=dtype, rounds=args.rounds)
    yield from steps(model, tokenizer, args.rows, args.rounds)
    for adapters in args.adapters:
        for rows in args.rows:
            took: dict[str, list[float]] = {change: [] for change in CHANGES}
            for change, counts in turns(CHANGES, args.rounds):
                planner = Planner(pool, get_method(METHOD), memory=Memory())
                one = timed(change, HiLoRA(model, tokenizer, planner, packed=True), adapters, rows)
                if counts:
                    took[change].append(one)
            rocs = sum(entry.rank for entry in pool.entries[:adapters])
            about = {"adapters": adapters, "rocs": rocs, "rows": rows}
            for change, values in took.items():
                yield {"change": change, **about, "ms": spread(values, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pool", default="pools/flan-mini")
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if min(*args.adapters, *args.rows, args.rounds) < 1:
        parser.error("--adapters, --rows and --rounds start at 1")
    pool = Pool.open(find_pool(args.pool))
    if max(args.adapters) >= len(pool):
        parser.error(f"--adapters {max(args.adapters)}: one more comes, and {args.pool} has {len(pool)}")
    write(args.json, measure(pool, args))


if __name__ == "__main__":
    main()

"""What the first use of an adapter costs: milliseconds until the model serves a row with it, while others run.

    python benchmarks/cold.py                   # a minute
    python benchmarks/cold.py --pool POOL --json cold.jsonl

cold        in no memory; its file lies in the system's cache. Of it: `read` (and checked), `pack` (where a card is)
host        in host memory, and in no slot
ahead       it was expected, and has come to the card (`engine.ahead`); nothing comes ahead where the model is on none
laid out    in a slot

Timed is `engine.bank.Bank`, without the step that follows. Others run, a row each, and there is a free slot.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from changes import requests
from lines import Line, write

from hilora import HiLoRA, Planner, Pool, get_method
from hilora.base.models import load_base
from hilora.bench.rounds import spread, stopwatch
from hilora.engine.bank import Bank
from hilora.evaluate.setup import setup
from hilora.pool.flat import pack
from hilora.pool.memory import Memory, num_bytes
from hilora.pool.source import find_pool

STATES = ("cold", "read", "pack", "host", "ahead", "laid out")


@torch.inference_mode()
def first_use(router: HiLoRA, others: int = 3) -> dict[str, float]:
    """Milliseconds by state, once each, with a bank and a memory of their own.

    Args:
        router: over a pool of at least `others` + 3 adapters of one shape; nobody else asks it meanwhile.
        others: adapters that run.
    """
    used, source = router.lanes.bank, router.planner.source
    bank = Bank(router.model, used.gate, used.placements, Memory("64GB"), used.form, used.packed)
    timed, found = stopwatch(router.model.device), dict[str, float]()
    *running, first, second, third = requests(bank, source, [[i] for i in range(others + 3)])

    def serve(rows: Sequence[Any]) -> None:
        with bank(rows):
            pass

    def ms(call: Any) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return 1e3 * timed(call)

    try:
        with router.lanes.engine.alone():
            for request in running:
                request.begin()
            serve(running)
            serve([*running, first])  # all are laid out anew, with room for one more like them
            (content,) = second.plan.contents
            found["cold"] = ms(partial(serve, [*running, second]))
            found["laid out"] = ms(partial(serve, [*running]))
            serve([*running, first])
            serve([*running, third])
            found["host"] = ms(partial(serve, [*running, second]))
            serve([*running, first])
            serve([*running, third])
            if bank.ahead is not None:
                bank.expect([second.plan])
                bank.ahead.wait()
                found["ahead"] = ms(partial(serve, [*running, second]))
            found["read"] = ms(partial(source.factors, content))
            if bank.ahead is not None:
                found["pack"] = ms(partial(pack, source.factors(content), bank.placements))
    finally:
        bank.close()
        bank.drop()
    return found


def cold_first_use(router: HiLoRA, rounds: int = 5) -> Line:
    """Medians of some rounds, after one that warms up, and the bytes of an adapter."""
    took = [first_use(router) for _ in range(rounds + 1)][1:]
    factors = router.planner.source.factors(router.planner.source.entries[0].hash)
    of = {state: spread([one[state] for one in took], 3) for state in STATES if state in took[0]}
    return {"adapter_bytes": num_bytes(factors), "sites": len(factors), "ms": of}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pool", default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    pool = Pool.open(find_pool(args.pool))
    model, tokenizer = load_base(pool.base.name)
    router = HiLoRA(model, tokenizer, Planner(pool, get_method("hilora"), memory=Memory()), packed=True)
    line = cold_first_use(router, args.rounds)
    if args.json:
        write(args.json, [setup("benchmarks/cold.py", pool=pool.path.name, dtype=str(model.dtype)), line])
    print(*(f"{state}\t{ms}" for state, ms in line["ms"].items()), sep="\n")


if __name__ == "__main__":
    main()

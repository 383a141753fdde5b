"""Tables without compiling: batches, ranks, distinct adapters; HiLoRA's Fig. 5 and RAMoLE's Fig. 7b."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from gpuing.contend import by_hilora, contenders
from gpuing.room import Room, first
from gpuing.sizes import QV, Size
from gpuing.timing import free, timed
from hilora.base.prompts import encode_prompts
from hilora.bench.rounds import stopwatch, turns
from hilora.bench.workload import Workload

Rows = Iterator[dict[str, Any]]
FIG5 = ("base", "hilora", "hilora-plus", "mixture", "arrow", "phatgoose")
FIG7 = ("base", "single", "selection", "fusion", "mixture", "ramole", "hilora")
TESTED = 5
"""Tasks of Fig. 5's prompts that are in every pool, and as many that are in none."""
PROMPTS = 64
"""Of Fig. 7b, at most; batches of few rows get few."""


def case(room: Room, pool: Any, wanted: Sequence[str], **asked: Any) -> Rows:
    """One row of a table."""
    work = room.work(pool, new_tokens=room.size.short, **asked)
    with contenders(room, pool, work, wanted) as built:
        yield timed(room, built, work, room.size.few)
    free(room)


def of_batch(batch: int, room: Room) -> Rows:
    """A batch of so many."""
    return case(room, room.pool(), ("transformers", "hilora", "pinned"), batch=batch)


def of_rank(rank: int, room: Room) -> Rows:
    """Adapters of a rank."""
    return case(room, room.pool(QV, rank), ("transformers", "hilora"))


def of_distinct(count: int, room: Room) -> Rows:
    """So many adapters in a batch."""
    pool = first(room.pool(count=room.size.adapters), max(room.size.distincts))
    share = "distinct" if count == room.size.batch else "zipf"
    return case(room, pool, ("transformers", "pinned"), adapters=count, share=share)


def fig5(count: int, room: Room) -> Rows:
    """New tokens per second of a batch of prompts, half of them of tasks that no pool knows, routing included."""
    size = room.size
    pool = room.pool(count=size.adapters)
    room.trained(pool)
    view, tested = first(pool, count), min(TESTED, *size.registered)
    tasks = [*range(tested), *range(size.adapters, size.adapters + tested)]
    prompts = [room.texts(tasks[i % len(tasks)], 1, 500 + i)[0] for i in range(size.batch)]
    work = Workload(prompts, (), size.short)
    built = [by_hilora(name, room, view, work, method=name) for name in FIG5]
    found = timed(room, built, work, size.few)
    per_s = {name: size.batch * size.short / (each["whole_ms"] / 1e3) for name, each in found["ms"].items()}
    yield found | {"registered": count, "tokens_per_s": {name: round(value, 1) for name, value in per_s.items()}}
    free(room)


def fig7(batch: int, room: Room) -> Rows:
    """Tokens read and made per second, one new token for each prompt, by batches of so many."""
    pool = room.pool(count=room.size.adapters)
    room.trained(pool)
    count = min(PROMPTS, 8 * batch)
    prompts = [room.texts(i % len(pool), 1, 700 + i)[0] for i in range(count)]
    tokens = sum(map(len, encode_prompts(prompts, room.tokenizer))) + count
    routers = {
        name: room.router("selection" if name == "single" else name, first(pool, 1) if name == "single" else pool)
        for name in FIG7
    }
    took: dict[str, list[float]] = {name: [] for name in FIG7}
    watch = stopwatch(room.device)
    for name, counts in turns(list(FIG7), room.size.few):
        run = partial(routers[name].generate, prompts, batch_size=batch, max_new_tokens=1)
        seconds = watch(run)
        if counts:
            took[name].append(seconds)
    yield {
        "batch": batch,
        "prompts": count,
        "tokens_per_s": {name: round(tokens / statistics.median(each), 1) for name, each in took.items()},
        "seconds": {name: [round(s, 4) for s in each] for name, each in took.items()},
    }
    free(room)


def measurements(size: Size) -> dict[str, dict[str, Any]]:
    """Part -> its measurements."""
    return {
        "tables": {
            **{f"batch {n}": partial(of_batch, n) for n in size.batches},
            **{f"rank {n}": partial(of_rank, n) for n in size.ranks},
            **{f"distinct {n}": partial(of_distinct, n) for n in size.distincts},
        },
        "fig5": {f"registered {n}": partial(fig5, n) for n in size.registered},
        "fig7b": {f"batch {n}": partial(fig7, n) for n in size.fig7},
    }

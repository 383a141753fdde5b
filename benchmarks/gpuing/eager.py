"""Targets without compiling: the limit of the card, embedding and routing, a batch, a cold adapter."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from gpuing.contend import PEFT, contenders, missing
from gpuing.room import Room
from gpuing.sizes import SITES
from gpuing.timing import free, profiled, timed
from hilora.bench.contenders import check_twins
from hilora.bench.rounds import spread, stopwatch
from hilora.errors import InputError
from hilora.pool.memory import num_bytes

Rows = Iterator[dict[str, Any]]
CONTENDERS = {
    "q and v": ("transformers", "base", "hilora", "routed", "oracle", *PEFT),
    "all seven": ("transformers", "hilora", "routed", "oracle", "peft_single"),
}
PROFILED = ("transformers", "hilora", "oracle", "peft_single")
REPEATS = 11
COLD = 12
"""Adapters that are used for the first time."""


def limit(room: Room) -> Rows:
    """A step reads every weight once: milliseconds at the speed of a large copy, bytes read and written counted."""
    source = torch.empty(room.size.moved // 2, dtype=torch.int16, device=room.device).random_()
    target, watch = torch.empty_like(source), stopwatch(room.device)
    seconds = [watch(partial(target.copy_, source)) for _ in range(REPEATS)]
    speed = 2 * num_bytes(source) / statistics.median(seconds)
    looked_up = room.pristine.get_input_embeddings().weight
    weights = sum(num_bytes(p.data) for p in room.pristine.parameters()) - num_bytes(looked_up.data)
    yield {
        "copy_gb_s": round(speed / 1e9, 1),
        "weight_bytes": weights,
        "limit_ms": round(1e3 * weights / speed, 3),
    }


def routing(room: Room) -> Rows:
    """Milliseconds of a batch's prompts: embedding alone, and embedding and routing."""
    pool = room.pool()
    router, prompts = room.router("hilora", pool), list(room.work(pool).prompts)
    watch = stopwatch(room.device)
    calls: dict[str, Callable[[], object]] = {
        "embed_ms": lambda: room.embedder(prompts),
        "route_ms": lambda: router.planner.route(prompts),
    }
    for call in calls.values():
        call()
    took: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPEATS):
        for name, call in calls.items():
            took[name].append(1e3 * watch(call))
    yield {"prompts": len(prompts)} | {name: spread(values, 3) for name, values in took.items()}


def batch(sites: str, room: Room) -> Rows:
    """The first token, a decoding step and all of a batch, of every contender; then profiles."""
    pool = room.pool(SITES[sites])
    work = room.work(pool)
    for name in CONTENDERS[sites]:
        if why := missing(name):
            yield {"contender": name, "missing": why}
    with contenders(room, pool, work, CONTENDERS[sites]) as built:
        try:
            twins: dict[str, Any] = {"twins": check_twins(built)}
        except InputError as error:
            twins = {"wrong": [str(error)]}
        yield timed(room, built, work, room.size.rounds) | {"sites": sites} | twins
        for one in built:
            if one.name in PROFILED:
                yield profiled(room, one) | {"sites": sites}
    free(room)


def cold(room: Room) -> Rows:
    """One prompt's first token with an adapter that was never on the device, and with the same adapter later."""
    pool = room.pool(count=room.size.adapters)
    router, watch = room.router("hilora", pool), stopwatch(room.device)
    names = sorted(pool.names)[: COLD + 1]
    prompt = room.texts(0, 1, 99)[0]
    for entry in pool.entries:
        pool.factors(entry.hash)  # its file is in the system's cache
    took: dict[str, list[float]] = {"cold_ms": [], "warm_ms": [], "same_ms": []}

    def use(name: str) -> float:
        return 1e3 * watch(lambda: router.generate(prompt, allow=[name], max_new_tokens=1))

    use(names[0])
    for name in names[1:]:
        took["cold_ms"].append(use(name))
        took["same_ms"].append(use(name))
    for name in names[1:]:
        took["warm_ms"].append(use(name))
    factors = pool.factors(pool.entries[0].hash)
    yield {"adapters": len(names) - 1, "adapter_bytes": num_bytes(factors)} | {
        name: spread(values, 3) for name, values in took.items()
    }


def load(room: Room) -> Rows:
    """Seconds until everything is there: the base on the device, a pool, a router."""
    began = time.perf_counter()
    room.twin()
    at = time.perf_counter()
    room.pool()
    made = time.perf_counter()
    room.router("hilora", room.pool())
    done = time.perf_counter()
    times = {"base_s": at - began, "pool_s": made - at, "router_s": done - made}
    yield {name: round(value, 2) for name, value in times.items()}


MEASUREMENTS = {
    "start": load,
    "limit": limit,
    "embedding and routing": routing,
    **{f"eager, {sites}": partial(batch, sites) for sites in SITES},
    "a cold adapter": cold,
}

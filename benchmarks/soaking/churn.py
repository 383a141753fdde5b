"""Adapters that come, change and go while many ask: each answer is the one that its adapters give alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from hilora.pool import Pool
from hilora.pool.lease import holders
from soaking.crowd import Asked, Crowd
from soaking.house import House, damaged
from soaking.made import bench
from soaking.operations import Operations
from soaking.solo import Solos
from soaking.things import Things, Tiny

CLIENTS = 16
REQUESTS, OPERATIONS = 5000, 500


@dataclass
class Churned:
    """What was asked and done."""

    asked: list[Asked]
    operations: Operations


async def churned(house: House, requests: int, operations: int, seed: int) -> Churned:
    """So many requests and operations at least, side by side; half way a new epoch begins."""
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=house.url, timeout=600, limits=limits) as client:
        crowds = [Crowd(house, client, seed * CLIENTS + number) for number in range(CLIENTS)]
        changing, begun = Operations(house, client, seed), iter(range(operations))

        def asked() -> int:
            return sum(len(crowd.asked) for crowd in crowds)

        async def reach(count: float) -> None:
            while asked() < count:
                await asyncio.sleep(0.05)

        async def change(name: str) -> None:
            for number in begun:
                await reach(number * requests / operations)  # they are spread over the requests
                if number == operations // 2:
                    await asyncio.to_thread(Pool.open(house.things.folder).renew_epoch, house.things.staying)
                await changing.one(name)

        async with asyncio.TaskGroup() as asking:
            for crowd in crowds:
                asking.create_task(crowd.ask())
            async with asyncio.TaskGroup() as group:
                for name in house.things.coming:
                    group.create_task(change(name))
            await changing.settle()
            await reach(requests)
            for crowd in crowds:
                crowd.enough = True
        return Churned([each for crowd in crowds for each in crowd.asked], changing)


def looked(house: House, done: Churned) -> Iterator[dict[str, Any]]:
    """Rows of what came of it; the house is idle."""
    changing, every = done.operations, [*done.asked, *done.operations.bursts]
    names = sorted(Pool.open(house.things.folder).names)
    wrong = [*changing.wrong, *house.left()]
    wrong += [f"{name} is missing" for name in {*house.things.staying, *house.things.coming} - {*names}]
    yield {"what": "changes", "counts": {"operations": changing.counts.total(), **changing.counts}, "wrong": wrong}
    ends = Counter(each.ends[0] if each.ends else "never" for each in every)
    wrong = [text for each in every for text in each.wrong]
    wrong += [f"it ended {len(each.ends)} times: {each.given}" for each in every if len(each.ends) != 1]
    wrong += [f"an answer never came: {each.given}" for each in every if each.ends == ["never"]]
    wrong += miscounted(house, ends, len(every))
    yield {"what": "requests", "counts": {"requests": len(every), **ends}, "wrong": wrong}
    yield queued(done)
    yield compared(house, [each for each in every if each.ends == ["answered"]])


def miscounted(house: House, ends: Counter[str], requests: int) -> list[str]:
    """Whether the service's own meters agree: who has left was answered, refused, or did not come at all."""
    left = ends["left"]
    bounds = {
        "answers": (ends["answered"], ends["answered"] + left),
        "refused": (ends["refused"], ends["refused"] + left),
        "requests": (ends["answered"] + ends["refused"], requests),
    }
    found = {kind: (low, house.counted(kind), high) for kind, (low, high) in bounds.items()}
    return [f"{kind}: {each}" for kind, each in found.items() if not each[0] <= each[1] <= each[2]]


def queued(done: Churned) -> dict[str, Any]:
    """Of requests for an adapter that is removed meanwhile: answered as routed, or refused."""
    ends = Counter(each.code or each.ends[0] if each.ends else "never" for each in done.operations.bursts)
    wrong = [f"it was refused as {end}" for end in ends if end not in ("answered", "model_not_found")]
    counts = {"requests": len(done.operations.bursts), "under way when it had gone": done.operations.late, **ends}
    return {"what": "requests for an adapter that goes meanwhile", "counts": counts, "wrong": wrong}


def compared(house: House, answered: list[Asked]) -> dict[str, Any]:
    """Each answer beside the one that a router of its own gives, over the pool that it names."""
    solos = Solos(house)
    answered.sort(key=lambda each: (each.why["pool"], each.why["epoch"]))
    wrong = [text for each in answered for text in solos.wrong(each)]
    counts = {
        "answers": len(answered),
        "versions of the pool": len({each.why["pool"] for each in answered}),
        "epochs": len({each.why["epoch"] for each in answered}),
        "worked out alone": solos.count,
    }
    if house.things.tolerance:
        counts["other where two tokens were as likely"] = solos.near
    return {"what": "answers, each beside the one alone", "counts": counts, "wrong": wrong}


def shaken(things: Things, requests: int, operations: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of one such service."""
    house = House(things, things.router(Pool.open(things.folder), things.methods[0]))
    try:
        yield from looked(house, asyncio.run(churned(house, requests, operations, seed)))
    finally:
        house.end()
    held = holders(things.folder)
    gone = Pool.open(things.folder).prune()
    wrong = [*(f"a lease is held: {each}" for each in held), *damaged(Pool.open(things.folder))]
    yield {"what": "when it has ended: prune", "counts": {"files deleted": len(gone)}, "wrong": wrong}


def many(scale: float, *counts: int) -> list[int]:
    """How many of each are done, one at least."""
    return [max(1, round(count * scale)) for count in counts]


def run(scale: float, home: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Tiny things: every answer is the same, token by token."""
    with bench(home) as made:
        yield from shaken(Tiny(made), *many(scale, REQUESTS, OPERATIONS), seed)

"""More clients than places: each request ends once, nobody is kept out, and the counters say what clients saw."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from hilora.serve.state import State
from soaking.made import EXACT, Server, bench, server, until

CLIENTS, WAITING, RUNNING = 64, 32, 2
TENANTS = ("one", "two", "three", "four")
PROMPTS = [{"model": model, "prompt": "ab ba " * n} for model in ("auto", "base", "alpha", "beta") for n in (1, 3)]
FAMOUS = ("hilora_requests_total", "hilora_refused_total", "hilora_answers_total", "hilora_generation_tokens_total")


@dataclass
class Crowd:
    """Clients of a server, and what they saw.

    Args:
        server: whom they ask.
        keys: headers of each tenant.
        most: tokens of an answer.
    """

    server: Server
    keys: dict[str, dict[str, str]]
    most: int
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    waited: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bodies = [each | {"max_tokens": self.most, "temperature": 0, "seed": 7} for each in PROMPTS]
        self.solo = [self.server.client.post("/v1/completions", json=body).json() for body in self.bodies]
        self.before = self.counted()
        self.client = httpx2.AsyncClient(
            base_url=self.server.url, timeout=300, limits=httpx2.Limits(max_connections=None)
        )

    def counted(self) -> Counter[str]:
        """The counters of the server."""
        page = self.server.client.get("/metrics").text
        found = re.findall(r"^(\w+)(?:\{[^}]*\})? (\S+)$", page, re.MULTILINE)
        sums: Counter[str] = Counter()
        for name, value in found:
            if name in FAMOUS:
                sums[name] += round(float(value))
        return sums

    async def ask(self, tenant: str, number: int) -> None:
        """Ask, and come again as told until there is an answer."""
        body, began, back = self.bodies[number % len(self.bodies)], time.perf_counter(), False
        while True:
            answer = await self.client.post("/v1/completions", json=body, headers=self.keys[tenant])
            self.seen["asked"] += 1
            self.seen["came back as told"] += back
            if answer.status_code != 429:
                break
            back = True
            self.seen["told to come again"] += 1
            self.seen[f"refused, {tenant}"] += 1
            await asyncio.sleep(float(answer.headers["retry-after"]))
        self.seen["had a place then"] += back
        if answer.status_code != 200:
            self.wrong.append(f"{answer.status_code} {answer.text[:300]}")
            return
        self.seen["answered"] += 1
        self.waited.setdefault(tenant, []).append(time.perf_counter() - began)
        found, alone = answer.json(), self.solo[number % len(self.bodies)]
        self.seen["tokens"] += found["usage"]["completion_tokens"]
        if found["choices"] != alone["choices"]:
            self.wrong.append(f"another answer than alone: {found['choices']} {alone['choices']}")

    def row(self, what: str) -> dict[str, Any]:
        """What was seen, compared with what the server counts."""
        until(lambda: self.server.client.get("/readyz").json()["running"] == 0)
        now = self.counted()
        seen = self.seen["answered"], self.seen["told to come again"], self.seen["answered"], self.seen["tokens"]
        for name, value in zip(FAMOUS, seen, strict=True):
            if now[name] - self.before[name] != value:
                self.wrong.append(f"{name} is {now[name] - self.before[name]}, clients saw {value}")
        if self.seen["asked"] != self.seen["answered"] + self.seen["told to come again"]:
            self.wrong.append(f"not each request ended once: {self.seen}")
        for tenant, seconds in sorted(self.waited.items()):
            self.seen[f"longest of {tenant}, ms"] = round(1e3 * max(seconds))
        return {"what": what, "counts": dict(self.seen), "wrong": self.wrong}


def run(scale: float, home: Path, seed: int) -> Iterator[dict[str, Any]]:
    """The rows."""
    most = max(20, min(100, round(1000 * scale)))
    with bench(home) as made:
        state = State(made.pool.path)
        keys = {name: key(state, name, "use") for name in TENANTS}
        with server(made, ["--waiting", str(WAITING), "--running", str(RUNNING), *EXACT]) as served:
            served.client.headers.update(key(state, "", "use", "admin"))
            yield asyncio.run(waves(Crowd(served, keys, most), max(1, round(5 * scale))))
            yield asyncio.run(greedy(Crowd(served, keys, most), max(1, round(10 * scale))))


def key(state: State, tenant: str, *scopes: str) -> dict[str, str]:
    """Headers of a new token."""
    return {"Authorization": f"Bearer {state.add_token(tenant, scopes)[0]}"}


async def waves(crowd: Crowd, count: int) -> dict[str, Any]:
    """All at once; who is refused comes again as told, and has a place then, mostly."""
    for _ in range(count):
        await asyncio.gather(*(crowd.ask(TENANTS[number % 4], number) for number in range(CLIENTS)))
    back, there = crowd.seen["came back as told"], crowd.seen["had a place then"]
    if there < back / 2:
        crowd.wrong.append(f"Retry-After is not honest: {back} came again, and {there} had a place")
    return crowd.row(f"{CLIENTS} clients at once, {WAITING} places")


async def greedy(crowd: Crowd, count: int) -> dict[str, Any]:
    """One tenant asks for more than there is, all the while; the others have their share of the places."""
    first, *others = TENANTS
    many = CLIENTS - 5 * len(others)

    async def always() -> None:
        while not done.is_set():
            await crowd.ask(first, many)

    async def some(tenant: str) -> None:
        for number in range(count):
            await crowd.ask(tenant, number)

    done = asyncio.Event()
    flood = asyncio.gather(*(always() for _ in range(many)))
    await asyncio.gather(*(some(tenant) for tenant in others for _ in range(5)))
    done.set()
    await flood
    for tenant in others:
        if crowd.seen[f"refused, {tenant}"]:
            crowd.wrong.append(f"{tenant} was refused, with less than its share: {crowd.seen}")
        if sum(crowd.waited[tenant]) / len(crowd.waited[tenant]) > sum(crowd.waited[first]) / len(
            crowd.waited[first]
        ):
            crowd.wrong.append(f"{tenant} waits longer than who asks for much more: {crowd.waited}")
    return crowd.row("one tenant asks without end, three others now and then")

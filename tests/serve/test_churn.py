"""Adapters come, change and go while many ask: every answer is the one that its adapters give alone."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
import uvicorn

from hilora import HiLoRA
from hilora.pool import Pool
from hilora.pool.lease import holders
from hilora.pool.view import PoolView
from hilora.serve.access import Doorkeeper
from hilora.serve.api_adapters import adapter_routes
from hilora.serve.app import make_app
from hilora.serve.asked import Caller
from hilora.serve.desk import PoolDesk
from hilora.serve.limits import Limits
from hilora.serve.publish import Publisher
from hilora.serve.state import State
from hilora.serve.tenants import fingerprint
from hilora.serve.uploads import Uploads
from hilora.serve.watch import Watch

METHODS = ("hilora", "hilora-plus", "selection", "fusion")
COMING = {"one": "delta", "two": "alpha", "three": "gamma"}
"""Adapters that come and go, each with the task of its samples."""
REFUSALS = {(404, "model_not_found"), (403, "insufficient_permissions"), (400, "invalid_value")}
"""Of an adapter that is gone, one that is disabled, and a list with one that is gone."""
ASKING, ROUNDS, LIMITS = 16, 3, Limits(capture=1.0)
Views = dict[tuple[str, str], PoolView]
"""By the hashes that an answer tells, of adapters and of epoch."""


class House:
    """A whole service on a port of its own, as `run.serve` puts it together, and every view that it has served."""

    def __init__(self, bench: Any, router: HiLoRA) -> None:
        self.bench, self.views = bench, Views()
        folder, state = bench.pool.path, State(bench.pool.path)
        self.desk = PoolDesk(router, LIMITS, METHODS)
        self._keep(router.planner.pool)
        self.watch = Watch(folder, router.planner.pool.version, self.change)
        publisher = Publisher(folder, LIMITS, self.watch.look, lambda: self.desk.edition.view)
        self.uploads = Uploads(publisher, state, LIMITS, bench.inside())
        self.uploads.open()
        keeper = Doorkeeper(state, is_open=True)
        others, closed = [adapter_routes(self.uploads, keeper)], [self.uploads.close, self.watch.close]
        app = make_app(self.desk, LIMITS, keeper, others=others, closed=closed)
        self.server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, ws="none"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        until(lambda: self.server.started)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    def change(self, view: PoolView) -> None:
        self._keep(view)
        self.desk.change(view)

    def _keep(self, view: PoolView) -> None:
        self.views[fingerprint(view, Caller()), view.epoch_key] = view

    def end(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.fixture
def house(bench: Any, joined: Any, quick_tuning: None) -> Iterator[House]:
    view = Pool.open(bench.pool.path)
    made = House(bench, HiLoRA.from_pretrained(bench.tiny.model("llama"), view, tokenizer=joined, **own(bench)))
    yield made
    made.end()


def own(bench: Any) -> dict[str, Any]:
    return {"embedder": bench.embedder, "method": METHODS[0]}


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@dataclass
class Asked:
    """One request, and how it ended: answered, refused, or left by its client."""

    given: dict[str, Any]
    leaves: bool
    ends: list[str] = field(default_factory=list)
    why: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    reason: str = ""


class Crowd:
    """Asks at random until it is told to stop."""

    def __init__(self, house: House, client: httpx2.AsyncClient, seed: int) -> None:
        self.house, self.client, self.random = house, client, random.Random(seed)
        self.asked: list[Asked] = []
        self.enough = False

    def draw(self) -> Asked:
        rng, bench = self.random, self.house.bench
        prompt = rng.choice(bench.texts(rng.choice(["alpha", "beta", "gamma", "delta"]), rng.randrange(3)))
        given: dict[str, Any] = {"prompt": prompt, "temperature": 0, "max_tokens": rng.randint(4, 14)}
        given |= {"seed": rng.randrange(3), "stream": rng.random() < 0.5, "hilora": {"explain": True}}
        kind, names = rng.random(), ["alpha", "beta", *COMING]
        if kind < 0.3:
            given["model"] = rng.choice(names)
        elif kind < 0.4:
            given["model"] = rng.choice(self.house.desk.edition.view.entries).hash
        elif kind < 0.5:
            given["model"] = "base"
        else:
            given["hilora"]["method"] = rng.choice(METHODS)
            if kind < 0.6:
                given["hilora"]["allow"] = rng.sample(names, 2)
        return Asked(given, leaves=rng.random() < 0.25)

    async def ask(self) -> None:
        while not self.enough:
            asked = self.draw()
            self.asked.append(asked)
            work = self._streamed(asked) if asked.given["stream"] else self._whole(asked)
            try:
                limit = self.random.uniform(0.01, 0.1) if asked.leaves and not asked.given["stream"] else 60
                await asyncio.wait_for(work, limit)
            except TimeoutError:
                assert asked.leaves
                asked.ends.append("left")

    async def _whole(self, asked: Asked) -> None:
        answer = await self.client.post("/v1/completions", json=asked.given)
        if self._refused(asked, answer.status_code, answer.content):
            return
        (choice,) = answer.json()["choices"]
        asked.text, asked.reason, asked.why = choice["text"], choice["finish_reason"], answer.json()["hilora"]
        asked.ends.append("answered")

    async def _streamed(self, asked: Asked) -> None:
        after = self.random.randrange(1, 6) if asked.leaves else 1000
        async with self.client.stream("POST", "/v1/completions", json=asked.given) as answer:
            if self._refused(asked, answer.status_code, await answer.aread() if answer.status_code != 200 else b""):
                return
            async for line in answer.aiter_lines():
                if not line:
                    continue
                if line == "data: [DONE]":
                    assert asked.reason
                    asked.ends.append("answered")
                    continue
                assert not asked.ends
                assert not asked.reason
                chunk = json.loads(line.removeprefix("data: "))
                (choice,) = chunk["choices"]
                asked.why = asked.why or chunk["hilora"]
                asked.text, asked.reason = asked.text + choice["text"], choice["finish_reason"] or ""
                after -= 1
                if not after:
                    asked.ends.append("left")
                    return

    def _refused(self, asked: Asked, status: int, content: bytes) -> bool:
        if status != 200:
            error = json.loads(content)["error"]
            assert (status, error["code"]) in REFUSALS, error
            asked.ends.append("refused")
        return status != 200


async def churn(house: House, client: httpx2.AsyncClient, name: str, task: str, rng: random.Random) -> None:
    """An adapter comes, is replaced, disabled and enabled, and goes, some times; it ends as one that is there."""
    pool, bench = Pool.open(house.bench.pool.path), house.bench

    async def send(call: str, path: str, seed: int, **words: str) -> Any:
        return await client.request(call, f"{path}?wait=60", files=bench.form(seed, task), data=words)

    for _ in range(ROUNDS):
        first, second = rng.sample(range(20, 26), 2)
        came = await send("POST", "/v1/adapters", first, name=name)
        assert came.status_code == 201, came.text
        other = await send("POST", "/v1/adapters", second, name=name)
        assert other.status_code == 409, other.text
        changed = await send("PUT", f"/v1/adapters/{name}", second)
        assert changed.status_code == 201, changed.text
        assert (await client.get(f"/v1/adapters/{name}")).json()["hash"] == changed.json()["hash"]
        for enabled in (False, True):
            await asyncio.to_thread(pool.enable, name, enabled)
            await asyncio.sleep(rng.uniform(0.0, 0.6))
        assert (await client.delete(f"/v1/adapters/{name}")).status_code == 200
    assert (await send("POST", "/v1/adapters", 20, name=name)).status_code == 201


async def crowded(house: House) -> list[Asked]:
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=house.url, timeout=60, limits=limits) as client:
        crowds = [Crowd(house, client, seed) for seed in range(ASKING)]
        asking = [asyncio.create_task(crowd.ask()) for crowd in crowds]
        async with asyncio.TaskGroup() as changing:
            for number, (name, task) in enumerate(COMING.items()):
                changing.create_task(churn(house, client, name, task, random.Random(number)))
            await asyncio.sleep(1.0)
            await asyncio.to_thread(Pool.open(house.bench.pool.path).renew_epoch)
        for crowd in crowds:
            crowd.enough = True
        await asyncio.gather(*asking)
        return [asked for crowd in crowds for asked in crowd.asked]


def alone(asked: Asked, view: PoolView, solos: dict[Any, HiLoRA], bench: Any, tokenizer: Any) -> Any:
    """The same prompt, answered by a router of its own over the pool of then."""
    model, told = asked.given.get("model", "auto"), asked.given["hilora"]
    pinned = model not in ("auto", "base")
    method = "base" if model == "base" else "oracle" if pinned else told["method"]
    if (id(view), method) not in solos:
        made = HiLoRA.from_pretrained(
            bench.tiny.model("llama"), view, tokenizer=tokenizer, **own(bench) | {"method": method}
        )
        solos[id(view), method] = made
    more = {"labels": [asked.why["adapters"][0]["name"]]} if pinned else {"allow": told.get("allow")}
    given = {"max_new_tokens": asked.given["max_tokens"], "seed": asked.given["seed"], "do_sample": False}
    (answer,) = solos[id(view), method].generate(asked.given["prompt"], **given, **more)
    return answer


def check_alone(house: House, asked: list[Asked], tokenizer: Any) -> None:
    """Every answer is the one that a router of its own gives over the pool that it names."""
    answered = [each for each in asked if each.ends == ["answered"]]
    assert len({each.why["pool"] for each in answered}) > ROUNDS
    assert len({each.why["epoch"] for each in answered if "method" in each.given["hilora"]}) == 2
    solos: dict[Any, HiLoRA] = {}
    for each in answered:
        view = house.views[each.why["pool"], each.why["epoch"]]
        want = alone(each, view, solos, house.bench, tokenizer)
        assert (each.text, each.reason) == (want.text, want.finish_reason)
        told = [(part["name"], part["hash"], part["rocs"]) for part in each.why["adapters"]]
        hashes = {entry.name: entry.hash for entry in view.entries}
        assert told == [(choice.name, hashes[choice.name], choice.rocs) for choice in want.choices]


def check_idle(house: House) -> None:
    """Nothing waits, runs or is kept, and the pool is whole."""
    desk, folder = house.desk, house.bench.pool.path
    until(lambda: desk.waiting == desk.running == 0 and not desk._tickets)
    with desk.engine.alone():
        assert desk.engine.loop.num_bytes == 0
    assert not desk.edition.router.lanes.bank.pins
    pool = Pool.open(folder)
    until(lambda: desk.edition.view.version == pool.version)
    ready = httpx2.get(f"{house.url}/readyz")
    told = ready.json()
    assert (ready.status_code, told["status"], told["waiting"], told["running"]) == (200, "ready", 0, 0)
    assert told["pool_version"] == pool.version
    assert sorted(pool.names) == sorted(["alpha", "beta", "gamma", *COMING])
    assert [entry.name for entry, wrong in pool.check() if wrong] == []
    assert (house.uploads._waiting, house.bench.left(), len(holders(folder))) == ({}, [], 1)


def counted(house: House, kind: str) -> float:
    (found,) = [each for each in house.desk.meters.registry.collect() if each.name == f"hilora_{kind}"]
    return sum(sample.value for sample in found.samples if sample.name.endswith("_total"))


def test_while_adapters_come_and_go_every_request_ends_once_and_as_it_would_alone(house: House, joined: Any) -> None:
    asked = asyncio.run(asyncio.wait_for(crowded(house), 120))
    assert all(len(each.ends) == 1 for each in asked)
    ends = Counter(each.ends[0] for each in asked)
    assert min(ends[end] for end in ("answered", "refused", "left")) > 0
    check_idle(house)
    for kind, end in (("answers", "answered"), ("refused", "refused")):
        assert ends[end] <= counted(house, kind) <= ends[end] + ends["left"]
    assert ends["answered"] + ends["refused"] <= counted(house, "requests") <= len(asked)
    check_alone(house, asked, joined)
    house.end()
    assert holders(house.bench.pool.path) == []

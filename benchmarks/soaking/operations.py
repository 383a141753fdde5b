"""Changes of a served pool at random: over HTTP, and in its folder by the library and by the command line."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any

import httpx2

from hilora.base.embed import describe_embedder
from hilora.errors import PoolError
from hilora.pool import Pool
from hilora.pool.peft import read_adapter
from hilora.pool.view import Entry
from soaking.crowd import Asked, Crowd
from soaking.house import House, damaged

BURST = 24
"""Requests for an adapter that is removed while most of them are queued."""
OK, CREATED, CONFLICT = 200, 201, 409


class Operations:
    """Changes one adapter at a time for each name that comes and goes.

    Args:
        house: the service.
        client: its connections.
        seed: of what is done.

    Attributes:
        counts: of what was done.
        wrong: what did not come out as it should.
        bursts: requests for adapters that were removed meanwhile.
        late: how many of these had come and not ended when it was gone.
    """

    def __init__(self, house: House, client: httpx2.AsyncClient, seed: int) -> None:
        self.house, self.client, self.things = house, client, house.things
        self.counts, self.wrong = Counter[str](), list[str]()
        self.bursts: list[Asked] = []
        self.late = 0
        self.random = Random(seed)
        self.embed = Pool.open(self.things.folder).embedder.load(self.things.folder)
        self.embedding = asyncio.Lock()  # an embedder is for one thread at a time
        self.here: dict[str, int | None] = dict.fromkeys(self.things.coming)
        """Adapters that there are, with what they were made of."""

    async def one(self, name: str) -> None:
        """Some operation on an adapter."""
        calls: dict[str, tuple[float, Callable[[str], Awaitable[None]]]] = {
            "prune, refused": (0.5, self._prune),
            "reembed, refused": (0.5, self._reembed),
        }
        if self.here[name] is None:
            calls |= {"add": (4, self._add), "add by the library": (1, self._add_by_library)}
        else:
            calls |= {
                "add again, refused": (0.5, self._add_again),
                "replace": (2, self._replace),
                "replace by the library": (0.5, self._replace_by_library),
                "delete": (1, self._delete),
                "delete by the library": (0.5, self._remove),
                "delete while requests are queued": (1, self._delete_queued),
                "disable and enable": (1.5, self._switch),
                "disable and enable by the command line": (0.2, self._switch_by_command),
            }
        (kind,) = self.random.choices([*calls], [weight for weight, _ in calls.values()])
        self.counts[kind] += 1
        before = len(self.wrong)
        try:
            await calls[kind][1](name)
        except Exception as error:  # noqa: BLE001  # it is counted, and the others go on
            self.wrong.append(repr(error))
        self.wrong[before:] = [f"{kind} {name}: {each}" for each in self.wrong[before:]]

    async def settle(self) -> None:
        """All of them are there in the end, and enabled."""
        for name in self.here:
            if self.here[name] is None:
                await self._add(name)

    def _expect(self, true: bool, what: object) -> None:
        if not true:
            self.wrong.append(str(what))

    async def _send(self, call: str, path: str, adapter: str, seed: int, **words: str) -> Any:
        files = await asyncio.to_thread(self.things.form, adapter, seed)
        return await self.client.request(call, f"{path}?wait=600", files=files, data={"any_base": "true", **words})

    def _other(self, name: str) -> int:
        return self.random.choice([seed for seed in self.things.seeds if seed != self.here[name]])

    async def _add(self, name: str) -> None:
        seed = self._other(name)
        came = await self._send("POST", "/v1/adapters", name, seed, name=name)
        self._expect(came.status_code == CREATED, came.text)
        self.here[name] = seed
        await self._look(name, came.json().get("hash"))

    async def _add_again(self, name: str) -> None:
        other = await self._send("POST", "/v1/adapters", name, self._other(name), name=name)
        self._expect(other.status_code == CONFLICT, other.text)

    async def _replace(self, name: str) -> None:
        seed = self._other(name)
        changed = await self._send("PUT", f"/v1/adapters/{name}", name, seed)
        self._expect(changed.status_code == CREATED, changed.text)
        self.here[name] = seed
        await self._look(name, changed.json().get("hash"))

    async def _look(self, name: str, content: str | None) -> None:
        found = await self.client.get(f"/v1/adapters/{name}")
        self._expect(found.json().get("hash") == content, f"{content} is not served: {found.text}")

    async def _add_by_library(self, name: str, replace: bool = False) -> None:
        seed = self._other(name)
        folder, texts = await asyncio.to_thread(self.things.adapter, name, seed)
        pool = Pool.open(self.things.folder)
        async with self.embedding:
            entry = await asyncio.to_thread(
                lambda: pool.add(name, folder, texts, self.embed, replace=replace, any_base=True)
            )
        want = read_adapter(folder, name=name, sites=pool.base.sites, base=pool.base).hash
        self._expect(entry.hash == want, f"{entry.hash} was kept, not {want}")
        self.here[name] = seed

    async def _replace_by_library(self, name: str) -> None:
        await self._add_by_library(name, replace=True)

    async def _delete(self, name: str) -> None:
        await self._seen(name)
        gone = await self.client.delete(f"/v1/adapters/{name}")
        self._expect(gone.status_code == OK, gone.text)
        self.here[name] = None

    async def _seen(self, name: str) -> None:
        """Wait until the server knows what was changed in the folder, which it does a moment later."""

        def found(entries: Sequence[Entry]) -> list[Entry]:
            return [each for each in entries if each.name == name]

        while found(self.house.entries) != found(Pool.open(self.things.folder).entries):
            await asyncio.sleep(0.05)

    async def _remove(self, name: str) -> None:
        await asyncio.to_thread(Pool.open(self.things.folder).remove, name)
        self.here[name] = None

    async def _delete_queued(self, name: str) -> None:
        await self._seen(name)
        crowd = Crowd(self.house, self.client, self.random.randrange(1 << 30))

        async def ask() -> None:
            asked = crowd.draw()
            asked.given |= {"model": name, "hilora": {"explain": True}}
            asked.leaves = False
            await asyncio.sleep(self.random.uniform(0.0, 0.4))
            await crowd.one(asked)

        asking = [asyncio.create_task(ask()) for _ in range(BURST)]
        await asyncio.sleep(self.random.uniform(0.1, 0.4))
        await self._delete(name)
        self.late += sum(not asked.ends for asked in crowd.asked)
        await asyncio.gather(*asking)
        self.bursts += crowd.asked

    async def _switch(self, name: str) -> None:
        pool = Pool.open(self.things.folder)
        for enabled in (False, True):
            await asyncio.to_thread(pool.enable, name, enabled)
            await asyncio.sleep(self.random.uniform(0.0, 0.6))

    async def _switch_by_command(self, name: str) -> None:
        for word in ("disable", "enable"):
            code, said = await self._command(word, name)
            self._expect(code == 0, said)

    async def _command(self, *words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "hilora", "pool", *words, "--pool", str(self.things.folder)]
        pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.STDOUT}
        process = await asyncio.create_subprocess_exec(*command, **pipes, env=os.environ | {"COLUMNS": "300"})
        said, _ = await process.communicate()
        return process.returncode or 0, said.decode()

    async def _prune(self, name: str) -> None:
        if self.random.random() < 0.2:
            code, said = await self._command("prune")
            self._expect(code != 0 and "is served" in said, f"not refused: {said}")
        else:
            await self._refused(lambda pool: pool.prune())
        self.wrong += await asyncio.to_thread(lambda: damaged(Pool.open(self.things.folder)))

    async def _reembed(self, name: str) -> None:
        embed = self.embed

        def change(pool: Pool) -> None:
            pool.reembed({each: self.things.samples(each) for each in pool.names}, describe_embedder(embed), embed)

        await self._refused(change)
        self.wrong += await asyncio.to_thread(lambda: damaged(Pool.open(self.things.folder)))

    async def _refused(self, change: Callable[[Pool], object]) -> None:
        try:
            await asyncio.to_thread(lambda: change(Pool.open(self.things.folder)))
        except PoolError as error:
            self._expect("is served" in str(error), error)
        else:
            self.wrong.append("it was not refused")

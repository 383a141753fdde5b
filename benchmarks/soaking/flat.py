"""Memory, open files, threads and processes of a server that is asked, and whose adapters come and go, all along."""

from __future__ import annotations

import asyncio
import statistics
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import psutil

from hilora.pool import Pool
from hilora.pool.view import Entry
from soaking.crowd import Asked, Crowd
from soaking.made import EXACT, Server, bench, server, texts_of
from soaking.things import Tiny

CLIENTS, REQUESTS = 16, 8000
MOST = 4
"""Adapters that come and go, at a time."""
EVERY = 1.0
"""Seconds between two readings."""
WARM, MINUTE, FEWEST = 0.2, 60, 60
"""Readings left out at first, while methods are first asked for and caches fill: a share of all, and a minute
of them. Where fewer than so many are left, nothing is compared."""
GROWTH = 1.05
MIB = 1 << 20
OK, CREATED = 200, 201


class Outside:
    """A server in another process, as a crowd knows it."""

    def __init__(self, shaken: Server) -> None:
        self.things, self.url = Tiny(shaken.bench), shaken.url

    @property
    def entries(self) -> Sequence[Entry]:
        """Adapters of the pool."""
        return Pool.open(self.things.folder).entries


class Readings:
    """A server's figures, once a second, from a thread of its own."""

    def __init__(self, process: psutil.Process) -> None:
        self.process, self.found = process, list[dict[str, float]]()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Readings:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._end.wait(EVERY):
            with self.process.oneshot(), suppress(psutil.NoSuchProcess):
                self.found.append(
                    {
                        "memory, MiB": self.process.memory_info().rss / MIB,
                        "open files": self.process.num_fds(),
                        "threads": self.process.num_threads(),
                        "processes": len(self.process.children()),
                    }
                )

    def quarters(self) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
        """The first and the last quarter of the readings, warming up left out."""
        warm = self.found[max(MINUTE, int(WARM * len(self.found))) :]
        part = len(warm) // 4 if len(warm) >= FEWEST else 0
        return warm[:part], warm[len(warm) - part :]


class Changes:
    """Adapters of ever new names and contents are added, replaced and deleted, one after the other."""

    def __init__(self, outside: Outside, client: httpx2.AsyncClient, seed: int) -> None:
        self.things, self.client, self.random = outside.things, client, Random(seed)
        self.counts, self.wrong = Counter[str](), list[str]()
        self.enough = False

    async def work(self) -> None:
        """Until it is told to stop."""
        here, number = list[str](), 0
        while not self.enough:
            kind = self.random.choice(("add", "replace", "delete")) if here else "add"
            kind = "delete" if kind == "add" and len(here) >= MOST else kind
            number += 1
            if kind == "add":
                here.append(f"flat.{number}")
            name = here[-1] if kind == "add" else self.random.choice(here)
            if kind == "delete":
                here.remove(name)
                answer = await self.client.delete(f"/v1/adapters/{name}")
            else:
                call, path = ("POST", "/v1/adapters") if kind == "add" else ("PUT", f"/v1/adapters/{name}")
                seed = 1000 + number
                form = self.things.bench.form(seed, samples="\n".join(texts_of(seed)).encode())
                answer = await self.client.request(call, f"{path}?wait=600", files=form, data={"name": name})
            self.counts[kind] += 1
            if answer.status_code not in (OK, CREATED):
                self.wrong.append(f"{kind} {name}: {answer.text}")
                here = [each for each in here if each != name or kind == "replace"]


async def asked_for(outside: Outside, requests: int, seed: int) -> tuple[list[Asked], Changes]:
    """So many requests at least."""
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=outside.url, timeout=600, limits=limits) as client:
        crowds = [Crowd(outside, client, seed * CLIENTS + number) for number in range(CLIENTS)]
        changes = Changes(outside, client, seed)
        async with asyncio.TaskGroup() as group:
            for each in crowds:
                group.create_task(each.ask())
            changing = group.create_task(changes.work())
            while sum(len(each.asked) for each in crowds) < requests:
                await asyncio.sleep(0.1)
            changes.enough = True
            await changing
            for each in crowds:
                each.enough = True
        return [asked for each in crowds for asked in each.asked], changes


def run(scale: float, home: Path, seed: int) -> Iterator[dict[str, Any]]:
    """One server from start to end."""
    with bench(home) as made, server(made, EXACT) as shaken:
        with Readings(psutil.Process(shaken.process.pid)) as readings:
            every, changes = asyncio.run(asked_for(Outside(shaken), max(1, round(REQUESTS * scale)), seed))
        ends = Counter(each.ends[0] if each.ends else "never" for each in every)
        wrong = [*changes.wrong, *(text for each in every for text in each.wrong)]
        wrong += [f"it ended {len(each.ends)} times: {each.given}" for each in every if len(each.ends) != 1]
        yield {"what": "requests", "counts": {"requests": len(every), **ends, **changes.counts}, "wrong": wrong}
        yield compared(readings)
        code = shaken.end()
        yield {"what": "the end", "counts": {}, "wrong": [f"it ended with {code}"] if code else []}


def compared(readings: Readings) -> dict[str, Any]:
    """The last quarter of the time beside the first."""
    first, last = readings.quarters()
    counts: dict[str, float] = {"readings": len(readings.found)}
    wrong = []
    for name in first[0] if first else ():
        ends = []
        for when, some in (("at first", first), ("at last", last)):
            values = [each[name] for each in some]
            ends.append((statistics.median(values), min(values)))
            counts[f"{name}, {when}"] = round(ends[-1][0], 1)
        if name == "memory, MiB" and ends[1][0] > GROWTH * ends[0][0]:
            wrong.append(f"memory has grown: {ends}")
        if name != "memory, MiB" and ends[1][1] > ends[0][0]:  # an upload under way has some more
            wrong.append(f"there are more {name}: {ends}")
    return {"what": "the last quarter of the time beside the first", "counts": counts, "wrong": wrong}

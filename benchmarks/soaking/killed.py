"""`kill -9` of a server, or of what checks uploads, at any moment: the next one on the same pool goes on.

Uploads, replacements, removals, streams and whole answers are under way all the time. Moments are drawn.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import psutil

from hilora.pool import Pool
from hilora.pool.lease import LEASES, holders
from hilora.pool.peft import read_adapter
from hilora.pool.view import Entry
from hilora.serve.state import FILE, FOLDER, State
from soaking.house import damaged
from soaking.made import DATA, PROMPT, SECRET, Server, bench, server, texts_of, until

KILLS = 50
LONGEST = 8.0
"""Seconds that a server has at most, once it listens."""
GRACE = 60.0
"""Seconds in which what a dead server had checked has to end: it is nice to others, and may wait for its turn."""
MODELS = ("auto", "base", "alpha", "beta")
MOST = 4
"""Adapters that one uploader has there."""
OK, CREATED = 200, 201


class Sender:
    """Uploads, replaces and removes adapters of its own, one after the other.

    Args:
        shaken: the server.
        name: of the sender.

    Attributes:
        may: what each adapter may be by what was told: hashes of contents, and None where it may be gone.
    """

    def __init__(self, shaken: Server, name: str) -> None:
        self.server, self.name, self.random = shaken, name, Random(name)
        self.may: dict[str, set[str | None]] = {}
        self.counts = Counter[str]()
        self.busy = False
        self._number = 0

    def work(self) -> None:
        """Until nobody answers any more."""
        with httpx2.Client(base_url=self.server.url, timeout=60) as client, suppress(httpx2.HTTPError):
            while True:
                here = [name for name, may in self.may.items() if may != {None}]
                kind = self.random.choice(("add", "replace", "remove")) if here else "add"
                if kind == "add" and len(here) >= MOST:
                    kind = "remove"
                self._number += 1
                name = f"{self.name}.{self._number}" if kind == "add" else self.random.choice(here)
                self.busy = True
                self._one(client, kind, name)
                self.busy = False

    def _one(self, client: httpx2.Client, kind: str, name: str) -> None:
        before = self.may.setdefault(name, {None})
        seed = 1000 + self._number % 50
        after = None if kind == "remove" else self._hash(seed)
        self.may[name] = before | {after}
        if kind == "remove":
            answer = client.delete(f"/v1/adapters/{name}")
        else:
            made = self.server.bench
            given: Any = {"files": made.form(seed, samples="\n".join(texts_of(seed)).encode())}
            call, path = ("POST", "/v1/adapters") if kind == "add" else ("PUT", f"/v1/adapters/{name}")
            answer = client.request(call, f"{path}?wait=60", data={"name": name}, **given)
        told = answer.status_code in (OK, CREATED)
        self.counts[f"{kind}, told" if told else f"{kind}, refused"] += 1
        self.may[name] = {after} if told else before

    def _hash(self, seed: int) -> str:
        made = self.server.bench
        return read_adapter(made.folder(seed), name="x", sites=made.sites).hash


class Asker:
    """Asks for answers, whole and streamed."""

    def __init__(self, shaken: Server, name: str) -> None:
        self.server, self.random = shaken, Random(name)
        self.counts = Counter[str]()
        self.busy = False

    def work(self) -> None:
        """Until nobody answers any more."""
        with httpx2.Client(base_url=self.server.url, timeout=60) as client, suppress(httpx2.HTTPError):
            while True:
                stream = self.random.random() < 0.5
                given = PROMPT | {"model": self.random.choice(MODELS), "stream": stream, "max_tokens": 60}
                self.busy = True
                with client.stream("POST", "/v1/completions", json=given) as answer:
                    lines = list(answer.iter_lines())
                whole = "data: [DONE]" in lines if stream else bool(json.loads(lines[0])["choices"])
                self.counts["answers" if whole else "answers cut off"] += 1
                self.busy = False


class Killing:
    """Rounds of kills.

    Args:
        shaken: a server.
        random: draws moments.
    """

    def __init__(self, shaken: Server, random: Random) -> None:
        self.server, self.random = shaken, random
        self.senders = [Sender(shaken, f"{letter}{random.randrange(1000)}") for letter in "ab"]
        self.askers = [Asker(shaken, f"{number}") for number in range(3)]
        self.counts = Counter[str]()
        self.wrong: list[str] = []
        self.strays = dict[int, float]()  # when each was seen first
        self.want = shaken.ask("alpha")["choices"]

    def round(self) -> None:
        """Work, a kill at some moment, and the next server."""
        everybody = [*self.senders, *self.askers]
        threads = [threading.Thread(target=each.work) for each in everybody]
        for thread in threads:
            thread.start()
        first, last = sorted(self.random.uniform(0.0, LONGEST) for _ in range(2))
        time.sleep(first)
        if self.random.random() < 0.3 and (checks := self.server.checks()):
            with suppress(psutil.NoSuchProcess):
                self.random.choice(checks).kill()
                self.counts["checkers killed"] += 1
        time.sleep(last - first)
        uploads, requests = (sum(each.busy for each in some) for some in (self.senders, self.askers))
        self.server.kill()
        self.counts += Counter({"servers killed": 1, "with uploads under way": uploads > 0})
        self.counts += Counter({"uploads under way": uploads, "answers under way": requests})
        for thread in threads:
            thread.join(90)
        for each in everybody:
            each.busy = False
        self.counts["files of no adapter, after a kill"] += len(unnamed(self.server))
        self.counts["half-written files, after a kill"] += len([*self.server.pool.rglob(".partial-*")])
        self.server.start()
        self.wrong += [f"kill {self.counts['servers killed']}: {text}" for text in self.look()]

    def look(self) -> list[str]:
        """What is wrong with the next server."""
        pool, wrong = self.server.pool, list[str]()
        found = strays(self.server)  # a check ends once it finds its server gone
        now = time.monotonic()
        self.strays = {each.pid: self.strays.get(each.pid, now) for each in found}
        wrong += [f"stray process {each}" for each in found if now - self.strays[each.pid] > GRACE]
        wrong += damaged(Pool.open(pool))
        entries = {entry.name: entry for entry in Pool.open(pool).entries}
        for sender in self.senders:
            for name, may in sender.may.items():
                found = entries[name].hash if name in entries else None
                wrong += [] if found in may else [f"{name} is {found}, and not one of {may}"]
                sender.may[name] = {found}
        known = {"alpha", "beta", "gamma", *(name for sender in self.senders for name in sender.may)}
        wrong += [f"nobody has sent {name}" for name in entries if name not in known]
        wrong += self._books(entries)
        wrong += [f"{path} holds samples' texts" for path in self.server.holding(SECRET)]
        wrong += ["the log holds samples' texts"] if SECRET in self.server.said() else []
        if len(held := holders(pool)) != 1 or len([*(pool / LEASES).iterdir()]) != 1:
            wrong.append(f"leases: {held}")
        ready = self.server.client.get("/readyz").json()
        if (ready["status"], ready["waiting"], ready["running"]) != ("ready", 0, 0):
            wrong.append(f"not ready: {ready}")
        if (answer := self.server.ask("alpha")["choices"]) != self.want:
            wrong.append(f"alpha says {answer}, and said {self.want}")
        if not self.server.ask("auto")["hilora"]["adapters"]:
            wrong.append("no adapter is routed to")
        return wrong

    def _books(self, entries: dict[str, Entry]) -> list[str]:
        """What is written down of uploads, beside the pool."""
        state, wrong = State(self.server.pool), list[str]()
        wrong += [f"an upload is {each.state}: {each}" for each in state.open_uploads()]
        for sender in self.senders:
            for name in sender.may:
                last, entry = state.last("", name), entries.get(name)
                if last is None or entry is None:
                    continue
                if last.state == "live" and last.hash != entry.hash:
                    wrong.append(f"{name} is written down as {last.hash}, and is {entry.hash}")
                if last.state == "refused" and last.hash == entry.hash:
                    wrong.append(f"{name} is there, and was refused: {last.reason}")
        return wrong


def strays(shaken: Server) -> list[psutil.Process]:
    """Processes that have to do with the pool, and neither are the server nor its children."""
    kept, found = {shaken.process.pid}, []
    with suppress(psutil.NoSuchProcess):
        kept |= {child.pid for child in psutil.Process(shaken.process.pid).children(recursive=True)}
    for each in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if each.pid not in kept and str(shaken.pool) in each.cmdline():
                found.append(each)
    return found


def unnamed(shaken: Server) -> list[Path]:
    """Files of adapters that the manifest does not name."""
    entries = Pool.open(shaken.pool).entries
    used = {entry.hash for entry in entries} | {entry.samples for entry in entries}
    return [path for path in shaken.data() if path.name.removesuffix(".safetensors") not in used]


def run(scale: float, home: Path, seed: int) -> Iterator[dict[str, Any]]:
    """All kills, and what is left in the end."""
    with bench(home) as made, server(made) as shaken:
        killing = Killing(shaken, Random(seed))
        for _ in range(max(1, round(KILLS * scale))):
            killing.round()
        counts = sum((each.counts for each in (*killing.senders, *killing.askers)), Counter[str]())
        yield {"what": "kills", "counts": dict(killing.counts), "wrong": killing.wrong}
        with closing(sqlite3.connect(shaken.pool / FOLDER / FILE)) as books:
            states = dict(books.execute("select state, count(*) from uploads group by state"))
        told = {f"written down as {state}": count for state, count in states.items()}
        yield {"what": "what clients were told", "counts": {**counts, **told}, "wrong": []}
        yield ended(shaken)


def ended(shaken: Server) -> dict[str, Any]:
    """What is left when the last server has ended in order, and the pool was pruned."""
    wrong = [] if (code := shaken.end()) == 0 else [f"it ended with {code}"]
    with suppress(TimeoutError):
        until(lambda: not strays(shaken))
    wrong += [f"stray process {each}" for each in strays(shaken)]
    pool = Pool.open(shaken.pool)
    gone = pool.prune()
    wrong += damaged(pool) + [f"a lease is held: {each}" for each in holders(shaken.pool)]
    wrong += [f"{path} is left" for path in (*unnamed(shaken), *shaken.pool.rglob(".partial-*"))]
    incoming = shaken.pool / FOLDER / "incoming"
    wrong += [f"{path} is left" for path in incoming.rglob("*") if path.is_file()]
    folders = Counter(path.parent.name for path in gone)
    counts = {"files deleted": len(gone), **{f"in {name}": count for name, count in folders.items() if name in DATA}}
    return {"what": "when the last one has ended: prune", "counts": counts, "wrong": wrong}

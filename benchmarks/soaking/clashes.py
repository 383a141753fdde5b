"""Uploads of one name at the same time, of one content and of several, posted and put, and taken out beside them."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hilora.pool import Pool
from soaking.made import bench

ROUNDS = 60
"""Of each kind, at scale 1."""
KINDS = {
    "two of the same content": (("POST", 7), ("POST", 7)),
    "eight of the same content": (("POST", 7),) * 8,
    "two of different contents": (("POST", 7), ("POST", 8)),
    "eight of different contents": tuple(("POST", 7 + number) for number in range(8)),
    "posted and put": (("POST", 7), ("PUT", 8), ("POST", 8), ("PUT", 7)),
    "put, and taken out": (("PUT", 7), ("DELETE", 0), ("PUT", 8), ("DELETE", 0), ("POST", 7)),
    "eight of each": tuple((method, 7 + number % 3) for number in range(8) for method in ("POST", "PUT", "DELETE"))[
        :8
    ],
}


def run(scale: float, home: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Every kind of clash."""
    rng = random.Random(seed)
    with bench(home / "bench") as made:
        made.serve()
        for number in range(8):
            made.form(7 + number)
        for kind, calls in KINDS.items():
            yield clash(made, kind, calls, max(1, round(ROUNDS * scale)), rng)
        yield after(made)


def content_of(made: Any, seed: int) -> str:
    """The hash that an upload is to have."""
    from hilora.pool.peft import read_adapter

    return read_adapter(made.folder(seed), name="x", sites=made.pool.base.sites, base=made.pool.base).hash


def clash(made: Any, kind: str, calls: Any, rounds: int, rng: random.Random) -> dict[str, Any]:
    """Rounds of one kind; each begins without an adapter of the name."""
    counts, wrong = Counter[str](rounds=rounds), list[str]()
    for number in range(rounds):
        name, told = f"clash{number}", list[tuple[str, int, Any]]()
        gate = threading.Barrier(len(calls))

        def call(method: str, seed: int, name: str = name, told: Any = told, gate: Any = gate) -> None:
            late = rng.random() * rng.choice((0, 0.01, 0.1))
            gate.wait()
            time.sleep(late)  # so that each round comes in another order
            if method == "DELETE":
                sent = made.client.delete(f"/v1/adapters/{name}")
            else:
                sent = made.send(name, made.form(seed), put=method == "PUT")
            told.append((method, seed, sent))

        threads = [threading.Thread(target=call, args=each) for each in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wrong += [f"{kind}, round {number}: {each}" for each in judged(made, name, calls, told, counts)]
        made.client.delete(f"/v1/adapters/{name}")
    return {"what": kind, "counts": dict(counts), "wrong": wrong}


def judged(made: Any, name: str, calls: Any, told: Any, counts: Counter[str]) -> list[str]:
    """What is wrong with a round."""
    wrong = [] if len(told) == len(calls) else [f"{len(calls) - len(told)} calls were not answered"]
    live = [entry for entry in Pool.open(made.pool.path).entries if entry.name == name]
    served = [entry for entry in made.view.entries if entry.name == name]
    taken = [(seed, sent.json()["hash"]) for _, seed, sent in told if sent.status_code == 201]
    for method, _, sent in told:
        counts[f"{method} {sent.status_code}"] += 1
        allowed = {"POST": (201, 409, 429), "PUT": (201, 429), "DELETE": (200, 404)}[method]
        if sent.status_code not in allowed:
            wrong.append(f"{method} {sent.status_code} {sent.text[:200]}")
    for seed, content in taken:
        if content != content_of(made, seed):
            wrong.append(f"the content of {seed} is told as {content}")
    methods, seeds = {method for method, _ in calls}, {seed for _, seed in calls}
    if live != served or len(live) > 1:
        wrong.append(f"{live} in the pool, {served} are served")
    if methods == {"POST"} and (len({content for _, content in taken}) != 1 or not live):
        wrong.append(f"not one content has won: {taken}")
    if methods == {"POST"} and len(seeds) == 1 and len(taken) + busy(told) != len(calls):
        wrong.append("the same content gave several results")
    if live and live[0].hash not in {content for _, content in taken}:
        wrong.append(f"{live[0].hash} is live, which nobody was told of")
    if not live and taken and "DELETE" not in methods:
        wrong.append("nothing is live")
    if found := made.state.open_uploads():
        wrong.append(f"still open: {found}")
    if made.uploads._waiting or made.left():
        wrong.append(f"places are taken: {made.uploads._waiting}, {made.left()}")
    last = made.state.last("", name)
    if live and methods == {"POST"} and len(seeds) == 1 and last.state != "live":
        wrong.append(f"the newest upload is told as {last}")
    return wrong


def busy(told: Any) -> int:
    """How many were told to come again."""
    return sum(sent.status_code == 429 for _, _, sent in told)


def after(made: Any) -> dict[str, Any]:
    """What is left when all is over."""
    made.uploads.close()
    pool, wrong = Pool.open(made.pool.path), list[str]()
    gone = pool.prune()
    wrong += [f"{entry.name}: {why}" for entry, why in pool.check() if why]
    used = {content for entry in pool.entries for content in (entry.hash, entry.samples)}
    left = [path for folder in ("adapters", "canonical", "samples") for path in (pool.path / folder).iterdir()]
    wrong += [f"{path} stays" for path in left if path.stem not in used]
    return {"what": "pruned", "counts": {"files": len(gone)}, "wrong": wrong}

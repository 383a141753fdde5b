"""Files of a pool that are damaged while it is served, in every way, and mended again."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hilora.pool import Pool
from soaking.made import PROMPT, Server, bench, server, until

EACH = 40
"""Rounds of each way on each kind of file, at scale 1."""
METHODS = ("hilora", "hilora-plus", "selection", "fusion")
TEXTS = {"alpha": "abab baab abba", "beta": "xyz zzy yxyx", "gamma": "mno onm mmnn"}


def run(scale: float, home: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Every way, on every kind of file."""
    rng = random.Random(seed)
    with bench(home / "bench") as made, server(made) as shaken:
        until(lambda: Pool.open(made.pool.path).epoch_info is not None)
        sent(shaken, "new", 7)  # its canonical form is kept, too
        for folder in ("adapters", "canonical", "samples"):
            yield damaged(shaken, folder, max(1, round(EACH * scale)), rng)
        yield put(shaken, max(1, round(EACH * scale / 4)), rng)


def cut(path: Path, rng: random.Random) -> None:
    """Shorter, and still the same file: whoever has mapped it must not look at it."""
    os.truncate(path, rng.randrange(path.stat().st_size))


def flip(path: Path, rng: random.Random) -> None:
    """One bit of it."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    with path.open("r+b") as file:
        file.write(content)


def fill(path: Path, rng: random.Random) -> None:
    """As long as it was, of something else."""
    path.write_bytes(rng.randbytes(path.stat().st_size))


WAYS: dict[str, Callable[[Path, random.Random], None]] = {
    "cut": cut,
    "flipped": flip,
    "filled": fill,
    "gone": lambda path, rng: path.unlink(),
}


class Asking:
    """Somebody who asks all the time, and writes down what is no answer."""

    def __init__(self, shaken: Server) -> None:
        self.shaken, self.answers, self.again = shaken, 0, 0
        self.wrong: list[str] = []
        self.closed = threading.Event()

    def work(self) -> None:
        """Until it is told that this is enough."""
        while not self.closed.is_set():
            self.closed.wait(0.1)
            for method in METHODS:
                given = {"model": "auto", "max_tokens": 4, "hilora": {"method": method}}
                sent = self.shaken.client.post("/v1/completions", json=PROMPT | given)
                if sent.status_code == 200:
                    self.answers += 1
                elif sent.json()["error"]["code"] == "adapter_damaged":
                    self.again += 1
                else:
                    self.wrong.append(f"{method}: {sent.status_code} {sent.text[:200]}")


@contextmanager
def asking(shaken: Server) -> Iterator[Asking]:
    """Somebody asks meanwhile."""
    one = Asking(shaken)
    thread = threading.Thread(target=one.work)
    thread.start()
    try:
        yield one
    finally:
        one.closed.set()
        thread.join()


def sent(shaken: Server, name: str, seed: int, *, put: bool = False) -> str:
    """What becomes of an upload."""
    given: Any = {"files": shaken.bench.form(seed), "data": {"name": name}}
    first = shaken.client.put(f"/v1/adapters/{name}", **given) if put else shaken.client.post("/v1/adapters", **given)
    if first.status_code != 202:
        return str(first.text)
    until(lambda: shaken.look(name)["upload"]["state"] not in ("received", "checking"), 300)
    upload = shaken.look(name)["upload"]
    return str(upload["reason"] or upload["state"])


def told(shaken: Server) -> list[str]:
    """Which adapters are said to be damaged."""
    found: list[str] = shaken.client.get("/readyz").json()["damaged"]
    return found


def by(shaken: Server, model: str, text: str, method: str = "hilora") -> Any:
    """An answer, or why there is none."""
    own: dict[str, Any] = {"explain": True} | ({"method": method} if model == "auto" else {})
    given = {"model": model, "prompt": text, "max_tokens": 4, "hilora": own}
    return shaken.client.post("/v1/completions", json=PROMPT | given)


def damaged(shaken: Server, folder: str, count: int, rng: random.Random) -> dict[str, Any]:
    """Files of one kind, one after another; somebody asks all the time."""
    counts = {"damaged": 0, "by name refused": 0, "mended": 0, "asked": 0, "come again": 0}
    wrong: list[str] = []
    texts = TEXTS | {"new": "pqr rqpp qqrp"}
    with asking(shaken) as one:
        for number in range(count * len(WAYS)):
            way = list(WAYS)[number % len(WAYS)]
            name = "new" if folder == "canonical" else rng.choice([*texts])
            (entry,) = [each for each in Pool.open(shaken.pool).entries if each.name == name]
            path = shaken.pool / folder / f"{entry.samples if folder == 'samples' else entry.hash}.safetensors"
            when, whole = f"{folder}, {way}, {name}", path.read_bytes()
            before = answer(by(shaken, name, texts[name]))
            WAYS[way](path, rng)
            counts["damaged"] += 1
            asked = by(shaken, name, texts[name])
            if folder == "adapters":
                error = asked.json().get("error", {})
                counts["by name refused"] += asked.status_code == 503 and error.get("code") == "adapter_damaged"
                if asked.status_code != 503 or str(shaken.pool) in asked.text or told(shaken) != [name]:
                    wrong.append(f"{when}: {asked.status_code} {asked.text[:200]} {told(shaken)}")
                for method in METHODS:
                    found = by(shaken, "auto", texts[name], method)
                    adapters = [each["name"] for each in found.json().get("hilora", {}).get("adapters", [])]
                    if found.status_code != 200 or any(name in each for each in adapters):
                        wrong.append(f"{when}, {method}: {found.status_code} {found.text[:200]}")
            elif answer(asked) != before:
                wrong.append(f"{when}: {asked.text[:200]}, was {before}")
            elif folder == "samples" and number % 40 == 0:
                wrong += changed(shaken, when)
            other = next(each for each in texts if each != name)
            if (found := by(shaken, other, texts[other])).status_code != 200:
                wrong.append(f"{when}: {other} is not served: {found.text[:200]}")
            path.write_bytes(whole)
            counts["mended"] += 1
            until(lambda: told(shaken) == [])
            if (found := by(shaken, name, texts[name])).status_code != 200 or answer(found) != before:
                wrong.append(f"{when}, mended: {found.text[:200]}, was {before}")
            alive(shaken)
    counts |= {"asked": one.answers, "come again": one.again}
    return {"what": f"{folder}", "counts": counts, "wrong": wrong + one.wrong}


def changed(shaken: Server, when: str) -> list[str]:
    """What is wrong with changes of the pool while samples are damaged."""
    wrong = []
    if (found := sent(shaken, "beside", 8)) != "live":
        wrong.append(f"{when}: an upload is not taken: {found}")
    elif "pool cannot be read" in shaken.said():
        wrong.append(f"{when}: the pool cannot be read")
    shaken.client.delete("/v1/adapters/beside")
    return wrong


def answer(asked: Any) -> Any:
    """What is to stay."""
    found = asked.json()
    return found.get("choices"), found.get("hilora", {}).get("adapters")


def alive(shaken: Server) -> None:
    if shaken.process.poll() is not None:
        raise RuntimeError(f"The server has ended. {shaken.said()[-2000:]}")


def put(shaken: Server, count: int, rng: random.Random) -> dict[str, Any]:
    """Damaged weights, mended by who sends the adapter again."""
    counts, wrong = {"damaged": 0, "mended": 0}, list[str]()
    for number in range(count):
        (entry,) = [each for each in Pool.open(shaken.pool).entries if each.name == "new"]
        way = list(WAYS)[number % len(WAYS)]
        WAYS[way](shaken.pool / "adapters" / f"{entry.hash}.safetensors", rng)
        counts["damaged"] += 1
        if by(shaken, "new", "pqr").status_code != 503:
            wrong.append(f"{way}: not noticed")
        found, asked = sent(shaken, "new", 7, put=True), by(shaken, "new", "pqr")
        counts["mended"] += asked.status_code == 200
        if (found, asked.status_code) != ("live", 200):
            wrong.append(f"{way}: {found} {asked.text[:200]}")
    return {"what": "sent again", "counts": counts, "wrong": wrong}

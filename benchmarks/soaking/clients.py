"""Slow, vanishing and odd clients: they are ended, leave nothing, and others are served as before."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hilora.serve.connections import OTHERS
from soaking.made import EXACT, PROMPT, Server, bench, server
from soaking.odd import ODD
from soaking.raw import FORM, STREAM, Good, Held, Raw, head, request, status, warm

PATIENCE = 0.6
"""Seconds that the server is given for slow clients, so that there is less to wait for."""
LENGTH = b"Content-Length: 100000"
PART = b'--edge\r\nContent-Disposition: form-data; name="weights"; filename="a"\r\n\r\n'
UP = head("/v1/adapters", LENGTH, kind=FORM) + b"\r\n"
ASK = head("/v1/completions", LENGTH) + b"\r\n"
SLOW = {
    "headers": (head("/v1/completions"), b"X"),
    "a line": (b"GET /", b"a"),
    "a body": (ASK, b" "),
    "chunks": (head("/v1/completions", b"Transfer-Encoding: chunked") + b"\r\n", b"1\r\n \r\n"),
    "an upload": (UP + PART, b"x"),
    "a stopped upload": (UP + PART + b"x" * 5000, b""),
    "nothing": (b"", b""),
    "a body that is not wanted": (head("/v1/nothing", LENGTH) + b"\r\n", b" "),
}
"""Kind -> what is sent at first, and then, a byte or some at a time, for ever."""


def run(scale: float, home: Path, seed: int) -> Iterator[dict[str, Any]]:
    """The rows."""
    count = max(3, round(50 * scale))
    room = 12 * count
    files = ["prlimit", f"--nofile={room + OTHERS + 30}"]
    with bench(home) as made, server(made, ["--patience", str(PATIENCE), *EXACT], files) as served:
        warm(served)
        yield asyncio.run(slow(served, count))
        yield asyncio.run(stalled(served, count))
        yield asyncio.run(vanishing(served, 6 * count, random.Random(seed)))
        yield asyncio.run(odd(served, max(1, count // 5)))
        yield asyncio.run(crowd(served, 2 * room))


async def slow(served: Server, count: int) -> dict[str, Any]:
    """Each kind of slow client, so many times, all at once."""
    held, good, wrong = Held(served), Good(served), list[str]()
    found: Counter[str] = Counter()

    async def one(kind: str) -> None:
        first, more = SLOW[kind]
        client = await Raw(served).open()
        await client.send(first)
        got = await client.dribble(more, 0.2, 30 * PATIENCE)
        client.vanish()
        found["ended" if got is not None else "not ended"] += 1
        if got is None:
            wrong.append(f"{kind}: not ended")
        elif status(got) >= 500:
            wrong.append(f"{kind}: {got[:200]!r}")
        elif status(got):
            found[f"told {status(got)}"] += 1

    with good.asking():
        await asyncio.gather(*(one(kind) for kind in SLOW for _ in range(count)))
    return row("slow clients, all at once", found, good, wrong + held.wrong())


async def stalled(served: Server, count: int) -> dict[str, Any]:
    """Who asks for a stream, or for much more than fits between the two, and reads nothing of it."""
    held, good, wrong = Held(served), Good(served), list[str]()
    document = (head("/openapi.json", method=b"GET") + b"\r\n") * 500
    found: Counter[str] = Counter()
    clients = [await Raw(served, narrow=True).open() for _ in range(2 * count)]
    with good.asking():
        for number, client in enumerate(clients):
            await client.send(document if number % 2 else request("/v1/completions", STREAM, b"Connection: close"))
        for _ in range(600):
            await asyncio.sleep(0.1)
            if held.connections <= 2:
                break
        else:
            wrong.append(f"{held.connections} connections are held by clients that do not read")
    for number, client in enumerate(clients):
        got = await client.whole()
        client.vanish()
        whole = len(statuses(got)) == 500 if number % 2 else b"[DONE]" in got
        found[f"{'documents' if number % 2 else 'streams'}, {'whole' if whole else 'cut'}"] += 1
    wrong += ["who reads nothing got all"] * found["documents, whole"]
    return row("readers that never read", found, good, wrong + held.wrong())


async def vanishing(served: Server, count: int, rng: random.Random) -> dict[str, Any]:
    """Clients that go, by FIN and by RST, at a time that is drawn."""
    whole = request("/v1/completions", PROMPT | {"model": "auto", "max_tokens": 100})
    stream = request("/v1/completions", PROMPT | {"model": "auto", "max_tokens": 100, "stream": True})
    upload = UP + PART + b"x" * 60_000

    async def one(kind: str, *, reset: bool) -> None:
        client = await Raw(served).open()
        data = {"upload": upload}.get(kind, stream if "stream" in kind else whole)
        cut = rng.randrange(1, len(data)) if kind in ("in a request", "upload") else len(data)
        await client.send(data[:cut])
        if kind == "in a stream":
            for _ in range(rng.randrange(1, 5)):
                await client.read()
        await asyncio.sleep(rng.random() * 0.2)
        client.vanish(reset=reset)
        found[f"{kind}, {'RST' if reset else 'FIN'}"] += 1

    kinds = ["in a request", "before the status", "before a stream", "in a stream", "upload"]
    held, good, found = Held(served), Good(served), Counter[str]()
    with good.asking():
        for start in range(0, count, 6):  # so many at once of each kind
            some = range(start, min(count, start + 6))
            await asyncio.gather(*(one(kind, reset=bool(i % 2)) for i in some for kind in kinds))
            if start < count / 2:  # what a crowd takes stays, what each client takes does not
                held.weigh()
    return row("clients that vanish", found, good, held.wrong())


async def odd(served: Server, count: int) -> dict[str, Any]:
    """What is hardly HTTP, or not at all."""
    held, good, wrong, found = Held(served), Good(served), list[str](), Counter[str]()

    async def one(kind: str, sent: bytes, may: set[tuple[int, ...]]) -> None:
        client = await Raw(served).open()
        await client.send(sent)
        try:
            got = await client.whole(30)
        except TimeoutError:
            wrong.append(f"{kind}: not ended")
            return
        finally:
            client.vanish()
        came = statuses(got)
        found[f"{came[0] if len(set(came)) == 1 else 'several'}"] += 1
        if came not in may:
            wrong.append(f"{kind}: {came}, {got[-300:]!r}")
        if came and came[-1] >= 400 and not json.loads(got.rpartition(b"\r\n\r\n")[2])["error"]["message"]:
            wrong.append(f"{kind}: says nothing")

    with good.asking():
        for _ in range(count):
            for kind, (sent, may) in ODD.items():
                await one(kind, sent, may)
    text = served.said()
    wrong += [line[-200:] for line in text.splitlines() if "Traceback" in line]
    return row("what is hardly HTTP", found, good, wrong + held.wrong())


def statuses(got: bytes) -> tuple[int, ...]:
    """Of all responses of a connection."""
    return tuple(int(part[:3]) for part in got.split(b"HTTP/1.1 ")[1:])


async def crowd(served: Server, count: int) -> dict[str, Any]:
    """More clients than the server may open files, who send nothing whole; one after another is ended."""
    held, good, found = Held(served), Good(served, busy=(503,)), Counter[str]()

    async def one(number: int) -> None:
        client = await Raw(served).open()
        await client.send(ASK if number % 2 else b"GET /")
        got = await client.dribble(b" " if number % 2 else b"a", 0.2, 30 * PATIENCE)
        found["not ended" if got is None else "told" if got else "ended"] += 1
        client.vanish()

    with good.asking():
        await asyncio.gather(*(one(number) for number in range(count)))
    wrong = ["not ended"] * found["not ended"] + ["no file was left"] * ("Too many open files" in served.said())
    return row("more clients than files", found, good, wrong + held.wrong())


def row(what: str, counts: dict[str, int], good: Good, wrong: list[str]) -> dict[str, Any]:
    """What was done, and what the good client saw meanwhile."""
    also = {"good client answered": good.answered, "told to come again": good.refused}
    also["its slowest answer, ms"] = round(1e3 * good.slowest)
    if not good.answered:
        wrong.append("the good client was not answered")
    return {"what": what, "counts": dict(counts) | also, "wrong": good.wrong + wrong}

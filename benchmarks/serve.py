"""A server under load, against the same prompts as one offline batch.

    python benchmarks/serve.py --json benchmarks/serve.jsonl            # half an hour on two cores

offline     `HiLoRA.generate` of --batch prompts, in this process: what all others are compared with, round by round
desk        the same prompts asked of a desk within one step, in this process
http        the same over HTTP, of a `hilora serve` on this machine, by --clients connections that each ask again as
            soon as they have an answer; "stream" reads it token by token, "base" asks for the base model alone
poisson     requests that arrive at random, at a share of what an offline batch achieves

Server and clients share the cores: `client_share` is the clients' part of the processor time of both. Answers are
greedy, so that each way makes the same tokens. Rows that the file has already are left. Run it alone on the machine.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import psutil
from lines import Line, add

from hilora import HiLoRA
from hilora.bench.workload import make_workload
from hilora.evaluate.setup import setup
from hilora.jsonl import read_lines
from hilora.serve.asked import Ask
from hilora.serve.desk import PoolDesk
from hilora.serve.limits import Limits

HERE = Path(__file__).parents[1]
STARTS = 3000
"""Looks whether a server has started, five a second."""


@dataclass(frozen=True)
class Got:
    """One answer; seconds."""

    tokens: int
    first: float  # to the first token
    whole: float  # to the whole answer


def prompts_of(count: int, words: int, seed: int) -> list[str]:
    """Made prompts of made words, all different."""
    tasks = [str(i) for i in range(8)]
    work = make_workload(
        tasks, adapters=min(8, count), share="zipf", batch=count, words=words, new_tokens=1, seed=seed
    )
    return list(work.prompts)


async def post(client: httpx.AsyncClient, prompt: str, model: str, most: int, stream: bool) -> Got:
    """Ask, and wait for the whole answer."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": most,
        "temperature": 0,
        "stream": stream,
    }
    began = time.perf_counter()
    if not stream:
        answer = await client.post("/v1/chat/completions", json=body)
        if answer.is_error:
            raise SystemExit(f"The server refuses: {answer.text}")
        seconds = time.perf_counter() - began
        return Got(answer.json()["usage"]["completion_tokens"], seconds, seconds)
    body["stream_options"] = {"include_usage": True}
    first, tokens = None, 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if first is None and any(choice["delta"].get("content") for choice in chunk["choices"]):
                first = time.perf_counter() - began
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    seconds = time.perf_counter() - began
    return Got(tokens, seconds if first is None else first, seconds)


async def clients(url: str, prompts: Sequence[str], count: int, model: str, most: int, stream: bool) -> list[Got]:
    """So many connections, each with its next prompt as soon as it has an answer."""
    left, found = iter(prompts), list[Got]()
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def work() -> None:
            for prompt in left:
                found.append(await post(client, prompt, model, most, stream))

        await asyncio.gather(*[work() for _ in range(count)])
    return found


async def poisson(url: str, prompts: Sequence[str], per_s: float, most: int, seed: int) -> list[Got]:
    """Requests that arrive at random."""
    gaps = np.random.default_rng(seed).exponential(1 / per_s, len(prompts))
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        tasks = []
        for prompt, gap in zip(prompts, gaps, strict=True):
            tasks.append(asyncio.create_task(post(client, prompt, "auto", most, True)))
            await asyncio.sleep(float(gap))
        return list(await asyncio.gather(*tasks))


@contextlib.contextmanager
def server(args: argparse.Namespace) -> Iterator[tuple[str, psutil.Process]]:
    """A server that takes no uploads, in a process of its own, ready."""
    more = ["--method", args.method, "--running", str(args.batch), "--no-uploads"]
    with started(args.pool, args, more) as (url, process):
        yield url, process


@contextlib.contextmanager
def started(pool: Path, args: argparse.Namespace, more: Sequence[str] = ()) -> Iterator[tuple[str, psutil.Process]]:
    """`hilora serve` in a process of its own, ready; its URL and its process."""
    command = [sys.executable, "-m", "hilora", "serve", "--pool", str(pool), "--port", str(args.port), *more]
    command += ["--dtype", args.dtype, *(["--base", args.base] if args.base else [])]
    process = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{args.port}"
    try:
        for _ in range(STARTS):
            if process.poll() is not None:
                raise SystemExit(f"The server ended with {process.returncode}.")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/readyz").status_code == httpx.codes.OK:
                    break
            time.sleep(0.2)
        yield url, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def middle(values: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    return {name: round(float(np.quantile(values, at)), 4) for name, at in (("p50", 0.5), ("p95", 0.95))}


def figures(found: Sequence[Got], seconds: float) -> Line:
    """What a run's requests had of it."""
    more = [
        1e3 * (got.whole - got.first) / (got.tokens - 1) for got in found if got.tokens > 1 and got.whole > got.first
    ]
    return {
        "requests": len(found),
        "seconds": round(seconds, 3),
        "tokens_per_s": round(sum(got.tokens for got in found) / seconds, 2),
        "first_s": middle([got.first for got in found]),
        "whole_s": middle([got.whole for got in found]),
        "token_ms": middle(more) if more else None,
    }


def offline(router: HiLoRA, prompts: Sequence[str], most: int, batch: int) -> float:
    """Tokens per second of one call."""
    began = time.perf_counter()
    answers = router.generate(list(prompts), max_new_tokens=most, batch_size=batch, do_sample=False)
    return sum(answer.completion_tokens for answer in answers) / (time.perf_counter() - began)


async def at_desk(desk: PoolDesk, prompts: Sequence[str], most: int) -> float:
    """Tokens per second of requests that come within one step."""

    async def one(prompt: str) -> int:
        ticket = await desk.answer(Ask(prompt, max_new_tokens=most, sampling={"do_sample": False}))
        return sum([event.completion_tokens async for event in ticket])  # type: ignore[union-attr]

    began = time.perf_counter()
    tokens = await asyncio.gather(*[one(prompt) for prompt in prompts])
    return sum(tokens) / (time.perf_counter() - began)


def measure(args: argparse.Namespace, known: Sequence[Line]) -> Iterator[Line]:
    """A line for each way and round that is not known yet."""
    done = {(line["way"], line.get("clients"), line.get("rate"), line["round"]) for line in known if "way" in line}
    router = HiLoRA.from_pretrained(args.base, args.pool, args.method, dtype=args.dtype)
    prompts, most = prompts_of(args.batch, args.words, args.seed), args.new_tokens
    offline(router, prompts, most, args.batch)

    def compared() -> float:
        return offline(router, prompts, most, args.batch)

    desk = PoolDesk(router, Limits(running=args.batch))
    asyncio.run(at_desk(desk, prompts, most))
    for number in range(args.rounds):
        if ("desk", args.batch, None, number) not in done:
            base, got = compared(), asyncio.run(at_desk(desk, prompts, most))
            yield line_of("desk", args.batch, number, {"tokens_per_s": round(got, 2)}, base)
    desk.close(10.0)
    with server(args) as (url, process):
        asyncio.run(clients(url, prompts, args.batch, "auto", most, False))
        for way, model, stream in (("http", "auto", False), ("stream", "auto", True), ("base", "base", True)):
            for count in args.clients:
                for number in range(args.rounds):
                    if (way, count, None, number) in done:
                        continue
                    asked = (prompts * 2)[: max(count, args.batch)] if count > 1 else prompts[: args.batch // 4]
                    base, before = compared(), spent(process)
                    began = time.perf_counter()
                    found = asyncio.run(clients(url, asked, count, model, most, stream))
                    line = figures(found, time.perf_counter() - began)
                    yield line_of(way, count, number, line | share(before, spent(process)), base)
        for rate in args.rates:
            if ("poisson", None, rate, 0) in done:
                continue
            base, before = compared(), spent(process)
            per_s = rate * base / statistics.mean([most])
            began = time.perf_counter()
            found = asyncio.run(poisson(url, (prompts * args.repeat)[: args.arrivals], per_s, most, args.seed))
            line = figures(found, time.perf_counter() - began) | share(before, spent(process))
            yield line_of("poisson", None, 0, line | {"rate": rate, "arrive_per_s": round(per_s, 3)}, base)


def spent(process: psutil.Process) -> tuple[float, float]:
    """Processor seconds of the clients, and of the server."""
    own, other = psutil.Process().cpu_times(), process.cpu_times()
    return own.user + own.system, other.user + other.system


def share(before: tuple[float, float], after: tuple[float, float]) -> Line:
    """The clients' part."""
    own, other = (b - a for a, b in zip(before, after, strict=True))
    return {"client_share": round(own / max(own + other, 1e-9), 4)}


def line_of(way: str, count: int | None, number: int, found: Line, base: float) -> Line:
    """A row."""
    ratio = {"offline_tokens_per_s": round(base, 2), "of_offline": round(found["tokens_per_s"] / base, 4)}
    return {"way": way, "clients": count, "round": number} | found | ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pool", type=Path, default=HERE / "pools" / "flan-mini")
    parser.add_argument("--base")
    parser.add_argument("--method", default="hilora-plus")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 32, 64])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5, 0.8])
    parser.add_argument("--arrivals", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=4)
    parser.add_argument("--words", type=int, default=40)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=8731)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    known = list(read_lines(args.json)) if args.json and args.json.exists() else []
    if not known:
        names = ("method", "dtype", "batch", "words", "new_tokens", "rounds", "arrivals")
        about: dict[str, Any] = {name: getattr(args, name) for name in names}
        add(args.json, [setup("benchmarks/serve.py", pool=args.pool.name, seed=args.seed, **about)])
    add(args.json, measure(args, known))


if __name__ == "__main__":
    main()

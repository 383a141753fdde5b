"""An upload to a server that is at work: seconds until prompts are routed to it, and what it costs those who wait.

    python benchmarks/uploads.py --json benchmarks/uploads.jsonl            # half an hour on two cores

For each size of the pool (made as in `pool.py`, with an epoch), a `hilora serve` of this machine is sent an adapter,
--times over, and each time it is taken out again:

idle        nobody else asks: seconds from the request to the 201 (the adapter has been checked in full and is live),
            and to the first prompt that is routed to it, which is asked for at once
at work     --rows clients read streams meanwhile: the same, and the median time between two tokens of a stream while
            the upload is checked, of that just before and after (step_ratio)

The clients share the cores with the server. What the file has already is left. Run it alone on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2 as httpx
import torch
from lines import Line, add
from pool import make_pool
from safetensors.torch import load_file, save_file
from serve import prompts_of, started

from hilora import Pool
from hilora.bench.rounds import spread
from hilora.cli.remote import Remote
from hilora.evaluate.setup import setup
from hilora.jsonl import read_lines
from hilora.pool.export import export_adapter
from hilora.pool.peft import WEIGHTS
from hilora.pool.peft_config import CONFIG

HERE = Path(__file__).parents[1]
QUIET = 4.0
"""Seconds before and after an upload that it is compared with."""


class Streams:
    """Clients that read answers token by token, each asking again as soon as it has one.

    Args:
        url: of the server.
        prompts: asked in turn.
        rows: how many read at a time.
        most: tokens of an answer.
    """

    def __init__(self, url: str, prompts: Sequence[str], rows: int, most: int) -> None:
        self.url, self.prompts, self.rows, self.most = url, prompts, rows, most
        self.gaps: list[tuple[float, float]] = []  # when a token came, and seconds since the one before
        self._end = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._read()))

    def __enter__(self) -> Streams:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    async def _read(self) -> None:
        limits = httpx.Limits(max_connections=self.rows)
        async with httpx.AsyncClient(base_url=self.url, timeout=600, limits=limits) as client:
            await asyncio.gather(*[self._one(client, row) for row in range(self.rows)])

    async def _one(self, client: httpx.AsyncClient, row: int) -> None:
        number = row
        while not self._end.is_set():
            body = {
                "model": "auto",
                "messages": [{"role": "user", "content": self.prompts[number % len(self.prompts)]}],
            }
            body |= {"max_tokens": self.most, "temperature": 0, "stream": True}
            number, before = number + self.rows, 0.0
            async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                answer.raise_for_status()
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        now = time.perf_counter()
                        if before:
                            self.gaps.append((now, now - before))
                        before = now
                    if self._end.is_set():
                        return

    def middle(self, start: float, end: float) -> float:
        """The median gap between two times."""
        return statistics.median([gap for at, gap in list(self.gaps) if start <= at < end])

    def wait(self, seconds: float) -> None:
        """Until so much time has passed, and tokens have come meanwhile."""
        began, before = time.perf_counter(), len(self.gaps)
        while time.perf_counter() < began + seconds or len(self.gaps) < before + self.rows:
            if not self._thread.is_alive():
                raise SystemExit("The streams have ended.")
            time.sleep(0.05)


def contribution(source: Pool, name: str, folder: Path) -> dict[str, bytes | Path]:
    """An adapter like one of the pool's, its numbers drawn anew, with samples of a task of its own."""
    export_adapter(source, source.names[0], folder)
    drawn = torch.Generator().manual_seed(sum(name.encode()))
    weights = load_file(folder / WEIGHTS)
    noisy = {
        key: (value.float() * (1 + 0.1 * torch.randn(value.shape, generator=drawn))).to(value.dtype)
        for key, value in weights.items()
    }
    save_file(noisy, folder / WEIGHTS)
    samples = [{"inputs": f"Which station of the night tram {name} comes after stop {i}?"} for i in range(20)]
    texts = "".join(json.dumps(each) + "\n" for each in samples).encode()
    return {"config": folder / CONFIG, "weights": folder / WEIGHTS, "samples": texts}


def upload(url: str, name: str, files: dict[str, bytes | Path]) -> dict[str, float]:
    """Seconds to the 201, and to the first prompt that is routed to it; it stays."""
    began = time.perf_counter()
    found = Remote(url, None).send({"name": name, "any_base": "true"}, files, replace=False, wait=600.0)
    checked = time.perf_counter() - began
    if found.get("state") != "live":
        raise SystemExit(f"The upload is {found}.")
    body = {"messages": [{"role": "user", "content": f"Which station of the night tram {name} is it?"}]}
    reply = httpx.post(f"{url}/v1/route", json=body | {"hilora": {"allow": [name]}}, timeout=60)
    if reply.is_error or name not in reply.text:
        raise SystemExit(f"It is live and cannot be routed to: {reply.text}")
    return {"live_s": checked, "routable_s": time.perf_counter() - began}


def idle(url: str, source: Pool, times: int) -> Line:
    """Uploads to a server that does nothing else."""
    return summed([one(url, source, f"idle.{i}")[0] for i in range(times)])


def at_work(url: str, source: Pool, times: int, prompts: Sequence[str], args: argparse.Namespace) -> Line:
    """Uploads to a server whose answers are read meanwhile."""
    rows = []
    with Streams(url, prompts, args.rows, args.new_tokens) as streams:
        for i in range(times):
            began = time.perf_counter()
            streams.wait(QUIET)
            found, start, end = one(url, source, f"work.{i}")
            streams.wait(QUIET)
            quiet = [streams.middle(began, start), streams.middle(end, time.perf_counter())]
            during = streams.middle(start, end)
            rows.append(found | {"step_ms": 1e3 * during, "step_ratio": during / statistics.mean(quiet)})
    return {"rows": args.rows} | summed(rows)


def one(url: str, source: Pool, name: str) -> tuple[dict[str, float], float, float]:
    """Figures of one upload, and when it began and ended; it is taken out again."""
    with tempfile.TemporaryDirectory() as folder:
        files = contribution(source, name, Path(folder) / name)
        start = time.perf_counter()
        found = upload(url, name, files)
        end = time.perf_counter()
    Remote(url, None).remove(name)
    return found, start, end


def summed(rows: Sequence[dict[str, float]]) -> Line:
    """Median and range of each figure."""
    return {"times": len(rows)} | {key: spread([row[key] for row in rows], 4) for key in rows[0]}


def measure(args: argparse.Namespace, known: Sequence[Line]) -> Iterator[Line]:
    """All lines that are not known yet."""
    source, prompts = Pool.open(args.pool), prompts_of(64, 40, 0)
    done = {(line["adapters"], line["what"]) for line in known if "what" in line}
    for size in args.adapters:
        if {(size, "idle"), (size, "at work")} <= done:
            continue
        # beside the source: hard links do not cross file systems
        with tempfile.TemporaryDirectory(dir=source.path.parent, prefix=".bench-") as folder:
            pool = make_pool(source, size, Path(folder) / "pool")
            pool.renew_epoch(sorted(pool.names)[:: -(-size // args.members)])
            with started(pool.path, args) as (url, _):
                one(url, source, "first")
                for what, found in (("idle", idle), ("at work", None)):
                    if (size, what) not in done:
                        more = (
                            found(url, source, args.times)
                            if found
                            else at_work(url, source, args.times, prompts, args)
                        )
                        yield {"what": what, "adapters": size} | more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pool", type=Path, default=HERE / "pools" / "flan-mini")
    parser.add_argument("--base")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--adapters", type=int, nargs="+", default=[52, 1000, 10_000])
    parser.add_argument("--members", type=int, default=2000, help="adapters that the epoch is learned from, at most")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--times", type=int, default=9)
    parser.add_argument("--port", type=int, default=8732)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    known = list(read_lines(args.json)) if args.json and args.json.exists() else []
    if not known:
        about: dict[str, Any] = {name: getattr(args, name) for name in ("dtype", "members", "rows", "new_tokens")}
        add(args.json, [setup("benchmarks/uploads.py", pool=args.pool.name, **about)])
    add(args.json, measure(args, known))


if __name__ == "__main__":
    main()

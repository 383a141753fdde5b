"""What the size of a pool costs: opening, adding, a cold adapter's first use, throughput.

    python benchmarks/pool.py --registered 5 2000 10000 --json benchmarks/pool.jsonl

Pools of any size are made from pools/flan-mini in a temporary folder: adapters are hard links to its files under
names of their own, samples are its samples with some noise. Run it with nothing else on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lines import Line, add

from hilora import HiLoRA, Pool, get_method
from hilora.base.models import default_dtype, load_base
from hilora.bench.rounds import spread, stopwatch, turns
from hilora.bench.workload import Workload, make_workload
from hilora.evaluate.setup import setup
from hilora.planner import Planner
from hilora.pool import store
from hilora.pool.export import export_adapter
from hilora.pool.folder import in_order
from hilora.pool.peft import content_hash
from hilora.route.features import Features
from hilora.types import Factors

seconds = stopwatch(torch.device("cpu"))
"""Seconds that a call takes."""
CHANGES = 9
"""Times that an addition is measured."""
LOADED = 2000
"""Largest pool that throughput is measured with: its router is fitted to every adapter's samples."""


def make_pool(source: Pool, count: int, folder: Path) -> Pool:
    """A pool of so many adapters: the source's, again and again, each with two numbers and its embeddings changed."""
    stream = np.random.default_rng(0)
    samples, manifest = source.samples(), json.loads((source.path / store.MANIFEST).read_text())
    weights = [source.factors(entry.hash) for entry in source.entries]
    for name in (store.ADAPTERS, store.SAMPLES):
        (folder / name).mkdir(parents=True)
    os.link(source.path / store.BASE, folder / store.BASE)
    made = []
    for i in range(count):
        own = source.entries[i % len(source)]
        factors = _numbered(weights[i % len(source)], i // len(source))
        content, name = content_hash(factors), f"{own.name}.{i // len(source)}"
        store.write_factors(folder / store.ADAPTERS / f"{content}.safetensors", factors)
        known = samples[i % len(source)]
        noise = torch.from_numpy(stream.standard_normal(known.embeddings.shape, dtype=np.float32)) * 0.02
        looked = Features(known.embeddings + noise, known.terms)
        path = folder / store.SAMPLES / f"{looked.content_hash()}.safetensors"
        path.write_bytes(_packed(looked))
        made.append(replace(own, name=name, hash=content, samples=path.stem))
    del manifest["adapters"]
    store.write_manifest(folder, manifest, in_order(made))
    return Pool.open(folder)


def _numbered(factors: Factors, number: int) -> Factors:
    """An adapter with a small number in two of its weights, which bf16 holds exactly."""
    site = min(factors)
    down, up = factors[site]
    down = down.clone()
    down[0, :2] = torch.tensor([number % 256, number // 256]) / 2**16
    return Factors(factors) | {site: (down, up)}


def _file(pool: Pool, folder: str, content: str) -> Path:
    return pool.path / folder / f"{content}.safetensors"


def _packed(features: Features) -> bytes:
    from safetensors.torch import save

    packed: bytes = save({name: tensor.contiguous() for name, tensor in features.tensors().items()})
    return packed


def changes(source: Pool, pool: Pool) -> dict[str, Any]:
    """Seconds to open the pool, and to add one adapter beside embedding."""
    found: dict[str, Any] = {"open_s": spread([seconds(lambda: Pool.open(pool.path)) for _ in range(CHANGES)])}
    texts = [f"Sample number {i} of a new task." for i in range(20)]
    adds = []
    with tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(source.names[:CHANGES]):
            export_adapter(source, name, Path(folder) / name)
            given = torch.nn.functional.normalize(torch.randn(20, pool.embedder.dim), dim=1)
            call = partial(pool.add, f"new{i}", Path(folder) / name, texts, lambda _, given=given: given)
            adds.append(seconds(call))
    return found | {"add_s": spread(adds)}


def cold(source: Pool) -> dict[str, Any]:
    """Milliseconds to bring one adapter from its file, in the system's cache, to a stack that a batch can use."""
    from hilora.base.modules import placements
    from hilora.compose.stack import stack_sites

    model, _ = load_base(source.base.name, dtype="bf16")
    placed = placements(model)
    for entry in source.entries:
        _file(source, store.ADAPTERS, entry.hash).read_bytes()
    values = [
        1e3 * seconds(lambda entry=entry: stack_sites([source.factors(entry.hash)], placed))
        for entry in source.entries
    ]
    return {"cold_ms": spread(values[2:], 2)}


def throughput(
    pools: dict[int, Pool], rounds: int, batch: int, distinct: int, words: int, new_tokens: int
) -> list[dict[str, Any]]:
    """Tokens per second with each pool in interleaved rounds: one batch, each time with other adapters of the pool.

    A large pool's adapters are then used for the first time in nearly every round, a small one's are in memory.
    """
    some = next(iter(pools.values()))
    model, tokenizer = load_base(some.base.name, dtype="bf16")
    embedder = some.embedder.load(some.path, default_dtype())
    places = [str(i) for i in range(distinct)]
    work = make_workload(places, batch=batch, adapters=distinct, share="zipf", words=words, new_tokens=new_tokens)
    routers, fits = {}, {}
    for size, pool in pools.items():
        began = time.perf_counter()
        routers[size] = HiLoRA(model, tokenizer, Planner(pool, get_method("hilora"), embedder))
        fits[size] = time.perf_counter() - began
    took: dict[int, list[float]] = {size: [] for size in pools}
    for turn, (size, counts) in enumerate(turns(list(routers), rounds)):
        names = np.random.default_rng(turn).choice(sorted(pools[size].names), distinct, replace=False).tolist()
        allow = [[names[int(place)]] for place in work.adapters]
        one = seconds(partial(_answer, routers[size], work, allow))
        if counts:
            took[size].append(one)
    base = statistics.median(took[min(took)])
    return [
        {
            "registered": size,
            "batch": batch,
            "distinct": len(work.distinct),
            "seconds": spread(values),
            "tokens_per_s": round(batch * new_tokens / statistics.median(values), 1),
            "of_smallest": round(base / statistics.median(values), 4),
            "fit_s": round(fits[size], 2),
        }
        for size, values in took.items()
    ]


def _answer(router: HiLoRA, work: Workload, allow: list[list[str]]) -> object:
    fixed = {"max_new_tokens": work.new_tokens, "min_new_tokens": work.new_tokens}
    return router.generate(list(work.prompts), batch_size=len(work.prompts), allow=allow, **fixed)


def measure(source: Pool, args: argparse.Namespace) -> Iterator[Line]:
    """All lines of results."""
    yield setup("benchmarks/pool.py", rounds=args.rounds, dtype="bf16")
    yield cold(source)
    # beside the source: hard links do not cross file systems
    with tempfile.TemporaryDirectory(dir=source.path.parent, prefix=".bench-") as folder:
        pools = {count: make_pool(source, count, Path(folder) / str(count)) for count in args.registered}
        timed = {count: pool for count, pool in pools.items() if count <= LOADED}
        yield from throughput(timed, args.rounds, args.batch, args.distinct, args.words, args.new_tokens)
        for count, pool in pools.items():
            yield {"registered": count, **changes(source, pool)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pool", type=Path, default=Path("pools/flan-mini"))
    parser.add_argument("--registered", type=int, nargs="+", default=[5, 2000, 10_000])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--distinct", type=int, default=5)
    parser.add_argument("--words", type=int, default=60)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    add(args.json, measure(Pool.open(args.pool), args))


if __name__ == "__main__":
    main()

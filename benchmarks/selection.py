"""Selecting from very many adapters: time for one prompt, agreement with the exact best eight, memory.

    python benchmarks/selection.py --adapters 5 100 1000 10000 1000000 --near 1000 10000 100000 \\
        --json benchmarks/selection.jsonl

Means are synthetic: drawn with the spectrum that the whitened means of the pool's adapters have, prompts with that of
its samples around them (a pool of millions does not exist). Times are medians and 95th percentiles of the call from
embedding to route, one prompt at a time, on a machine that does nothing else; embedding a prompt is timed beside.
Own covariances, which need directions for each adapter, are measured up to 10,000, as is hilora-plus, on
samples of the pool drawn again.

--near: hilora-plus under an epoch, which is learned from the first --members of such adapters, with a short list at
any size (a router makes one of more than 2,000 adapters). It is compared with the posterior among all of them, for
prompts that are samples drawn again, too: how often the likeliest adapter is the same, how many of the eight
likeliest are on the list, and which share of the posterior the list has.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lines import Line, add
from torch import Tensor

from hilora import Pool
from hilora.base.models import default_dtype
from hilora.evaluate.setup import setup
from hilora.route.epoch import Epoch, learn_epoch
from hilora.route.features import Features, join
from hilora.route.grown import GrownExperts
from hilora.route.near import NEAR, judge_near, prepare
from hilora.route.nearest import INDEX_FROM, Exact
from hilora.route.posterior import Posterior
from hilora.route.router import Gaussian, Query
from hilora.route.samples import Collection
from hilora.route.tied import Tied, TiedGaussian

KNOWN = 32
"""Eigenvalues that the pool's adapters can tell; the others fall as the number to the power of -1.5."""
BEST = 8
SMALL = 10_000
"""Largest number of adapters for routers that need each adapter's samples."""
CHUNK = 100_000
AT_ONCE = 20_000
"""Adapters that an epoch's pool grows by at once."""


def spectrum(pool: Pool) -> tuple[np.ndarray, float]:
    """Variances of the whitened means between adapters, and the whitened variance within one, in all dimensions."""
    model = TiedGaussian().fit([own.embeddings for own in pool.samples()])
    means = model.mean_.double().numpy()
    between = np.linalg.svd(means - means.mean(0), compute_uv=False) ** 2 / (len(means) - 1)
    dim = means.shape[1]
    known = min(KNOWN, len(between) - 1)
    tail = between[known - 1] * ((np.arange(dim - known) + known + 1.0) / (known + 1.0)) ** -1.5
    return np.concatenate([between[:known], tail]), model.spread_


def draw(count: int, prompts: int, pool: Pool, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Whitened means (adapter, dim) and whitened prompts (prompt, dim)."""
    between, within = spectrum(pool)
    stream = np.random.default_rng(seed)
    scale = np.sqrt(between).astype(np.float32)
    means = np.empty((count, len(between)), np.float32)
    for a in range(0, count, CHUNK):
        size = min(CHUNK, count - a)
        means[a : a + size] = stream.standard_normal((size, len(between)), dtype=np.float32) * scale
    near = means[stream.integers(count, size=prompts)]
    spread = np.float32(np.sqrt(within / len(between)))
    found = near + stream.standard_normal(near.shape, dtype=np.float32) * spread
    return torch.from_numpy(means), torch.from_numpy(found)


def tied_router(means: Tensor, search: str) -> Tied:
    """A router whose whitening is the identity."""
    router = Tied(BEST, search=search)
    model = TiedGaussian(search=search)
    model.whitening_, model.mean_ = torch.eye(means.shape[1]), means
    model.log_det_, model.spread_ = 0.0, float(means.shape[1])
    router.model_ = model
    return router


def resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not say."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * resource.getpagesize() if path.exists() else 0


def timed(call: Callable[[int], Any], rounds: int) -> dict[str, float]:
    """Milliseconds of call(0), call(1), ..., the first tenth left out."""
    took = []
    for i in range(rounds):
        began = time.perf_counter()
        call(i)
        took.append((time.perf_counter() - began) * 1e3)
    kept = took[rounds // 10 :]
    return {"p50_ms": round(float(np.median(kept)), 3), "p95_ms": round(float(np.quantile(kept, 0.95)), 3)}


def agreement(means: Tensor, prompts: Tensor, router: Gaussian) -> dict[str, float]:
    """Share of the exact best eight that a router finds, with a 95 % interval over prompts."""
    everyone = torch.ones(1, len(means), dtype=torch.bool).expand(len(prompts), -1)
    exact = Exact(means).top(prompts.double(), BEST, everyone)[1]
    found = router(Query([""] * len(prompts), prompts), everyone).ids
    hits = (exact[:, :, None] == found[:, None, :]).any(2).double().mean(1)
    half = 1.96 * float(hits.std()) / len(hits) ** 0.5
    return {"agreement": round(float(hits.mean()), 5), "half_width": round(half, 5), "prompts": len(prompts)}


def tied(count: int, search: str, pool: Pool, rounds: int, prompts: int) -> dict[str, Any]:
    """One line of results: tied covariance."""
    means, asked = draw(count, max(rounds, prompts), pool)
    router = tied_router(means, search)
    assert isinstance(router.model_, TiedGaussian)
    before = resident()
    began = time.perf_counter()
    _ = router.model_.nearest
    built = time.perf_counter() - began
    more = resident() - before
    mask = torch.ones(1, count, dtype=torch.bool)
    line = timed(lambda i: router(Query([""], asked[i : i + 1]), mask), rounds)
    line |= {"build_s": round(built, 2), "means_mb": round(means.nbytes / 2**20), "search_mb": round(more / 2**20)}
    if search == "indexed":
        line |= agreement(means, asked[:prompts], router)
    return line


def resampled(pool: Pool, seed: int = 0) -> Iterator[Features]:
    """Adapters without end, with the samples of the pool's, each drawn again with some noise."""
    stream = np.random.default_rng(seed)
    known = pool.samples()
    while True:
        own = known[int(stream.integers(len(known)))]
        took = own.take(torch.from_numpy(np.sort(stream.integers(len(own), size=len(own)))))
        scale = 0.3 / took.embeddings.shape[1] ** 0.5  # of embeddings of length 1
        noise = scale * stream.standard_normal(took.embeddings.shape).astype(np.float32)
        yield Features(took.embeddings + torch.from_numpy(noise), took.terms)


def sampled(count: int, pool: Pool, texts: list[str], rounds: int) -> Iterator[dict[str, Any]]:
    """Lines of results of routers that learn from each adapter's samples."""
    samples = list(islice(resampled(pool), count))
    known = Collection(samples, pool.ridge, pool.calibration)
    asked = torch.cat([own.embeddings for own in samples])[: len(texts)]
    mask = torch.ones(1, count, dtype=torch.bool)
    routers: dict[str, Gaussian | Posterior] = {"own": Gaussian(), "hilora-plus": Posterior()}
    for name, router in routers.items():
        began = time.perf_counter()
        router.fit(known)
        built = round(time.perf_counter() - began, 2)
        call = partial(_route, router, texts, asked, mask)
        yield {"what": name, "adapters": count, **timed(call, min(rounds, len(asked))), "fit_s": built}


def near(
    count: int, members: int, pool: Pool, texts: list[str], prompts: int, embedder: Callable[[list[str]], Tensor]
) -> Line:
    """One line of results: hilora-plus under an epoch."""
    drawn, router = resampled(pool), Posterior(many=NEAR)  # whatever it costs
    first = list(islice(drawn, min(members, count)))
    epoch, began = Epoch.of("", learn_epoch(first)), time.perf_counter()
    router.fit(Collection(first, epoch.ridge, None, epoch))
    assert isinstance(router.model_, GrownExperts)
    held = len(first)
    while held < count:  # so that never all the samples are in memory at once
        more = list(islice(drawn, min(AT_ONCE, count - held)))
        origin = torch.cat([torch.arange(held), torch.full((len(more),), -1)])
        router.model_, held = router.model_.over(more, origin), held + len(more)
    prepare(router.model_, router.many)
    took = round(time.perf_counter() - began, 1)
    mask = torch.ones(1, count, dtype=torch.bool)
    asked = embedder(texts)
    line: Line = {"what": "hilora-plus, an epoch's", "adapters": count, "members": len(first), "near": router.near}
    line |= timed(lambda i: _route(router, texts, asked, mask, i), len(texts)) | {"fit_s": took}
    return line | {"mb": round(held_bytes(router.model_) / 2**20)} | among_all(router, count, pool, prompts)


def among_all(router: Posterior, count: int, pool: Pool, prompts: int) -> Line:
    """How the short list stands to the posterior among all, with a 95 % interval over prompts."""
    assert isinstance(router.model_, GrownExperts)
    texts = join(list(islice(resampled(pool, seed=1), prompts)))
    texts = texts.take(torch.arange(0, len(texts), -(-len(texts) // prompts)))
    same, eight, share = [], [], []
    for row in range(len(texts)):
        text, everyone = texts.take(torch.tensor([row])), torch.ones(1, count, dtype=torch.bool)
        (whole,), _ = router.model_.judge(text, everyone)
        found = judge_near(router.model_, text, everyone, min(router.near, count))
        (ids,), (posterior,) = found.ids, found.posterior
        best = whole.sort(descending=True, stable=True).indices[:BEST]
        same.append(float(ids[posterior.argmax()] == best[0]))
        eight.append(float(torch.isin(best, ids).double().mean()))
        share.append(float(whole[ids].double().exp().sum()))
    half = 1.96 * float(np.std(eight)) / len(eight) ** 0.5
    found_of = {"agreement": float(np.mean(eight)), "half_width": half, "top1": float(np.mean(same))}
    kept = {name: round(value, 5) for name, value in found_of.items()}
    return kept | {"share": round(float(np.mean(share)), 4), "prompts": len(texts)}


def held_bytes(model: Any) -> int:
    """Bytes of all numbers that a model holds, shared ones once."""
    found: dict[int, int] = {}
    todo, seen = [model], set()
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, Tensor):
            found[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
        elif isinstance(each, np.ndarray):
            if each.base is None:  # else it is of a tensor
                found[id(each)] = each.nbytes
        elif isinstance(each, dict):
            todo += each.values()
        elif hasattr(each, "__dict__"):
            todo += vars(each).values()
    return sum(found.values())


def _route(router: Gaussian | Posterior, texts: list[str], asked: Tensor, mask: Tensor, i: int) -> Any:
    return router(Query(texts[i : i + 1], asked[i : i + 1]), mask)


def measure(pool: Pool, args: argparse.Namespace) -> Iterator[Line]:
    """All lines of results."""
    rounds, prompts = args.rounds, args.prompts
    yield setup("benchmarks/selection.py", rounds=rounds, best=BEST)
    embedder = pool.embedder.load(pool.path, default_dtype())
    texts = [f"Is the sentiment of this review positive or negative? Number {i} was a delight." for i in range(200)]
    yield {"what": "embedding one prompt of 20 tokens", **timed(lambda i: embedder(texts[i : i + 1]), len(texts))}
    for count in args.adapters:
        for search in ("exact", "indexed"):
            if search == "exact" or count >= INDEX_FROM:
                found = tied(count, search, pool, rounds, prompts)
                yield {"what": f"tied, {search}", "adapters": count, **found}
        if count <= SMALL:
            yield from sampled(count, pool, texts, rounds)
    for count in args.near:
        yield near(count, args.members, pool, texts, args.compared, embedder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pool", type=Path, default=Path("pools/flan-mini"))
    parser.add_argument("--adapters", type=int, nargs="*", default=[5, 100, 1000, 10_000])
    parser.add_argument("--near", type=int, nargs="*", default=[1000, 10_000], help="adapters under an epoch")
    parser.add_argument("--members", type=int, default=2000, help="adapters that an epoch is learned from")
    parser.add_argument("--compared", type=int, default=200, help="prompts that a short list is compared for")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--prompts", type=int, default=5000, help="for the agreement")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    add(args.json, measure(Pool.open(args.pool), args))


if __name__ == "__main__":
    main()

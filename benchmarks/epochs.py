"""What an epoch costs and saves: right adapters and conformal sets at its end, seconds from an upload to a route.

    python benchmarks/epochs.py --data FLAN_MINI/val --json benchmarks/epochs.jsonl

At the end of an epoch: it is learned from some of the pool's adapters, drawn at random, and all are routed to,
beside a fresh one that is learned from all. --data holds prompts by task, a file each, of tasks that the pool has an
adapter of; second halves are used. Top 1 and coverage are shares of all prompts, and of those whose adapter is new.

Uploads: pools of made adapters (`pool.py`), over which planners grow by one adapter at a time: seconds to embed its
samples, to add it, to open the pool again, to grow the planner, to route the first prompt, and all but the first of
these together (routable_s). Cold statistics (fit_s) are those of a pool that keeps none. Run it with nothing else
on the machine; what is in the file already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from lines import Line, add
from pool import make_pool
from torch import Tensor

from hilora import Pool, get_method
from hilora.base.embed import Embedder
from hilora.base.models import default_dtype
from hilora.bench.rounds import spread
from hilora.evaluate.rows import choose_rows, load_rows
from hilora.evaluate.setup import setup
from hilora.planner import Planner
from hilora.pool.export import export_adapter
from hilora.route.epoch import Epoch, learn_epoch
from hilora.route.features import Features, hash_terms
from hilora.route.grown import GrownExperts
from hilora.route.posterior import Posterior
from hilora.route.router import Gaussian
from hilora.route.samples import Collection

METHODS = ("hilora", "hilora-gs", "hilora-plus", "selection", "mixture", "fusion")
GROWTHS = (1.1, 1.25, 2.0)
"""A pool's size at the end of an epoch, of that at its beginning; it is renewed at the first."""
ALPHA = 0.05
T = TypeVar("T")


class Asked(NamedTuple):
    """Prompts, and whose they are."""

    texts: list[str]
    features: Features
    own: Tensor  # (prompt,) positions of their adapters

    @classmethod
    def of(cls, pool: Pool, data: Path, embedder: Embedder) -> Asked:
        """The second halves of a pool's tasks."""
        rows = choose_rows([row for row in load_rows(data) if row.task in pool.names], part="second")
        texts = [row.inputs for row in rows]
        own = torch.tensor([pool.index(row.task) for row in rows])
        return cls(texts, Features(embedder(texts), hash_terms(texts)), own)


def quality(samples: Sequence[Features], epoch: Epoch, asked: Asked, new: Tensor) -> dict[str, Any]:
    """Shares of prompts, of all and of those whose adapter is new: right first adapters, sets that hold it, seen."""
    known = Collection(samples, epoch.ridge, None, epoch)
    own = Gaussian().fit(known).model_.score(asked.features.embeddings)
    router = Posterior(candidates="conformal", alpha=ALPHA).fit(known)
    assert isinstance(router.model_, GrownExperts)
    every = torch.ones(len(asked.own), len(samples), dtype=torch.bool)
    posterior, lead = router.model_.judge(asked.features, every)
    inside = -posterior <= router.limit_
    seen = lead > (-torch.inf if router.seen_above_ is None else router.seen_above_)
    found = {
        "hilora_top1": own.argmax(1) == asked.own,
        "top1": posterior.argmax(1) == asked.own,
        "coverage": inside.gather(1, asked.own[:, None])[:, 0],
        "size": inside.sum(1),
        "seen": seen,
    }
    shares = {name: round(float(values.double().mean()), 4) for name, values in found.items()}
    late = {f"new_{name}": round(float(values[new].double().mean()), 4) for name, values in found.items()}
    return shares | late


def ends(pool: Pool, asked: Asked, draws: int, done: Callable[[Line], bool]) -> Iterator[Line]:
    """Lines of the ends of epochs, each beside a fresh one."""
    samples, fresh = pool.samples(), None
    for growth in GROWTHS:
        for draw in range(draws):
            case: Line = {"what": "end of an epoch", "growth": growth, "draw": draw}
            if done(case):
                continue
            fresh = fresh or Epoch.of("", learn_epoch(samples))
            count = max(1, min(len(samples) - 1, round(len(samples) / growth)))
            members = sorted(np.random.default_rng([draw, count]).permutation(len(samples))[:count].tolist())
            new = ~torch.isin(asked.own, torch.tensor(members))
            stale = Epoch.of("", learn_epoch([samples[i] for i in members]))
            about = {"adapters": len(samples), "members": count, "prompts": len(new), "new_prompts": int(new.sum())}
            ended, renewed = (quality(samples, epoch, asked, new) for epoch in (stale, fresh))
            yield case | about | {"ended": ended, "fresh": renewed}


def uploads(
    source: Pool, size: int, embedder: Embedder, times: int, members: int, done: Callable[[Line], bool]
) -> Iterator[Line]:
    """Lines of one size: seconds to make an epoch, to fit a planner, and from an upload to its first route."""
    cases: dict[str, Line] = {name: {"what": "upload", "adapters": size, "method": name} for name in METHODS}
    if all(map(done, cases.values())):
        return
    # beside the source: hard links do not cross file systems
    with tempfile.TemporaryDirectory(dir=source.path.parent, prefix=".bench-") as folder:
        pool = make_pool(source, size, Path(folder) / "pool")
        only = sorted(pool.names)[:: -(-size // members)]
        info, took = timed(lambda: pool.renew_epoch(only))
        path = pool.path / "epochs" / f"{info.key}.safetensors"
        yield {"what": "epoch", "adapters": size, "members": info.adapters, "s": took, "mb": megabytes(path)}
        for name, case in cases.items():
            if not done(case):
                began = time.perf_counter()
                planner = Planner(Pool.open(pool.path), get_method(name), embedder)
                fitted = round(time.perf_counter() - began, 3)
                rows = [upload(source, pool, planner, f"{name}.{i}", Path(folder)) for i in range(times)]
                yield case | {"fit_s": fitted} | {key: spread([row[key] for row in rows], 4) for key in rows[0]}


def upload(source: Pool, pool: Pool, planner: Planner, name: str, folder: Path) -> dict[str, float]:
    """Seconds of the steps from an upload to the first route of a prompt of its task."""
    export_adapter(source, source.names[0], folder / name)
    texts = [f"Sample number {i} of the new task {name}." for i in range(20)]
    given, embed_s = timed(lambda: planner.embedder(texts))
    _, add_s = timed(lambda: pool.add(name, folder / name, texts, lambda _: given))
    view, open_s = timed(lambda: Pool.open(pool.path))
    grown, grow_s = timed(lambda: planner.over(view))
    _, route_s = timed(lambda: grown.explain(grown.route(texts[:1])))
    (choices,) = grown.explain(grown.route(texts[:1], allow=[name]))
    if [choice.name for choice in choices] != [name]:
        raise SystemExit(f"{name} cannot be routed to: the prompt got {[choice.name for choice in choices]}.")
    found = {"add_s": add_s, "open_s": open_s, "grow_s": grow_s, "route_s": route_s}
    return {"embed_s": embed_s, **found, "routable_s": sum(found.values())}


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What a call gives, and the seconds that it took."""
    began = time.perf_counter()
    found = call()
    return found, round(time.perf_counter() - began, 4)


def megabytes(path: Path) -> float:
    """Of a file."""
    return round(path.stat().st_size / 1e6, 1)


def measure(args: argparse.Namespace) -> Iterator[Line]:
    """All lines of results that are not in the file yet."""
    text = args.json.read_text() if args.json and args.json.exists() else ""
    held = [json.loads(line) for line in text.splitlines()]

    def done(case: Line) -> bool:
        return any(case.items() <= line.items() for line in held)

    pool = Pool.open(args.pool)
    embedder = pool.embedder.load(pool.path, default_dtype())
    yield setup("benchmarks/epochs.py", draws=args.draws, times=args.times, alpha=ALPHA)
    if args.data is not None:
        yield from ends(pool, Asked.of(pool, args.data, embedder), args.draws, done)
    for size in args.adapters:
        yield from uploads(pool, size, embedder, args.times, args.members, done)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pool", type=Path, default=Path("pools/flan-mini"))
    parser.add_argument("--data", type=Path, help="prompts by task; without, uploads are timed only")
    parser.add_argument("--draws", type=int, default=10, help="of the adapters that an epoch is learned from")
    parser.add_argument("--adapters", type=int, nargs="*", default=[52, 1000, 10_000])
    parser.add_argument("--members", type=int, default=10_000, help="adapters that such an epoch is learned from")
    parser.add_argument("--times", type=int, default=9, help="uploads with each method")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    add(args.json, measure(args))


if __name__ == "__main__":
    main()

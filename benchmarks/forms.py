"""What a decoding step costs beyond the base's, piece by piece, and from where on gathering pays.

    python benchmarks/forms.py --json benchmarks/forms.jsonl

"steps": one token for each of 1, 8 and 32 prompts, in interleaved rounds: the base; hooks that do nothing; hooks
with one, two and all four of the operations that no form can do without (x @ down, z @ up, two sums), on random
numbers of the batch's size; the base with one product for q, k and v; the oracle, whose adapters are used whole, and
hilora, both with that product, which makes z too, and with hooks only. "forms": both forms of prefill on random ROCs,
for rows of 16 to 256 tokens.
Run it with nothing else on the machine.
"""

import argparse
import statistics
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lines import Line, write
from made import decoding_step
from torch import Tensor

from hilora import HiLoRA, Pool, get_method
from hilora.base.models import default_dtype, load_base
from hilora.bench.rounds import spread, stopwatch, turns
from hilora.bench.run import alike
from hilora.bench.workload import Workload, make_workload
from hilora.compose.rocs import TopRocs
from hilora.engine.bound import Bound
from hilora.engine.forms import Forms
from hilora.engine.packed import Packed, pack_weights
from hilora.engine.siblings import Shared, instead
from hilora.engine.stacked import Stacked
from hilora.evaluate.setup import setup
from hilora.planner import Planner
from hilora.pool.source import find_pool
from hilora.types import Plan, Site

QV = ("q_proj", "v_proj")
PIECES = ("hooks", "down", "up", "sums")
PACKED = "q, k, v in one"
STEPS = 5
TIMED = stopwatch(torch.device("cpu"))


def pair(one: Any, other: Any, rocs: int, level: int) -> tuple[Any, Any]:
    """Hooks for two modules that read one input, which do the operations up to `PIECES[level]`."""
    widths = [one.out_features, other.out_features]
    down = torch.randn(one.in_features, 2 * rocs).to(one.weight)
    up = torch.zeros(2 * rocs, sum(widths)).to(one.weight)
    found: list[Tensor] = []

    def at_first(module: Any, inputs: Any, output: Tensor) -> Any:
        if level < 1:
            return None
        z = inputs[0].view(-1, len(down)) @ down
        delta = z @ up if level > 1 else None
        if level < 3:
            return None
        found[:] = delta.view(*output.shape[:-1], -1).split(widths, -1)
        return output.add_(found[0])

    def at_second(module: Any, inputs: Any, output: Tensor) -> Any:
        return output.add_(found[1]) if level > 2 else None

    return at_first, at_second


@contextmanager
def pieces(model: Any, sites: list[str], rocs: int, until: str) -> Iterator[None]:
    """Hooks on q and v of each layer, pair by pair, which do the operations up to one of `PIECES`."""
    modules, handles = [model.get_submodule(site) for site in sites], []
    for one, other in zip(modules[::2], modules[1::2], strict=True):
        at_first, at_second = pair(one, other, rocs, PIECES.index(until))
        handles += [one.register_forward_hook(at_first), other.register_forward_hook(at_second)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def in_one(pack: Packed, x: Tensor) -> list[Tensor]:
    """Outputs of a block's modules by one product."""
    return list(pack.project(x, 0).split(pack.widths, dim=-1))


@contextmanager
def packed_base(model: Any, sites: list[str]) -> Iterator[None]:
    """The base alone, with one product for modules that read what a site reads."""
    with ExitStack() as stack:
        for pack in pack_weights(model, sites):
            shared = Shared(partial(in_one, pack), lambda place: None, len(pack.names))
            stack.enter_context(instead(pack.modules, shared))
        yield


def steps(pool: Pool, model: Any, tokenizer: Any, work: Workload, rounds: int) -> dict[str, Any]:
    """Milliseconds of a decoding step under each contender."""
    prompts, rows = list(work.prompts), range(len(work.prompts))
    asked = {"oracle": {"labels": list(work.adapters)}, "hilora": {"allow": [[name] for name in work.adapters]}}
    routers, routed = {}, {}
    for method, options in asked.items():
        planner = Planner(pool, get_method(method))
        route = planner.route(prompts, **options)
        for name, packed in ((method, True), (f"{method}, hooks", False)):
            routers[name], routed[name] = HiLoRA(model, tokenizer, planner, packed=packed), route
    factors = [pool.factors(pool.entries[pool.index(name)].hash) for name in work.distinct]
    sites = sorted({site for each in factors for site in each if site.endswith(QV)})
    rocs = sum(next(iter(each.values()))[0].shape[0] for each in factors)

    def serving(name: str) -> AbstractContextManager[Any]:
        if name in ("base", PACKED):
            return nullcontext() if name == "base" else packed_base(model, sites)
        return routers[name].attached(routed[name], rows) if name in routers else pieces(model, sites, rocs, name)

    took: dict[str, list[float]] = {name: [] for name in ("base", *PIECES, PACKED, *routers)}
    with torch.inference_mode():
        step, back = decoding_step(model, tokenizer, prompts)
        for name, counts in turns(list(took), rounds):
            with serving(name):
                times = []
                for _ in range(STEPS):
                    times.append(TIMED(step))
                    back()
            if counts:
                took[name].append(1e3 * statistics.median(times[1:]))
    line: dict[str, Any] = {"what": "steps", "batch": len(prompts), "distinct": len(work.distinct), "rocs": rocs}
    for name, each in took.items():
        of_base = statistics.median(b / a for a, b in zip(each, took["base"], strict=True))
        line[name] = {"ms": spread(each, 2), "of_base": round(of_base, 3)}
    return line


def stack(width: int, rank: int, adapters: int, dtype: torch.dtype) -> list[Site]:
    """Random ROCs at two sites that read one input."""
    owner = torch.arange(adapters).repeat_interleave(rank)
    sites = []
    for name in ("q", "v"):
        down, up = torch.randn(rank * adapters, width).to(dtype), torch.randn(width, rank * adapters).to(dtype)
        sites.append(Site(down, up.norm(dim=0), owner, ((rank, torch.arange(adapters)),), name, up))
    return sites


def forms(width: int, batch: int, adapters: int, used: int, each: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of both forms of prefill, the copies of gathering included."""
    dtype, rank = default_dtype("cpu"), 8
    sites = stack(width, rank, adapters, dtype)
    chosen = torch.zeros(batch, adapters, dtype=torch.long)
    for row in range(batch):
        chosen[row, [(row + i) % adapters for i in range(used)]] = 1
    ranks = torch.full((adapters,), rank)
    plan = Plan(tuple(range(adapters)), ranks, chosen / used, chosen * (rank // 2), torch.ones(batch))
    x, outputs = torch.randn(batch, each, width).to(dtype), [torch.randn(batch, each, width).to(dtype) for _ in sites]

    def run(form: str) -> None:
        made = Forms(Stacked(sites), Bound(plan, TopRocs()))
        adds = made.stacked(x) if form == "stacked" else made.gathered(x)
        for add, output in zip(adds, outputs, strict=True):
            add(output)

    took: dict[str, list[float]] = {"stacked": [], "gathered": []}
    with torch.inference_mode():
        for form, counts in turns(list(took), rounds):
            seconds = TIMED(partial(run, form))
            if counts:
                took[form].append(1e3 * seconds)
    about = {"what": "forms", "width": width, "batch": batch, "adapters": adapters, "used": used, "tokens": each}
    spared = each * (adapters / used - 1)
    return about | {"spared": spared} | {form: spread(times, 3) for form, times in took.items()}


def measure(pool: Pool, model: Any, tokenizer: Any, args: argparse.Namespace) -> Iterator[Line]:
    """All lines of results."""
    for batch in args.batches:
        work = make_workload(alike(pool), batch=batch, adapters=min(8, batch), share="zipf", words=60, new_tokens=2)
        header = setup("forms", dtype=str(model.dtype).removeprefix("torch."))
        yield header | steps(pool, model, tokenizer, work, args.rounds)
    for adapters, used in ((8, 1), (8, 3), (32, 1)):
        for each in args.tokens:
            yield forms(model.config.hidden_size, 32, adapters, used, each, args.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pool", default="pools/flan-mini")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, nargs="*", default=[16, 64, 256])
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    args = parser.parse_args()
    pool = Pool.open(find_pool(args.pool))
    model, tokenizer = load_base(pool.base.name)
    write(args.json, measure(pool, model, tokenizer, args))


if __name__ == "__main__":
    main()

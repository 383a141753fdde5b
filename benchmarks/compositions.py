"""What rounding a composition's weights to a grid costs in answers, and how many fewer compositions there are.

    python benchmarks/compositions.py --data RAMOLE48/test_half.jsonl --json benchmarks/compositions.jsonl
    python benchmarks/compositions.py --json benchmarks/compositions.jsonl --page docs/vllm.md      # the table alone

Prompts in a wording that no adapter was trained on are routed by hilora-plus, and answered greedily by the library
with the weights as they are and with those on each grid; prompts whose composition a grid leaves as it was are
answered once. To vLLM each composition is an adapter, and at most max_loras of these share a step.
"""

import argparse
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from lines import Line, show, write

from hilora import HiLoRA, Planner, Pool, get_method
from hilora.base.models import load_base
from hilora.evaluate.metrics import METRICS
from hilora.evaluate.rows import Row, answer_hash, choose_rows, load_rows
from hilora.evaluate.setup import setup
from hilora.evaluate.statistics import bootstrap
from hilora.evaluate.tables import markdown_table
from hilora.gateway.composition import compose, on_grid
from hilora.gateway.parts import parts_of
from hilora.jsonl import read_lines
from hilora.route.router import Query
from hilora.types import Route

METHOD = "hilora-plus"
GRIDS: dict[str, int | None] = {"as they are": None, "8": 8, "4": 4, "2": 2, "1": 1}
SELECTION = "selection"
TOGETHER = 32
"""Prompts that arrive together, of which the compositions are counted."""
DRAWS = 1000
BEGIN, END = "<!-- from benchmarks/compositions.jsonl -->\n", "<!-- end -->"


@dataclass
class OnGrid:
    """A router whose weights are on a grid."""

    router: Any
    levels: int | None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["router"], name)

    def __deepcopy__(self, memo: Any) -> "OnGrid":
        return self

    def fit(self, known: Any) -> "OnGrid":
        """As the router."""
        self.router.fit(known)
        return self

    def __call__(self, query: Query, allowed: Any) -> Route:
        """The router's route, its weights on the grid."""
        route: Route = self.router(query, allowed)
        weights = route.weights.clone()
        for row in weights:
            row[row > 0] = row.new_tensor(on_grid(row[row > 0].tolist(), self.levels))
        return replace(route, weights=weights)


def planners(pool: Pool) -> dict[str, Planner]:
    """One for each grid, and for one adapter alone."""
    first = Planner(pool, get_method(METHOD))
    made = {SELECTION: Planner(pool, get_method(SELECTION), first.embedder)}
    for name, levels in GRIDS.items():
        method = get_method(METHOD)
        made[name] = Planner(pool, replace(method, router=OnGrid(method.router, levels)), first.embedder)
    return made


def names(planner: Planner, prompts: Sequence[str]) -> list[str]:
    """Each prompt's composition."""
    routed = planner.route(prompts)
    found = []
    for row in range(len(prompts)):
        made = compose(parts_of(planner.method, routed.source, planner.plan(routed, [row])))
        found.append("" if made is None else made.name)
    return found


def together(each: Sequence[str]) -> float:
    """How many different ones there are among prompts that arrive together, on average."""
    draw = random.Random(0)
    return statistics.fmean(len(set(draw.sample(each, min(TOGETHER, len(each))))) for _ in range(DRAWS))


def score(row: Row, answer: str) -> float:
    """By the first of its task's metrics, in [0, 1]."""
    metric = METRICS[row.metrics[0]]
    return float(metric.value(np.asarray(metric.row(answer, row.targets)), np.asarray(1)))


def measure(rows: Sequence[Row], pool: Pool, new_tokens: int, dtype: str, base: Any = None) -> Iterator[Line]:
    """A line for each way and row."""
    model, tokenizer = base or load_base(pool.base.name, dtype=dtype)
    yield setup(
        "benchmarks/compositions.py",
        pool=pool.path.name,
        method=METHOD,
        rows=len(rows),
        new_tokens=new_tokens,
        dtype=dtype,
    )
    prompts = [row.inputs for row in rows]
    known: dict[tuple[int, str], tuple[float, str]] = {}
    for way, planner in planners(pool).items():
        composed = names(planner, prompts)
        left = [place for place, name in enumerate(composed) if (place, name) not in known]
        router = HiLoRA(model, tokenizer, planner)
        answers = router.generate([prompts[place] for place in left], max_new_tokens=new_tokens) if left else []
        for place, answer in zip(left, answers, strict=True):
            known[place, composed[place]] = score(rows[place], answer.text), answer_hash(answer.text)
        for place, (row, name) in enumerate(zip(rows, composed, strict=True)):
            value, told = known[place, name]
            yield {
                "way": way,
                "id": row.id,
                "task": row.task,
                "composition": name,
                "score": round(value, 4),
                "answer": told,
            }


def table(lines: Sequence[Line]) -> str:
    """By way: compositions, answers that differ from those with exact weights, scores and their difference."""
    by_way = {way: [line for line in lines if line.get("way") == way] for way in (SELECTION, *GRIDS)}
    exact = by_way["as they are"]
    heading = [
        "weights",
        "compositions",
        f"of {TOGETHER} together",
        "other answers",
        "score",
        "less than exact weights",
    ]
    found = []
    for way, each in by_way.items():
        kinds = [line["composition"] for line in each]
        other = sum(one["answer"] != two["answer"] for one, two in zip(each, exact, strict=True))
        scores = np.array([line["score"] for line in each]) * 100
        less = np.array([line["score"] for line in exact]) * 100 - scores
        draws = np.random.default_rng(0).integers(0, len(less), (DRAWS, len(less)))
        interval = bootstrap(less[draws].mean(1), float(less.mean()))
        shown = "-" if way == "as they are" else f"{less.mean():.2f} ({interval.low:.2f} to {interval.high:.2f})"
        label = "one adapter (selection)" if way == SELECTION else f"grid of {way}" if way in "8421" else way
        found.append(
            [
                label,
                str(len(set(kinds))),
                f"{together(kinds):.1f}",
                f"{other} of {len(each)}",
                f"{scores.mean():.1f}",
                shown,
            ]
        )
    return markdown_table(heading, found)


def main() -> None:
    """Measure if there is data, and make the page's table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pool", type=Path, default=Path("pools/flan-mini"))
    parser.add_argument("--per-task", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    if args.data:
        pool = Pool.open(args.pool)
        rows = choose_rows(load_rows(args.data), part="second", per_task=args.per_task)
        write(args.json, measure(rows, pool, args.new_tokens, args.dtype))
    show(table(list(read_lines(args.json))), args.page, BEGIN, END)


if __name__ == "__main__":
    main()

"""What Fig. 5 (HiLoRA) and Fig. 7b (RAMoLE) share: methods timed in interleaved rounds, and how it is drawn."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from charts import chart

from hilora import HiLoRA, Pool
from hilora.base.embed import Embedder
from hilora.bench.rounds import turns
from hilora.evaluate.rows import Row, choose_rows, load_rows
from hilora.evaluate.setup import setup
from hilora.evaluate.tables import markdown_table
from hilora.jsonl import read_lines
from hilora.methods.lookup import get_method
from hilora.planner import Planner
from hilora.pool import store
from hilora.pool.folder import PoolFolder
from hilora.pool.trained import trained_path
from hilora.pool.view import PoolView

Line = dict[str, Any]


def available(pool: PoolView, methods: Sequence[str]) -> list[str]:
    """The methods whose trained part is there, if they need one; says which are left out."""
    parts = {name: get_method(name).part for name in methods}
    found = [name for name in methods if (part := parts[name]) is None or trained_path(pool.path, part).exists()]
    if left := [name for name in methods if name not in found]:
        print(f"not run, for they are not trained yet (reproduce/ramole/train.py): {', '.join(left)}", flush=True)
    return found


def routers_of(
    pool: PoolView, methods: Sequence[str], model: Any, tokenizer: Any, embedder: Embedder
) -> dict[str, HiLoRA]:
    """A router for each method that is available."""
    return {
        name: HiLoRA(model, tokenizer, Planner(pool, get_method(name), embedder), packed=True)
        for name in available(pool, methods)
    }


def with_adapters(pool: PoolView, names: Sequence[str]) -> PoolFolder:
    """A view of some of a pool's adapters."""
    manifest = store.parse_manifest(pool.path, store.read_manifest(pool.path))
    kept = [entry for entry in manifest["adapters"] if entry["name"] in set(names)]
    return PoolFolder(pool.path, json.dumps(manifest | {"adapters": kept}).encode())


def prompts_of(data: Path, tasks: Sequence[str], per_task: int) -> list[str]:
    """Prompts of tasks, mixed."""
    rows = choose_rows([row for row in load_rows(data) if row.task in set(tasks)], per_task=per_task)
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    return [own[i].inputs for i in range(per_task) for own in by_task.values() if i < len(own)]


def timed_rounds(
    routers: Mapping[str, HiLoRA], prompts: Sequence[str], new_tokens: int, batch: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds of every method in every round."""
    fixed = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "batch_size": batch}
    took: dict[str, list[float]] = {name: [] for name in routers}
    for name, counts in turns(list(routers), rounds):
        began = time.perf_counter()
        routers[name].generate(list(prompts), **fixed)
        if counts:
            took[name].append(time.perf_counter() - began)
    return took


def lines_of(took: Mapping[str, Sequence[float]], at: int, tokens: int) -> list[Line]:
    """One line per method: tokens per second at a place of the horizontal axis, with its least and most."""
    return [
        {
            "method": name,
            "at": at,
            "tokens_per_s": round(tokens / statistics.median(values), 2),
            "least": round(tokens / max(values), 2),
            "most": round(tokens / min(values), 2),
        }
        for name, values in took.items()
    ]


def draw(lines: Sequence[Line], across: str, out: Path) -> str:
    """A curve for each method; returns the table."""
    methods = list(dict.fromkeys(line["method"] for line in lines))
    places = sorted({line["at"] for line in lines})
    cells = {place: [str(place)] for place in places}
    with chart(out, 6, 3.6) as axes:
        for name in methods:
            own = {line["at"]: line for line in lines if line["method"] == name}
            values = [own[place]["tokens_per_s"] for place in places]
            spread = [
                [v - own[p]["least"] for p, v in zip(places, values, strict=True)],
                [own[p]["most"] - v for p, v in zip(places, values, strict=True)],
            ]
            axes.errorbar(places, values, yerr=spread, marker="o", capsize=3, label=name)
            for place, value in zip(places, values, strict=True):
                cells[place].append(f"{value:.1f}")
        axes.set_xlabel(across)
        axes.set_ylabel("tokens per second")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7)
    return markdown_table((across, *methods), list(cells.values()))


def speed_main(
    doc: str | None,
    out: Path,
    across: str,
    places: Sequence[int],
    methods: Sequence[str],
    measure: Callable[[argparse.Namespace, Pool, Sequence[int]], Iterable[list[Line]]],
) -> None:
    """The command line of a script: measures into OUT.jsonl, place by place, then draws OUT.svg and writes OUT.md.

    Args:
        doc: the script's.
        out: without ending.
        across: what the horizontal axis shows, at these places unless others are asked for.
        places: on that axis.
        methods: those that are timed, if their trained part is there.
        measure: (arguments, pool, places that are not measured yet) -> the lines of one place after the other.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that holds flan_mini; without it, OUT.jsonl is drawn")
    parser.add_argument("--pool", type=Path, default=Path("pools/flan-mini"))
    parser.add_argument("--at", type=int, nargs="*", default=places, help="places on the horizontal axis")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=out, help="without ending")
    args = parser.parse_args()
    numbers = args.out.with_suffix(".jsonl")
    if args.data is not None:
        pool = Pool.open(args.pool)
        sizes = {"batch": args.batch, "rounds": args.rounds, "new_tokens": args.new_tokens}
        header = setup(out.name, dtype="bf16", methods=available(pool, methods), **sizes)
        kept = _measured(numbers, header)
        numbers.write_text("".join(json.dumps(line) + "\n" for line in [header, *kept]))
        left = [place for place in args.at if place not in {line["at"] for line in kept}]
        for lines in measure(args, pool, left):
            with numbers.open("a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
            print(*lines, sep="\n", flush=True)
    first, *lines = read_lines(numbers)
    table = draw(lines, across, args.out.with_suffix(".svg"))
    title = (doc or "").splitlines()[0]
    picture = f"![{across}]({args.out.name}.svg)"
    args.out.with_suffix(".md").write_text(f"# {title}\n\n{picture}\n\n{table}\n\n`{json.dumps(first)}`\n")


def _measured(numbers: Path, header: Line) -> list[Line]:
    """What an earlier sitting has measured in the same way."""
    if not numbers.exists():
        return []
    first, *lines = read_lines(numbers)
    return lines if first == header else []

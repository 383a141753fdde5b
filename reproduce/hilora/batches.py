"""Answers that depend on the batch: how many, and through what: the base itself, the gate, or the embedder.

    python reproduce/hilora/batches.py --data DATA      # batches.jsonl.gz and batches.md; ten minutes, resumable
    python reproduce/hilora/batches.py                  # batches.md again

DATA holds flan_mini/val. Each prompt is answered twice, in batches of other prompts each time, and the two
answers are compared, letter by letter:

base                      without adapters: what the base's own products do
oracle                    one adapter each, whole: the plan is the same both times
hilora, hilora-plus       the same plans both times: what the gate adds
hilora-plus, routed anew  the prompts of a batch are embedded with it: what the embedder adds

and, so that it is seen that nothing else differs, base in the same batches twice.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from rounding import by_way, differs
from stored import stored, unpacked

from hilora import HiLoRA, Planner, Pool, get_method
from hilora.base.models import load_base
from hilora.base.prompts import encode_prompts
from hilora.evaluate.rows import Row, choose_rows, load_rows, short_hash
from hilora.evaluate.setup import setup
from hilora.evaluate.tables import markdown_table
from hilora.jsonl import read_lines

HERE = Path(__file__).parent
WAYS = {
    "base, the same batches": ("base", False),
    "base": ("base", False),
    "oracle": ("oracle", False),
    "hilora": ("hilora", False),
    "hilora-plus": ("hilora-plus", False),
    "hilora-plus, routed anew": ("hilora-plus", True),
}
"""Way -> its method, and whether each batch is routed by itself."""
RESAMPLES = 2000


def arrangements(count: int, size: int, same: bool) -> list[list[list[int]]]:
    """Two ways to put so many prompts into batches."""
    orders = [np.random.default_rng(0 if same else seed).permutation(count) for seed in (0, 1)]
    return [[order[start : start + size].tolist() for start in range(0, count, size)] for order in orders]


def answers(
    router: HiLoRA, rows: Sequence[Row], batches: Sequence[Sequence[int]], anew: bool, tokens: int
) -> list[str]:
    """Each prompt's answer, in these batches."""
    prompts, found = [row.inputs for row in rows], [""] * len(rows)
    is_oracle = router.planner.method.name == "oracle"
    labels = [row.task for row in rows] if is_oracle else None
    encoded = encode_prompts(prompts, router.tokenizer)
    whole = None if anew else router.planner.route(prompts, labels=labels)
    for batch in batches:
        routed, places = whole, list(batch)
        if routed is None:
            routed, places = router.planner.route([prompts[i] for i in batch]), list(range(len(batch)))
        given = [encoded[i] for i in batch]
        for i, completions in zip(
            batch, router.answer_batch(routed, places, given, seed=0, max_new_tokens=tokens), strict=True
        ):
            found[i] = completions[0].text
    return found


def measure(args: argparse.Namespace, known: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The setup, and a line for each prompt: those of a way at a time, of the ways that are not known yet."""
    pool = Pool.open(args.pool)
    every = load_rows(args.data / "flan_mini" / "val")
    rows = [row for row in choose_rows(every, part="second", per_task=args.per_task) if row.task in pool.names]
    asked = {name: getattr(args, name) for name in ("dtype", "per_task", "batch", "new_tokens")}
    if not known:
        yield [setup("reproduce/hilora/batches.py", pool=args.pool.name, **asked)]
    model, tokenizer = load_base(pool.base.name, dtype=args.dtype)
    embedder = pool.embedder.load(pool.path)
    done = {line.get("way") for line in known}
    for way, (method, anew) in WAYS.items():
        if way in done:
            continue
        router = HiLoRA(model, tokenizer, Planner(pool, get_method(method), embedder))
        each = arrangements(len(rows), args.batch, way.endswith("the same batches"))
        one, other = (answers(router, rows, batches, anew, args.new_tokens) for batches in each)
        found = []
        for row, *pair in zip(rows, one, other, strict=True):
            answered = {"words": len(pair[0].split()), "answers": [short_hash(text) for text in pair]}
            found.append({"way": way, "id": row.id} | answered)
        yield found
        print(f"{way}: done", flush=True)


def share(values: Sequence[bool]) -> str:
    """Percent, with its 95 % interval over prompts."""
    drawn = np.random.default_rng(0).choice(np.array(values, dtype=float), (RESAMPLES, len(values))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{100 * np.mean(values):.1f} ({100 * low:.1f} to {100 * high:.1f})"


def add(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Append lines to a results file."""
    with path.open("a", encoding="utf-8") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines)


def page(lines: Sequence[dict[str, Any]]) -> str:
    """The page of some lines."""
    (head,) = (line for line in lines if "setup" in line)
    rows = []
    for way, own in by_way(lines).items():
        long = [differs(line) for line in own if line["words"] > 1]
        rows.append(
            [way, str(len(own)), share(list(map(differs, own))), str(len(long)), share(long) if long else "-"]
        )
    table = markdown_table(["answers", "prompts", "differ, %", "of more than a word", "of these differ, %"], rows)
    how = f"{head['dtype']}, batches of {head['batch']}, {head['device']}"
    return (
        "# Answers that depend on the batch\n\nMade by `python reproduce/hilora/batches.py`, whose first lines say "
        f"what is compared. {how}.\n\n{table}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pool", type=Path, default=Path("pools/flan-mini"))
    parser.add_argument("--per-task", type=int, default=6)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    rows = args.out / "batches.jsonl"
    if args.data:
        with unpacked(rows) as path:
            for found in measure(args, read_lines(path) if path.exists() else []):
                add(path, found)
    (args.out / "batches.md").write_text(page(read_lines(stored(rows))))


if __name__ == "__main__":
    main()

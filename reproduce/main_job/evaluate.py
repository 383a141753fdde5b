"""The main job, measured: unlabelled, mixed, shuffled prompts of the pool's own tasks.

    python reproduce/main_job/evaluate.py --data FLAN_MINI --pool pools/flan-mini

FLAN_MINI holds val/<task>.jsonl with {"inputs", "targets"} lines. Of each task the second half of the file
is taken (the first is for choosing). One JSON line per prompt and method goes to --out as soon as its
batch is done: ids, hashes, scores and routes, no texts. Run again to resume; the table is printed from the
file by: python reproduce/main_job/table.py
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import numpy as np

from hilora import HiLoRA, Pool, get_method
from hilora.evaluate.metrics import exact_match, metric_for, most_frequent, rouge_l
from hilora.evaluate.setup import setup
from hilora.models import load_base
from hilora.planner import Planner
from hilora.route.embed import Embedder

METHODS = ("base", "oracle", "hilora", "hilora-gs", "hilora-roc")
SCORES = {"exact_match": exact_match, "rouge_l": rouge_l}


def load_rows(data: Path, tasks: list[str], per_task: int, seed: int) -> list[dict[str, str]]:
    """The rows to report on, mixed and shuffled; an id is the task and the line's number."""
    rows = []
    for task in tasks:
        lines = (data / "val" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
        half = [(n, json.loads(line)) for n, line in enumerate(lines)][len(lines) // 2 :]
        rows += [{"id": f"{task}/{n}", "task": task, **row} for n, row in half[:per_task]]
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pool", type=Path, default=Path("pools/flan-mini"))
    parser.add_argument("--out", type=Path, default=Path("reproduce/main_job/rows.jsonl"))
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--per-task", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    pool = Pool.open(args.pool)
    rows = load_rows(args.data, sorted(pool.names), args.per_task, args.seed)
    done = set()
    if args.out.exists():
        done = {(r["method"], r["id"]) for r in map(json.loads, args.out.read_text().splitlines()) if "id" in r}
    model, tokenizer = load_base(pool.base.name, dtype=args.dtype)
    embedder = Embedder()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a") as out:
        if not done:
            header = setup(
                "reproduce/main_job/evaluate.py",
                dtype=args.dtype,
                seed=args.seed,
                batch_size=args.batch_size,
                max_new_tokens=args.max_new_tokens,
                ridge=pool.ridge,
                adapters={entry.name: entry.hash for entry in pool.entries},
            )
            out.write(json.dumps(header) + "\n")
        references: dict[str, list[str]] = {}
        for row in rows:
            references.setdefault(row["task"], []).append(row["targets"])
        for row in rows:  # what a constant answer would score, beside the methods
            if ("constant", row["id"]) not in done:
                score = SCORES[metric_for(row["task"])](most_frequent(references[row["task"]]), row["targets"])
                out.write(
                    json.dumps({"method": "constant", "id": row["id"], "task": row["task"], "score": score}) + "\n"
                )
        for method in args.methods:
            router = HiLoRA(model, tokenizer, Planner(pool, get_method(method), embedder))
            todo = [row for row in rows if (method, row["id"]) not in done]
            for start in range(0, len(todo), args.batch_size):
                batch = todo[start : start + args.batch_size]
                began = time.perf_counter()
                answers = router.generate(
                    [row["inputs"] for row in batch],
                    max_new_tokens=args.max_new_tokens,
                    seed=args.seed,
                    batch_size=args.batch_size,
                    labels=[row["task"] for row in batch] if method == "oracle" else None,
                )
                seconds = time.perf_counter() - began
                for row, answer in zip(batch, answers, strict=True):
                    line = {
                        "method": method,
                        "id": row["id"],
                        "task": row["task"],
                        "prompt": hashlib.sha256(row["inputs"].encode()).hexdigest()[:16],
                        "metric": metric_for(row["task"]),
                        "score": round(SCORES[metric_for(row["task"])](answer.text, row["targets"]), 4),
                        "answer": hashlib.sha256(answer.text.encode()).hexdigest()[:16],
                        "finish": answer.finish_reason,
                        "prompt_tokens": answer.prompt_tokens,
                        "completion_tokens": answer.completion_tokens,
                        "batch_seconds": round(seconds, 3),
                        "route": [[c.name, round(c.score, 3), round(c.weight, 4), c.rocs] for c in answer.choices],
                    }
                    out.write(json.dumps(line) + "\n")
                out.flush()
                print(f"{method} {start + len(batch)}/{len(todo)}  {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()

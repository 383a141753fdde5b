"""Is each adapter of any use? Each on its own task, against the base model and the most frequent answer.

    python reproduce/pool/check.py --data FLAN_MINI/val --pool runs/candidates --out reproduce/pool

Measured on the first half of each validation file (the second half is for reporting). The most frequent answer is
that of these very rows: a higher bar than that of the training data, which the tables have. An adapter is kept if it
beats both. Writes check.jsonl.gz (rows; check.jsonl while it runs, which can be resumed), check.md (the table) and
verdicts.json. The table alone, from committed rows: python reproduce/pool/check.py --out reproduce/pool
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from stored import stored, unpacked

from hilora import Pool
from hilora.base.embed import Embedder
from hilora.base.models import load_base
from hilora.evaluate.job import Bench, Job
from hilora.evaluate.lines import constant_answers
from hilora.evaluate.report import Results, Summary, summarise
from hilora.evaluate.rows import choose_rows, load_rows
from hilora.evaluate.run import run_job
from hilora.evaluate.settings import make_cases
from hilora.evaluate.setup import setup
from hilora.evaluate.tables import markdown_table
from hilora.jsonl import read_lines

METHODS = ("base", "constant", "oracle")
REASONS = {
    "kept": "",
    "base": "no better than the base model",
    "constant": "no better than the most frequent answer",
}


def measure(data: Path, pool: Pool, out: Path, per_task: int | None, dtype: str) -> None:
    trained = {entry.name: entry.hash[:16] for entry in pool.entries}
    forget_changed(out, trained)
    rows = choose_rows(load_rows(data), part="first", per_task=per_task)
    done = measured(out)
    new = {row.task for row in rows if row.id not in done}  # tasks that are done keep out of the batches
    cases = make_cases("iid", [row for row in rows if row.task in new], pool.names)
    if not cases:
        return
    constant = constant_answers([case.row for case in cases])
    job = Job("iid", cases, {name: (name, {}) for name in METHODS}, constant)
    model, tokenizer = load_base(pool.base.name, dtype=dtype)
    header = setup("reproduce/pool/check.py", dtype=dtype, seed=0, max_new_tokens=job.max_new_tokens, part="first")
    header["trained"] = trained

    def log(label: str, done: int) -> None:
        print(f"{label} {done}/{len(cases)}", flush=True)

    run_job(Bench(pool, model, tokenizer, Embedder(), job), out, header=header, on_rows=log)


def measured(out: Path) -> set[str]:
    """Ids of the rows that all methods were measured on."""
    lines = read_lines(out) if out.exists() else ()
    count = Counter(line["id"] for line in lines if "method" in line)
    return {row for row, times in count.items() if times == len(METHODS)}


def forget_changed(out: Path, trained: dict[str, str]) -> None:
    """Take the rows of adapters that were trained anew out of the file."""
    if not out.exists():
        return
    lines = out.read_text().splitlines(keepends=True)
    before = {name: own for r in map(json.loads, lines) for name, own in r.get("trained", {}).items()}
    changed = {name for name, own in trained.items() if before.get(name, own) != own}

    def stays(line: str) -> bool:
        row = json.loads(line)
        return row.get("method") != "oracle" or row["id"].split("/")[0] not in changed

    out.write_text("".join(filter(stays, lines)))


def verdict(base: float, constant: float, adapter: float) -> str:
    if adapter <= base:
        return "base"
    return "constant" if adapter <= constant else "kept"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="to measure what is missing; without it, only the table is made")
    parser.add_argument("--pool", type=Path, default=Path("runs/candidates"))
    parser.add_argument("--out", type=Path, default=Path("reproduce/pool"))
    parser.add_argument("--per-task", type=int)
    parser.add_argument("--dtype", default="bf16")
    args = parser.parse_args()
    rows = args.out / "check.jsonl"
    if args.data is not None:
        with unpacked(rows):
            measure(args.data, Pool.open(args.pool), rows, args.per_task, args.dtype)
    results = Results([stored(rows)])
    scores: dict[str, Summary] = {s.method: s for s in summarise(results, "iid", reference="base")}
    cells, verdicts = [], {}
    cluster_of = results.clusters
    for task in sorted(scores["oracle"].tasks, key=lambda t: (cluster_of[t], t)):
        values = [scores[name].tasks[task] for name in METHODS]
        verdicts[task] = verdict(*values)
        reason = REASONS[verdicts[task]]
        cells.append(
            (task, cluster_of[task], *(f"{v:.1f}" for v in values), f"left out: {reason}" if reason else "kept")
        )
    means = [float(np.mean(list(scores[name].tasks.values()))) for name in METHODS]
    cells.append(("mean", "", *(f"{mean:.1f}" for mean in means), ""))
    heading = ("task", "cluster", "base", "most frequent answer", "adapter", "verdict")
    count = sum(v == "kept" for v in verdicts.values())
    text = f"{count} of {len(verdicts)} adapters are kept.\n\n{markdown_table(heading, cells)}\n"
    (args.out / "check.md").write_text("# Each adapter on its own task\n\n" + text)
    (args.out / "verdicts.json").write_text(json.dumps(verdicts, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()

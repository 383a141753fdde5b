"""Two hundred samples an adapter instead of twenty: what LoRAuter asks for, and the others with as many. many.md.

    python reproduce/hilora/many.py --data DATA      # a pool in runs/, then rows, resumable
    python reproduce/hilora/many.py                  # many.md from rows

The pool is flan-mini with the same adapters; its samples are the first 200 training lines of each adapter's task.
Beside them the same methods with the pool's own twenty, on the same rows: the second halves, 13 of each task.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
import run as hilora_run
from compared import less, told, verdict
from copied import copied
from experiments import Run, carry_out, stand_on
from rounding import note
from stored import joined, runs_in

from hilora.base.embed import describe_embedder
from hilora.evaluate.report import Results, Summary, summarise
from hilora.evaluate.rows import load_rows
from hilora.evaluate.tables import markdown_table

HERE = Path(__file__).parent
SAMPLES = 200
METHODS = ("selection", "lorauter", hilora_run.CHOSEN, "hilora-plus")
RUN = Run("many", ["iid", "cross"], METHODS, hilora_run.VAL, per_task=13)
TITLES = {"iid": "Every adapter in the pool", "cross": "No related adapter"}
MANY = f", {SAMPLES} samples"


def with_many(pool_path: Path, train: Path, out: Path, count: int) -> None:
    """A copy of a pool whose adapters have so many samples, the first of their training data."""
    with copied(pool_path, out) as pool:
        embedder = pool.embedder.load(pool.path)
        rows = load_rows(train)
        samples = {name: [row.inputs for row in rows if row.task == name][:count] for name in pool.names}
        print(f"embedding {sum(map(len, samples.values()))} samples of {len(samples)} adapters", flush=True)
        pool.reembed(samples, describe_embedder(embedder), embedder)


def both(rows: Path, setting: str) -> dict[str, Summary]:
    """Method -> its summary, on the rows that were answered both ways; those of many samples are named so."""
    few, many = (Results(runs_in(rows, *names)) for names in (joined(setting), ("many",)))
    kept = {"base", "oracle", *METHODS}
    few.rows = {key: found for key, found in few.rows.items() if key[1] in kept}
    few.rows |= {(own, method + MANY): found for (own, method), found in many.rows.items() if own == setting}
    return {s.method: s for s in summarise(few, setting)}


def table(found: dict[str, Summary]) -> str:
    """A line per method: with the pool's samples, with many, and what that changes; and hilora-plus beside both."""
    lines = []
    for method in METHODS:
        if method + MANY in found:
            pair = found[method], found[method + MANY]
            gain = less(pair[1], pair[0])
            ours = [
                "-" if s.method.startswith("hilora-plus") else told(less(found[name], s))
                for s, name in zip(pair, ("hilora-plus", f"hilora-plus{MANY}"), strict=True)
                if name in found
            ]
            averages = (f"{s.average.value:.1f}" for s in pair)
            lines.append((method, *averages, told(gain), verdict(gain), *ours))
    heading = ("method", "as the pool has them", f"{SAMPLES} samples", "difference (95 %)", "", "hilora-plus less it")
    return markdown_table((*heading, f"of {SAMPLES}"), lines)


def page(rows: Path) -> str:
    """The page."""
    text = [
        f"# {SAMPLES} samples an adapter\n\nMade by `python reproduce/hilora/many.py`, whose first lines say how it "
        f"is meant. {note('batches.md')}"
    ]
    for setting, title in TITLES.items():
        found = both(rows, setting)
        refs = ", ".join(f"{name} {found[name].average.value:.1f}" for name in ("base", "oracle") if name in found)
        text += [f"## {title}\n\n{stand_on(list(found.values()))} {refs}.", table(found)]
    return "\n\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that holds flan_mini; default: only the page")
    parser.add_argument("--pool", type=Path, default=Path("pools/flan-mini"))
    parser.add_argument("--many", type=Path, default=Path("runs/flan-mini-200"), help="the pool that is made")
    parser.add_argument("--rows", type=Path, default=HERE / "rows")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--dtype", default="bf16")
    args = parser.parse_args()
    if args.data is not None:
        if not args.many.exists():
            args.many.parent.mkdir(parents=True, exist_ok=True)
            with_many(args.pool, args.data / RUN.train, args.many, SAMPLES)
        carry_out([RUN], args.data, args.many, args.rows, args.dtype)
    (args.out / "many.md").write_text(page(args.rows))


if __name__ == "__main__":
    main()

"""Experiments as a list of runs of `hilora evaluate tasks`, one after another, resumable.

The scripts in reproduce/hilora and reproduce/ramole name their runs; this carries them out, in as many sittings as
they take.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from stored import runs_in, unpacked

from hilora import Pool
from hilora.base.models import load_base
from hilora.cli.evaluate import parse_methods
from hilora.evaluate.job import CONSTANT, Bench, Job
from hilora.evaluate.lines import constant_answers
from hilora.evaluate.report import Summary
from hilora.evaluate.rows import Row, choose_rows, cluster_of, load_rows
from hilora.evaluate.run import run_job
from hilora.evaluate.settings import make_cases
from hilora.evaluate.tables import markdown_table
from hilora.jsonl import plain_path, read_lines

BATCH = 64
"""Rows of a batch; the answers depend on it by rounding only."""


@dataclass(frozen=True)
class Run:
    """One results file.

    Args:
        name: of the file, without .jsonl or .jsonl.gz.
        settings: one after another.
        methods: as for `--methods`.
        data: name of the folder or file below the data folder.
        train: name of the training data there, of which `constant` gives the most frequent answers.
        per_task, part, clusters, halves: which rows and pools.
        skip: of the rows of each task, so many are left out, which other runs have used.
        strange: tasks without an adapter alone.
    """

    name: str
    settings: Sequence[str]
    methods: Sequence[str]
    data: str
    per_task: int | None = None
    part: str = "second"
    clusters: tuple[str, ...] | None = None
    halves: int = 4
    train: str = "flan_mini/train"
    skip: int = 0
    strange: bool = False

    def rows(self, every: Sequence[Row], adapters: Collection[str]) -> list[Row]:
        """Its rows, of all of the data."""
        tasks = {row.task for row in every} - set(adapters) if self.strange else None
        kept = {"part": self.part, "clusters": self.clusters, "tasks": tasks}
        used = {row.id for row in choose_rows(every, per_task=self.skip, **kept)} if self.skip else set[str]()
        count = None if self.per_task is None else self.skip + self.per_task
        return [row for row in choose_rows(every, per_task=count, **kept) if row.id not in used]


def carry_out(
    runs: Sequence[Run],
    data: Path,
    pool_path: Path,
    out: Path,
    dtype: str,
    only: Sequence[str] = (),
    again: Sequence[str] = (),
) -> None:
    """Do what is not done yet; prints a line per batch. A run's rows are packed once it has ended well.

    Args:
        runs: to be done.
        data, pool_path, out, dtype: as the command line has them.
        only: names of runs; default: all.
        again: labels of methods whose rows are made anew.
    """
    pool = Pool.open(pool_path)
    model, tokenizer = load_base(pool.base.name, dtype=dtype)
    embedder = pool.embedder.load(pool.path)
    out.mkdir(parents=True, exist_ok=True)
    for run in runs:
        if only and run.name not in only:
            continue
        rows = load_rows(data / run.data)
        chosen = run.rows(rows, pool.names)
        constant = constant_answers(load_rows(data / run.train)) if CONSTANT in run.methods else {}
        with unpacked(out / f"{run.name}.jsonl") as path:
            forget(path, again)
            for setting in run.settings:
                cases = make_cases(setting, chosen, pool.names, clusters=cluster_of(rows), halves=run.halves)
                job = Job(setting, cases, parse_methods(",".join(run.methods)), constant, batch_size=BATCH)
                bench = Bench(pool, model, tokenizer, embedder, job)
                log = _Log(f"{run.name} {setting}", len(cases))
                skip = {"skip": run.skip} if run.skip else {}
                header = bench.header(run.name, part=run.part, per_task=run.per_task, **skip)
                also = [each for each in runs_in(out) if each != path]
                run_job(bench, path, header=header, also=also, on_rows=log)


def forget(path: Path, methods: Sequence[str]) -> None:
    """Take the rows of these methods out of a results file."""
    if methods and path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(x for x in lines if json.loads(x).get("method") not in methods), encoding="utf-8")


class _Log:
    """Prints a line per batch."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.began = name, total, time.perf_counter()

    def __call__(self, label: str, done: int) -> None:
        minutes = (time.perf_counter() - self.began) / 60
        print(f"{self.name} {label} {done}/{self.total}  {minutes:.1f} min", flush=True)


def run_main(doc: str | None, runs: Sequence[Run], out: str) -> None:
    """The command line of a script that carries out its runs."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"the folder that holds {runs[0].data}")
    parser.add_argument("--pool", type=Path, default=Path("pools/flan-mini"))
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--again", nargs="*", default=[], help="methods whose rows are made anew, as labelled")
    args = parser.parse_args()
    carry_out(runs, args.data, args.pool, args.out, args.dtype, args.only, args.again)


def tables_main(doc: str | None, folder: str, sections: Callable[[Path, Path], list[str]]) -> None:
    """The command line of a script that makes results.md of (rows, out) -> its sections, the times last."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=Path, default=Path(folder) / "rows")
    parser.add_argument("--out", type=Path, default=Path(folder))
    args = parser.parse_args()
    text = sections(args.rows, args.out)
    text += [section("Time", times_table(runs_in(args.rows)))]
    (args.out / "results.md").write_text("\n".join(text))


def page_main(doc: str | None, out: Path, rows: Path, page: Callable[[Path], str], what: str | None = None) -> None:
    """The command line of a script that makes one page of rows.

    Args:
        doc: of the script.
        out: the page.
        rows: the folder that it is made of.
        page: makes it.
        what: the folder holds, where it is not the rows themselves.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=Path, default=rows, help=what)
    parser.add_argument("--out", type=Path, default=out.parent)
    args = parser.parse_args()
    (args.out / out.name).write_text(page(args.rows))


def section(title: str, *parts: str) -> str:
    """A section of a Markdown page."""
    return "\n\n".join([f"## {title}", *parts]) + "\n"


def stand_on(summaries: Sequence[Summary]) -> str:
    """What the intervals of a table stand on, in words."""
    first = summaries[0]
    times = f", {first.num_rows} rows" if first.num_rows != first.num_prompts else ""
    return f"{first.num_prompts} prompts of {len(first.tasks)} tasks{times}."


def times_table(paths: Sequence[Path]) -> str:
    """The minutes that each run's answers took; what was taken over from other rows took none."""
    minutes: dict[str, float] = {}
    for path in paths:
        known = set()  # older rows do not say whether they share an answer
        for row in read_lines(path):
            if "method" not in row or row.get("shared"):
                continue
            if (measured := (row["method"], row["id"], row["seconds"])) not in known:
                known.add(measured)
                name = f"{plain_path(path).stem} ({row['setting']})"
                minutes[name] = minutes.get(name, 0.0) + row["seconds"] / 60
    rows = [(name, f"{m:.0f}") for name, m in minutes.items()] + [("all", f"{sum(minutes.values()):.0f}")]
    return markdown_table(("run", "minutes"), rows)

"""What changed in hilora-plus since its first tables, step by step: on first halves, and once on confirmatory rows.

    git archive 3a0c458^ pools/flan-mini | tar -x -C runs     # the pool as it was: its samples have no outlines
    python reproduce/hilora/steps.py --data DATA --before runs/pools/flan-mini      # rows, resumable
    python reproduce/hilora/steps.py                                                # steps.md from rows

The steps: three witnesses and 5 % of held-out samples called unseen; a fourth witness, the outline; 2 % called
unseen, which is hilora-plus as it stands. Rows are in fp32, as those of run `confirm`, from which the last step is
taken.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
import run as hilora_run
from compared import less, told, verdict
from copied import copied
from experiments import Run, carry_out, stand_on
from stored import runs_in

from hilora.evaluate.report import Results, Summary, summarise
from hilora.evaluate.tables import markdown_table
from hilora.route import novelty

HERE = Path(__file__).parent
OWN = "hilora-plus"
STEPS = {
    "before": "three witnesses, 5 % called unseen",
    "five": "and the outline",
    "now": "and 2 % called unseen",
}
"""Step -> what it adds to the one before."""
SHARES = {"before": 0.05, "five": 0.05, "now": novelty.UNSEEN_SHARE}
CONFIRM = replace(next(each for each in hilora_run.RUNS if each.name == "confirm"), methods=(OWN,))
FIRST = Run("first", ["iid", "within", "cross"], (OWN,), hilora_run.VAL, per_task=13, part="first", halves=2)
TITLES = {"iid": "own adapter there", "within": "half of the adapters", "cross": "no related adapter"}


@contextmanager
def called_unseen(share: float) -> Iterator[None]:
    """That share of held-out samples is called unseen, in all that is fitted meanwhile."""
    before, novelty.UNSEEN_SHARE = novelty.UNSEEN_SHARE, share
    try:
        yield
    finally:
        novelty.UNSEEN_SHARE = before


def recalibrated(pool_path: Path, out: Path, share: float) -> Path:
    """A copy of a pool whose calibration, which it keeps, calls that share of held-out samples unseen."""
    if not out.exists():
        with copied(pool_path, out) as pool, called_unseen(share):
            pool.tune(always=True)
    return out


def name_of(run: Run, step: str) -> str:
    """Of the file that holds a run's rows of a step; the confirmatory rows of the last one are there already."""
    return run.name if (run.name, step) == ("confirm", "now") else f"steps-{run.name}-{step}"


def make(data: Path, pools: dict[str, Path], rows: Path) -> None:
    """All rows, but for those of run `confirm`."""
    for run in (FIRST, CONFIRM):
        for step, pool in pools.items():
            if (name := name_of(run, step)) != run.name:
                with called_unseen(SHARES[step]):
                    carry_out([replace(run, name=name)], data, pool, rows, "fp32")


def summed(rows: Path, run: Run, setting: str) -> dict[str, Summary]:
    """Step -> its summary, on the rows that all of them have."""
    found = {step: Results(runs_in(rows, name_of(run, step))) for step in STEPS}
    every = next(iter(found.values()))
    every.rows = {(setting, step): each.rows[setting, OWN] for step, each in found.items()}
    return {s.method: s for s in summarise(every, setting)}


def table(found: dict[str, Summary]) -> str:
    """A line per step, with what it gains over the one before."""
    lines, last = [], None
    for step, summary in found.items():
        gain = None if last is None else less(summary, last)
        said = ("-", "") if gain is None else (told(gain), verdict(gain))
        lines.append((STEPS[step], f"{summary.average.value:.1f}", *said))
        last = summary
    return markdown_table(("step", "average", "gain (95 %)", ""), lines)


def page(rows: Path) -> str:
    """The page, of the runs that are there for every step."""
    text = [
        "# What changed in hilora-plus\n\nMade by `python reproduce/hilora/steps.py`, whose first lines say what the "
        "steps are. First halves are what they were chosen on."
    ]
    for run, title in ((FIRST, "First halves"), (CONFIRM, "Confirmatory rows")):
        if all(runs_in(rows, name_of(run, step)) for step in STEPS):
            for setting in run.settings:
                found = summed(rows, run, setting)
                text += [f"## {title}: {TITLES[setting]}\n\n{stand_on(list(found.values()))}", table(found)]
    return "\n\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that holds flan_mini; default: only the page")
    parser.add_argument("--pool", type=Path, default=Path("pools/flan-mini"))
    parser.add_argument("--before", type=Path, default=Path("runs/pools/flan-mini"), help="the pool without outlines")
    parser.add_argument("--five", type=Path, default=Path("runs/flan-mini-five"), help="the pool of step two, made")
    parser.add_argument("--rows", type=Path, default=HERE / "rows")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    if args.data is not None:
        five = recalibrated(args.pool, args.five, SHARES["five"])
        make(args.data, {"before": args.before, "five": five, "now": args.pool}, args.rows)
    (args.out / "steps.md").write_text(page(args.rows))


if __name__ == "__main__":
    main()

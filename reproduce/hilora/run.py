"""HiLoRA's experiments (arXiv 2510.12266) on pools/flan-mini: the rows that tables.py makes tables and figures of.

    python reproduce/hilora/run.py --data DATA --pool pools/flan-mini

Run again to resume; --only names one of the runs:

    cross      Tables 2, 4: each cluster in turn unseen, all methods
    iid        every adapter in the pool, all methods: the project's first table
    within     the same rows in halves of every cluster at once, all methods
    nli        Table 1, Fig. 1: the NLI cluster alone in halves, all methods
    gamma      Fig. 6: gamma 20 to 100 %
    choose     what hilora-plus is made of; first halves of the rows, which no other table uses
    ablation   criterion, variance factor, k, covariance, allocation; first halves too
    phatgoose-cross, phatgoose-within, phatgoose-iid, phatgoose-nli    the one method of Tables 1 to 5 that is trained
               (reproduce/ramole/train.py comes first); its column joins the tables of those runs
    rivals-cross, rivals-within, rivals-iid, rivals-nli    the same for methods that are newer than the papers
    rivals-choose    what is left open in these; first halves
    confirm    rows of iid and within that nothing else has used: a frozen hilora-plus against the best of the others
    strange    the same for tasks that no adapter was trained on
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments import Run, run_main

METHODS = (
    "base",
    "constant",
    "oracle",
    "hilora",
    "hilora-gs",
    "hilora-roc",
    "hilora-plus",
    "mixture",
    "selection",
    "fusion",
    "lego",
    "arrow",
    "ensemble",
    "merged",
    "adapter-soup",
)
VAL = "flan_mini/val"
GAMMAS = tuple(f"hilora:gamma={g}" for g in (0.2, 0.4, 0.6, 0.8, 1.0))
ABLATIONS = (
    "hilora",
    "hilora:criterion=magnitude",
    "hilora:criterion=contribution",
    "hilora:k=1",
    "hilora:k=8",
    "hilora:normalise=false",
    "hilora:allocation=expected",
    "hilora:covariance=tied:candidates=top",
    "hilora:criterion=contribution:normalise=false",
    "hilora-gs:normalise=false",
    "hilora-roc:criterion=contribution",
    "hilora-roc:k=8",
)
CHOICES = (
    "hilora",
    "hilora-gs",
    "mixture",
    "ensemble",
    "arrow",
    "hilora-plus",
    "hilora-plus:fallback=none",
    "hilora-plus:fallback=base",
    "hilora-plus:candidates=conformal",
    "hilora-plus:gamma=0.4",
    "hilora-plus:terms=false",
)
RUNS = (
    Run("cross", ["cross"], METHODS, VAL, per_task=50),
    Run("within", ["within"], METHODS, VAL, per_task=13),
    Run("iid", ["iid"], METHODS, VAL, per_task=13),
    Run("nli", ["within"], METHODS, VAL, per_task=15, clusters=("nli",)),
    Run("gamma", ["within", "cross"], ("base", "oracle", *GAMMAS), VAL, per_task=4, halves=2),
    Run("choose", ["within", "cross"], ("base", "oracle", *CHOICES), VAL, per_task=4, part="first", halves=2),
    Run("ablation", ["within"], ("base", "oracle", *ABLATIONS), VAL, per_task=2, part="first", halves=2),
)
CHOSEN = "lorauter:k=5:temperature=0.05"
"""The one rival with a try that is worth more than its paper's choice: on rivals-choose 44.3 with all adapters and
21.9 without a related one, against 38.1 and 23.2. Of the others their papers' own is the best in the mean of both."""
RIVALS = ("logo", "spectr", "lag", "lorauter", CHOSEN)
OPEN = {
    "logo": (
        "",
        "k=3",
        "k=1",
        "reads=site",
        "k=3:reads=site",
        "k=1:reads=site",
        "signal=entropy:reads=site",
        "k=3:signal=entropy:reads=site",
    ),
    "spectr": (
        "",
        "k=1",
        "k=3",
        "k=8",
        "weights=softmax",
        "score=basis",
        "score=basis:fuse=true",
        "score=basis:k=1",
    ),
    "lag": (
        "",
        "score=output",
        "k=3",
        "k=3:score=output",
        "candidates=5",
        "candidates=10",
        "candidates=5:score=output",
        "k=3:weights=softmax",
    ),
    "lorauter": (
        "",
        "temperature=0.05",
        "temperature=0.02",
        "temperature=1.0",
        "k=5",
        "k=5:temperature=0.05",
        "k=8:temperature=0.05",
        "k=2:temperature=0.05",
    ),
}
"""Rival -> what is tried of it, its paper's choice first: as many as of hilora-plus."""
TRIED = tuple(f"{name}:{options}".rstrip(":") for name, tries in OPEN.items() for options in tries)
BEST = ("base", "oracle", "selection", "mixture", "hilora", "hilora-plus", "lorauter", CHOSEN)
"""What is near the first where there are adapters of a prompt's own. Phatgoose, LoGo, SpectR and LAG, 14 to 21 points
behind it there, take part where there are none."""
STRANGE = (*(method for method in BEST if method != "oracle"), "phatgoose", *RIVALS[:3])
RUNS += tuple(
    replace(run, name=f"{which}-{run.name}", methods=methods)
    for which, methods in (("phatgoose", ("phatgoose",)), ("rivals", RIVALS))
    for run in RUNS[:4]
)
RUNS += (
    Run("rivals-choose", ["iid", "cross"], TRIED, VAL, per_task=4, part="first", halves=2),
    Run("confirm", ["iid", "within"], BEST, VAL, per_task=24, halves=2, skip=13),
    Run("strange", ["mixed"], STRANGE, VAL, per_task=24, strange=True),
)


def main() -> None:
    run_main(__doc__, RUNS, "reproduce/hilora/rows")


if __name__ == "__main__":
    main()

"""RAMoLE's experiments (arXiv 2406.16989) on pools/flan-mini: the rows that tables.py makes tables of.

    python reproduce/ramole/run.py --data DATA --pool pools/flan-mini

DATA holds ramole48/test_half.jsonl: half of that paper's test set, whose wording differs from what the adapters were
trained on. Rows whose task has an adapter of that name are used. Run again to resume; --only names one of the runs:

    mixed      Table I (training-free columns): IID and OOD
    number     Fig. 7a: the number of retrieved adapters, on the tasks scored by exact match
    trained    Table I (columns of methods that are trained: train.py comes first)
    dropout    Fig. 6: RouterLoRA trained without leaving adapters out; and at five times the rate
    rivals     the prompts of mixed, for methods that are newer than the papers and what else HiLoRA's tables have
    wording    NLI and paraphrase of that paper's training samples (ramole48/samples.jsonl): wording.py says why
               methods differ there
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments import Run, run_main

TEST = "ramole48/test_half.jsonl"
METHODS = (
    "base",
    "constant",
    "oracle",
    "selection",
    "fusion",
    "mixture",
    "adapter-soup",
    "hilora",
    "hilora-gs",
    "hilora-plus",
)
NUMBERS = tuple(f"{method}:k={k}" for method in ("mixture", "fusion") for k in (1, 2, 3, 5, 8))
TRAINED = ("ramole", "moe-top1", "moe-top3", "moe-soft", "smear", "lorahub")
DROPOUT = ("ramole", "ramole:router=router-all", "ramole:router=router-rate")
RIVALS = ("phatgoose", "arrow", "logo", "spectr", "lag", "lorauter", "lorauter:k=5:temperature=0.05")
WORDING = ("base", "constant", "oracle", "selection", "mixture", "hilora", "hilora-plus")
NLU = ("nli", "commonsense", "coreference", "paraphrase", "sentiment")
RUNS = (
    Run("mixed", ["iid", "ood"], METHODS, TEST, part="all"),
    Run("number", ["iid", "ood"], ("base", "oracle", *NUMBERS), TEST, per_task=12, part="all", clusters=NLU),
    Run("trained", ["iid", "ood"], TRAINED, TEST, part="all"),
    Run("dropout", ["iid", "ood"], ("base", "oracle", *DROPOUT), TEST, per_task=12, part="all"),
    Run("rivals", ["iid", "ood"], RIVALS, TEST, part="all"),
    Run("wording", ["iid"], WORDING, "ramole48/samples.jsonl", part="all", clusters=("nli", "paraphrase")),
)


def main() -> None:
    run_main(__doc__, RUNS, "reproduce/ramole/rows")


if __name__ == "__main__":
    main()

"""Train the adapters of pools/flan-mini: one folder each, resumable at any point.

    python reproduce/pool/train.py --data FLAN_MINI --out runs/adapters

FLAN_MINI holds train/<task>.jsonl with {"inputs", "targets"} lines. Finished adapters are kept; an
interrupted one goes on at its last checkpoint. Two CPU cores take about 5 minutes for each.
"""

import argparse
import time
from pathlib import Path

from hilora.models import load_base
from hilora.train.data import read_lines
from hilora.train.lora import train_lora
from hilora.train.recipe import Recipe

# Steps by how soon the loss settles; ranks differ so that mixed ranks are real.
RECIPES = {
    "sst2": Recipe(steps=90),
    "snli": Recipe(steps=150),
    "mnli_matched": Recipe(steps=150, rank=16, alpha=32),
    "yelp_polarity_reviews": Recipe(steps=60, max_tokens=192),
    "cola": Recipe(steps=90),
    "trec": Recipe(steps=80, rank=4, alpha=8),
    "common_gen": Recipe(steps=80),
    "arithmetic": Recipe(steps=120),
    "anli_r1": Recipe(steps=70, max_tokens=256),
    "ag_news_subset": Recipe(steps=70, max_tokens=192),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/adapters"))
    parser.add_argument("--tasks", nargs="*", default=list(RECIPES))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_base("smollm2-135m")
    for task in args.tasks:
        if (args.out / task).exists():
            print(f"{task}: done before", flush=True)
            continue
        start = time.perf_counter()

        def log(step: int, loss: float, speed: float, task: str = task) -> None:
            if step % 10 == 0:
                print(f"{task} step {step}/{RECIPES[task].steps} loss {loss:.3f} {speed:.0f} tok/s", flush=True)

        train_lora(
            read_lines(args.data / "train" / f"{task}.jsonl"),
            args.out / task,
            model=model,
            tokenizer=tokenizer,
            base_name="HuggingFaceTB/SmolLM2-135M-Instruct",
            recipe=RECIPES[task],
            on_step=log,
        )
        print(f"{task}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()

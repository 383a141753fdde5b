"""What RAMoLE's and HiLoRA's trained methods need, trained on pools/flan-mini: POOL/trained/*.safetensors.

    python reproduce/ramole/train.py --data DATA --pool pools/flan-mini

DATA holds flan_mini/train/<adapter>.jsonl. One after another, resumable; the minutes (of the last sitting) go to
times.json beside this file; --minutes works those of mixtures out again from their logs. --only names some of:

    router          RouterLoRA on 40 % of the tasks, each row without half of the adapters
    router-all      the same without leaving adapters out (Fig. 6)
    router-rate     the same as `router` at five times the learning rate
    moe-soft, moe-top1, moe-top3, smear    one adapter of each cluster as expert
    lorahub         one set of weights for all tasks
    phatgoose       gates, adapter by adapter
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from training_log import minutes_of

from hilora import Pool
from hilora.base.models import load_base
from hilora.pool.trained import load_trained, trained_path
from hilora.train.data import batches
from hilora.train.gates import MOES, Trainer
from hilora.train.lorahub import train_lorahub
from hilora.train.recipe import GateRecipe, HubRecipe
from hilora.train.tasks import draw, encode_tasks, read_clusters, read_tasks

HERE = Path(__file__).parent
ROUTER = GateRecipe(steps=240, batch=8, lr=2e-3, max_tokens=256, per_task=60)
MOE = GateRecipe(steps=200, batch=8, lr=2e-3, max_tokens=256, per_task=20)
PHATGOOSE = GateRecipe(steps=40, batch=8, lr=1e-2, max_tokens=224, per_task=60)
HUB = HubRecipe(per_task=2, max_tokens=256)
"""LoRAHub's examples are 2 of each task instead of the paper's 20: each of 40 evaluations reads all of them."""
KINDS = ("router", "router-all", "router-rate", *MOES, "lorahub", "phatgoose")


def recipe_of(kind: str) -> GateRecipe | HubRecipe:
    """How a kind is trained."""
    if kind in MOES:
        return MOE
    routers = {"router": ROUTER, "router-all": replace(ROUTER, dropout=0.0), "router-rate": replace(ROUTER, lr=1e-2)}
    return (routers | {"phatgoose": PHATGOOSE, "lorahub": HUB})[kind]


def train(trainer: Trainer, kind: str, data: Path) -> None:
    """Train one kind, or go on with it."""
    recipe = recipe_of(kind)
    if isinstance(recipe, HubRecipe):
        train_lorahub(
            trainer.pool,
            trainer.tasks,
            recipe,
            model=trainer.model,
            tokenizer=trainer.tokenizer,
            on_step=lambda step, loss: log(kind, step, loss, 0.0),
        )
    elif kind in MOES:
        trainer.moe(kind, read_clusters(data, sorted(trainer.tasks)), recipe)
    elif kind == "phatgoose":
        trainer.phatgoose(recipe, lambda name: print(f"phatgoose {name}", file=sys.stderr, flush=True))
    else:
        trainer.router(recipe, kind)


def log(kind: str, step: int, loss: float, speed: float) -> None:
    if step % 10 == 0:
        print(f"{kind} step {step} loss {loss:.3f} {speed:.0f} tokens/s", file=sys.stderr, flush=True)


def is_done(pool: Pool, kind: str) -> bool:
    """Whether it is trained, by the recipe that is written here, for all adapters that it needs."""
    if not trained_path(pool.path, kind).exists():
        return False
    found = load_trained(pool, kind)
    wanted = json.loads(json.dumps(asdict(recipe_of(kind))))
    same = {key: value for key, value in found.recipe.items() if key in wanted} == wanted
    there = {entry.name: entry.hash for entry in pool.entries}
    return same and found.adapters.items() <= there.items() and (kind != "phatgoose" or found.adapters == there)


def minutes(kind: str, trainer: Trainer) -> float:
    """Minutes that a mixture's steps took, from the speed of each in its log: the batches follow from the recipe."""
    recipe = recipe_of(kind)
    assert isinstance(recipe, GateRecipe)
    drawn = draw(trainer.tasks, recipe.per_task, recipe.seed)
    examples = encode_tasks(drawn, trainer.tokenizer, recipe.max_tokens)
    sizes = (sum(map(len, batch)) for batch in batches(examples, recipe))
    return minutes_of(trained_path(trainer.pool.path, kind).with_suffix(".jsonl"), sizes, least=0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pool", type=Path, default=Path("pools/flan-mini"))
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--only", nargs="*", default=KINDS)
    parser.add_argument(
        "--minutes", action="store_true", help="work out the minutes of mixtures again; train nothing"
    )
    args = parser.parse_args()
    pool, data = Pool.open(args.pool), args.data / "flan_mini" / "train"
    model, tokenizer = load_base(pool.base.name, dtype=args.dtype)
    tasks = read_tasks(data, pool.names)
    times = args.out / "times.json"
    for kind in args.only:
        trainer, began = Trainer(pool, tasks, model, tokenizer, partial(log, kind)), time.perf_counter()
        if args.minutes:
            if kind not in MOES or not trained_path(pool.path, kind).exists():
                continue
            took = minutes(kind, trainer)
        elif is_done(pool, kind):
            continue
        else:
            train(trainer, kind, data)
            took = round((time.perf_counter() - began) / 60, 1)
        known = json.loads(times.read_text()) if times.exists() else {}
        times.write_text(json.dumps(known | {kind: took}, indent=1) + "\n")


if __name__ == "__main__":
    main()

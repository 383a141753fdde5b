"""Make a pool of trained adapters, with a card for each.

    python reproduce/pool/build.py --adapters runs/adapters --pool pools/flan-mini

Adapters that the pool has already are left as they are. The cards' texts about data
come from tasks.py. `--keep` leaves out what `check.py` found to be of no use.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tasks import DATA
from training_log import logged

from hilora.base.embed import Embedder, describe_embedder
from hilora.base.fingerprint import describe_base
from hilora.pool import Pool
from hilora.pool.source import samples_for
from hilora.pool.store import MANIFEST


def card(name: str, folder: Path, base: str) -> str:
    r = json.loads((folder / "recipe.json").read_text())
    losses = logged(folder / "training.jsonl", "loss")
    first, last = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
    task, data, licence = DATA[name]
    return f"""# {name}

LoRA adapter for {base}: {task}.

* Trained on: {data}, in instruction-style prompts; licence of the data: {licence}.
* Recipe: {", ".join(r["targets"])}; rank {r["rank"]}, alpha {r["alpha"]}; {r["steps"]} steps of {r["batch"]}
  examples up to {r["max_tokens"]} tokens; learning rate {r["lr"]}; seed {r["seed"]}.
* Loss on completions, mean of the first and of the last ten steps: {first:.2f}, {last:.2f}.
* Made with `reproduce/pool/train.py`. Meant for trying hilora, not for use in earnest: the base is small.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--adapters", type=Path, default=Path("runs/adapters"))
    parser.add_argument("--pool", type=Path, default=Path("pools/flan-mini"))
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--name", default="SmolLM2-135M-Instruct", help="of the base, in the cards")
    parser.add_argument("--keep", type=Path, help="verdicts.json of check.py; default: all adapters")
    args = parser.parse_args()
    kept = (
        set(DATA) if args.keep is None else {t for t, v in json.loads(args.keep.read_text()).items() if v == "kept"}
    )
    embedder = Embedder()
    if (args.pool / MANIFEST).exists():
        pool = Pool.open(args.pool)
    else:
        pool = Pool.create(args.pool, describe_base(args.base), describe_embedder(embedder))
    for name in DATA:
        folder = args.adapters / name
        if name in kept and folder.exists() and name not in pool.names:
            pool.add(name, folder, samples_for(name, folder, None), embedder)
            (args.pool / "cards").mkdir(exist_ok=True)
            (args.pool / "cards" / f"{name}.md").write_text(card(name, folder, args.name))
            print(f"{name}: added")
    print(f"ridge {pool.tune(always=True):.2g}, {len(pool)} adapters")


if __name__ == "__main__":
    main()

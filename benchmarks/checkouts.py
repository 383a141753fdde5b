"""Two checkouts of hilora timed in one sitting, so that a change of the code can be told from a mood of the machine.

    git worktree add ../before COMMIT
    python benchmarks/checkouts.py --before ../before --json benchmarks/checkouts.jsonl

They take turns, each in a process of its own: a `hilora bench` of hilora beside the base model. What is compared
are ratios to the base, which each process measures for itself. Run it with nothing else on the machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hilora.bench.rounds import spread
from hilora.evaluate.setup import setup
from hilora.evaluate.tables import markdown_table

HERE = Path(__file__).parents[1]
PARTS = ("whole", "prefill", "decode")
RATIO = "hilora_over_base"


def bench(checkout: Path, pool: Path, options: Sequence[str]) -> dict[str, float]:
    """Part -> hilora's speed over the base's, by the code of a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bench.jsonl"
        command = [sys.executable, "-m", "hilora", "bench", "--pool", str(pool), "--json", str(out), *options]
        subprocess.run(command, cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)}, check=True)
        return ratios_of(json.loads(out.read_text()))


def commit_of(checkout: Path) -> str:
    """Which commit lies there; "" outside of git."""
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=False)
    return asked.stdout.strip()[:12]


def ratios_of(line: Mapping[str, Any]) -> dict[str, float]:
    """What a line of `hilora bench` says of hilora beside the base, part by part."""
    return {"whole": line[RATIO], "prefill": line["prefill"][RATIO], "decode": line["decode"][RATIO]}


def table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """A line for each checkout: median and range over its turns."""
    rows = []
    for name, turns in found.items():
        spreads = [spread([turn[part] for turn in turns], 3) for part in PARTS]
        rows.append((name, *("{median} ({least} to {most})".format(**each) for each in spreads)))
    return markdown_table(("checkout", *(f"of base, {part}" for part in PARTS)), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="another checkout; this one is `after`")
    parser.add_argument("--pool", type=Path, default=HERE / "pools" / "flan-mini")
    parser.add_argument("--turns", type=int, default=4, help="of each")
    parser.add_argument("--rounds", type=int, default=3, help="of each turn")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    checkouts = {"before": args.before.resolve(), "after": HERE}
    options = ["--contenders", "base,hilora", "--rounds", str(args.rounds), "--new-tokens", "16"]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for turn in range(args.turns):
        for name in list(checkouts)[:: 1 if turn % 2 == 0 else -1]:
            found[name].append(bench(checkouts[name], args.pool.resolve(), options))
            print(name, found[name][-1], flush=True)
    print(table(found))
    change = statistics.median(a["whole"] / b["whole"] for a, b in zip(found["after"], found["before"], strict=True))
    print(f"after / before, whole: {change:.3f}")
    if args.json:
        commits = {name: commit_of(checkout) for name, checkout in checkouts.items()}
        header = setup("benchmarks/checkouts.py", rounds=args.rounds, turns=args.turns, commits=commits)
        lines = [header, *({"checkout": name, **turn} for name, turns in found.items() for turn in turns)]
        args.json.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()

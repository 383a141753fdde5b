"""How similar the rows of each task are to each adapter: HiLoRA Fig. 4 and 9, RAMoLE Fig. 4.

    python reproduce/figures/heatmap.py --name ramole48 --samples SAMPLES.jsonl --data TEST.jsonl
    python reproduce/figures/heatmap.py --name flan-mini --pool pools/flan-mini --data DATA
    python reproduce/figures/heatmap.py --name ramole48 --from reproduce/figures/ramole48.json

One picture per score: "own" (HiLoRA Eq. 3, with the mean number of adapters that Eq. 4 selects beside it), "cosine"
(Retriever) and "tied". Adapters come from a pool or from JSON Lines with "task" and "inputs"; DATA are rows as for
`hilora evaluate tasks`. The matrices go to NAME.json, from which the pictures can be made again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from hilora.analyse.heatmaps import similarity
from hilora.analyse.look import save
from hilora.analyse.similarity import SCORES, K, against_prompts
from hilora.base import embed
from hilora.base.embed import DEFAULT_EMBEDDER, INSTRUCTION, Remembering
from hilora.evaluate.routing import look_at, read_samples
from hilora.evaluate.rows import choose_rows, cluster_of, load_rows
from hilora.evaluate.setup import setup
from hilora.jsonl import write_entries
from hilora.pool import Pool
from hilora.pool.source import find_pool
from hilora.route.ridge import choose_ridge


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Mean score of each task's rows under each adapter, and mean number of candidates."""
    rows = choose_rows(load_rows(args.data), part=args.part, per_task=args.per_task)
    if args.pool:
        pool = Pool.open(find_pool(args.pool))
        embedder = pool.embedder.load(pool.path)
        names, known, ridge = pool.names, pool.samples(), pool.ridge
    else:
        embedder = Remembering(embed.Embedder(args.embedder, instruction=INSTRUCTION))
        samples = read_samples(args.samples)
        names = sorted(samples)
        known = [look_at(samples[name], embedder, False) for name in names]
        ridge = choose_ridge([features.embeddings for features in known])
    clusters = cluster_of(rows)
    asked = {task: look_at([row.inputs for row in rows if row.task == task], embedder, False) for task in clusters}
    header = setup(
        "reproduce/figures/heatmap.py",
        embedder=embedder.name,
        instruction=embedder.instruction,
        ridge=ridge,
        k=K,
        rows=len(rows),
        samples=sum(map(len, known)),
    )
    return {"setup": header, **against_prompts(asked, clusters, names, known, ridge)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--name", required=True, help="names the files")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--pool")
    source.add_argument("--samples", type=Path)
    source.add_argument("--from", dest="numbers", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--part", default="all", help="all, first or second half of each task's rows")
    parser.add_argument("--per-task", type=int)
    parser.add_argument("--embedder", default=DEFAULT_EMBEDDER, help="with --samples; a pool has its own")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    if not args.numbers:
        if not args.data:
            parser.error("--pool and --samples need --data")
        args.numbers = args.out / f"{args.name}.json"
        write_entries(measure(args), args.numbers)
    result = json.loads(args.numbers.read_text())
    for name in SCORES:
        print(*save(similarity(result, name), args.out / f"{args.name}_{name}", formats=("png",), dpi=110))


if __name__ == "__main__":
    main()

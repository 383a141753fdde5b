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
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.patches import Rectangle

from hilora.evaluate.routing import SCORERS, read_samples
from hilora.evaluate.rows import Row, choose_rows, cluster_of, load_rows
from hilora.evaluate.setup import setup
from hilora.evaluate.tasks import paper_cluster
from hilora.planner import describe_embedder
from hilora.pool import Pool
from hilora.pool.source import find_pool
from hilora.route import embed
from hilora.route.candidates import sign_sizes
from hilora.route.embed import DEFAULT_EMBEDDER, INSTRUCTION, Remembering
from hilora.route.gaussian import OwnGaussian

K = 3  # of Eq. 4, as in `hilora`
CELL, FONT, BOX = 0.155, 6.5, "#12a84e"  # inches, points, green as in the paper
SCORES = {
    "own": "log-likelihood / dim under each adapter's Gaussian (HiLoRA Eq. 3)",
    "cosine": "cosine to each adapter's mean sample (Retriever)",
    "tied": "log-likelihood / dim, one covariance for all adapters",
}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Mean score of each task's rows under each adapter, and mean number of candidates."""
    rows = choose_rows(load_rows(args.data), part=args.part, per_task=args.per_task)
    if args.pool:
        pool = Pool.open(find_pool(args.pool))
        embedder = embed.Embedder(pool.embedder.name, instruction=pool.embedder.instruction)
        pool.check_embedder(describe_embedder(embedder))
        names, vectors = pool.names, pool.embeddings()
        own = OwnGaussian(pool.ridge).fit(vectors)
    else:
        embedder = Remembering(embed.Embedder(args.embedder, instruction=INSTRUCTION))
        samples = read_samples(args.samples)
        names = sorted(samples)
        vectors = [embedder(samples[name]) for name in names]
        own = SCORERS["own"](vectors)
    scorers = {"own": own} | {name: SCORERS[name](vectors) for name in ("cosine", "tied")}
    tasks, adapters = ordered(rows, names)
    columns = [names.index(name) for name, _ in adapters]
    result: dict[str, Any] = {
        "tasks": tasks,
        "adapters": adapters,
        **{name: [] for name in scorers},
        "candidates": [],
    }
    for task, _ in tasks:
        query = embedder([row.inputs for row in rows if row.task == task])
        for name, scorer in scorers.items():
            scores = scorer.score(query)[:, columns]  # (row, adapter)
            result[name].append([round(score, 3) for score in scores.mean(0).tolist()])
            if name == "own":
                result["candidates"].append(round(float(sign_sizes(scores, K).mean()), 3))
    header = setup(
        "reproduce/figures/heatmap.py",
        embedder=embedder.name,
        instruction=embedder.instruction,
        ridge=own.ridge,
        k=K,
        rows=len(rows),
        samples=sum(map(len, vectors)),
    )
    return {"setup": header, **result}


def ordered(rows: Sequence[Row], names: Sequence[str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(task, cluster) of the rows' tasks and of the adapters, cluster by cluster; adapters without rows come last."""
    clusters = {task: paper_cluster(cluster) for task, cluster in cluster_of(rows).items()}
    tasks = sorted(clusters.items(), key=lambda pair: (pair[1].lower(), pair[0]))
    adapters = [pair for pair in tasks if pair[0] in set(names)]
    return tasks, adapters + [(name, "without rows") for name in sorted(set(names) - clusters.keys())]


def draw(result: dict[str, Any], name: str, path: Path) -> None:
    """One score's heatmap; beside "own" the candidates."""
    scores = np.array(result[name])  # (task, adapter)
    tasks, adapters = result["tasks"], result["adapters"]
    panels, width = 2 if name == "own" else 1, CELL * max(len(adapters), 12)
    fig, grid = plt.subplots(
        1,
        panels,
        sharey=True,
        squeeze=False,
        figsize=(width + 2.4 + 1.2 * (panels - 1), CELL * max(len(tasks), 12) + 1.9),
        width_ratios=[width, 1.0][:panels],
        layout="constrained",
    )
    axes = grid[0, 0]
    image = axes.imshow(scores, aspect="auto", interpolation="nearest", **colours(name, scores))
    axes.set_xticks(range(len(adapters)), [adapter for adapter, _ in adapters], rotation=90, fontsize=FONT)
    axes.set_yticks(range(len(tasks)), [task for task, _ in tasks], fontsize=FONT)
    axes.set_xlabel("adapter")
    axes.set_ylabel("task of the prompts")
    axes.tick_params(length=0)
    across = spans(adapters)
    for cluster, (top, high) in spans(tasks).items():
        if cluster in across:
            left, wide = across[cluster]
            axes.add_patch(Rectangle((left - 0.5, top - 0.5), wide, high, fill=False, edgecolor=BOX, linewidth=1.6))
    for cluster, (left, _) in across.items():
        axes.text(left - 0.4, -0.7, cluster, fontsize=FONT, color=BOX, rotation=35, va="bottom")
    fig.colorbar(image, ax=axes, location="right", shrink=0.6, pad=0.01).ax.tick_params(labelsize=FONT)
    for side in grid[0, 1:]:
        candidates = result["candidates"]
        side.barh(range(len(tasks)), candidates, height=0.7, color="0.75")
        for at, number in enumerate(candidates):
            side.text(number, at, f" {number:.1f}", va="center", fontsize=FONT)
        side.set_xlim(0, 1.35 * max(candidates))
        side.set_xlabel("adapters selected\nby Eq. 4 (mean)", fontsize=FONT + 1)
        side.tick_params(length=0, labelsize=FONT, labelleft=False)
        side.spines[["top", "right"]].set_visible(False)
    fig.suptitle(SCORES[name], fontsize=FONT + 3)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def colours(name: str, scores: np.ndarray) -> dict[str, Any]:
    """White at 0 where the sign decides, as in Eq. 4; else from low to high."""
    if name == "own" and scores.min() < 0 < scores.max():
        return {"cmap": "RdBu_r", "norm": TwoSlopeNorm(0, scores.min(), scores.max())}
    return {"cmap": "magma"}


def spans(pairs: Sequence[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """Cluster -> (first place, number of places)."""
    found, place = {}, 0
    for cluster, members in groupby(pairs, key=lambda pair: pair[1]):
        found[cluster] = (place, len(list(members)))
        place += found[cluster][1]
    return found


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
        args.out.mkdir(parents=True, exist_ok=True)
        # a line per entry: matrices in a diff that can be read
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in measure(args).items()]
        args.numbers.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    result = json.loads(args.numbers.read_text())
    for name in SCORES:
        draw(result, name, args.out / f"{args.name}_{name}.png")
        print(args.out / f"{args.name}_{name}.png")


if __name__ == "__main__":
    main()

"""The embedder in fp32, in bf16 and under other runtimes: its time, and what of retrieval it costs.

    pip install onnx onnxruntime onnxscript openvino      # as far as they are to be compared
    python benchmarks/embedding.py --data RAMOLE48 --json benchmarks/embedding.jsonl

RAMOLE48 holds samples.jsonl and test_half.jsonl. Samples are embedded in fp32, as `hilora pool add` does, prompts in
each form. Times are of 1, 8 and 32 prompts of 60 words, medians of interleaved rounds; "bf16 by 32" embeds 32 at
once instead of 16. Run it with nothing else on the machine. Without --data only times are measured.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from lines import Line, write
from runtimes import Other, runtimes
from torch import Tensor

from hilora.base.embed import Embedder
from hilora.bench.rounds import turns
from hilora.bench.workload import make_workload
from hilora.evaluate.routing import METHOD_SCORERS, SCORERS, TOPS, look_at, not_sampled, read_samples, top_hits
from hilora.evaluate.setup import setup

DTYPES = ("fp32", "bf16")
BATCHES = (1, 8, 32)
METHODS = ("mixture", "hilora", "hilora-plus")
PAUSE = 0.3
"""Seconds before each turn: threads of a runtime go on spinning for a while, at the next one's cost."""
Embed = Callable[[list[str]], Tensor]


def times(embedders: dict[str, Embed], rounds: int, pause: float) -> Iterator[Line]:
    """Milliseconds for a batch of prompts."""
    for batch in BATCHES:
        work = make_workload(["one"], batch=batch, adapters=1, share="identical", words=60, new_tokens=2)
        took: dict[str, list[float]] = {name: [] for name in embedders}
        for name, counts in turns(list(embedders), rounds):
            time.sleep(pause)
            began = time.perf_counter()
            embedders[name](list(work.prompts))
            if counts:
                took[name].append(1e3 * (time.perf_counter() - began))
        yield {"batch": batch, "ms": {name: round(statistics.median(values), 2) for name, values in took.items()}}


def retrieval(embedders: dict[str, Embedder], data: Path) -> Iterator[Line]:
    """Percent of prompts whose own adapter is among the best 1, 3, 5, 8."""
    samples = read_samples(data / "samples.jsonl")
    test = not_sampled(samples, read_samples(data / "test_half.jsonl"))
    names = sorted(samples)
    known = [look_at(samples[name], embedders["fp32"], True) for name in names]
    scorers = {method: SCORERS[METHOD_SCORERS[method]](known) for method in METHODS}
    for dtype, embedder in embedders.items():
        asked = [look_at(test[name], embedder, True) for name in names]
        for method, scorer in scorers.items():
            hits = np.concatenate([top_hits(scorer.score(texts), own) for own, texts in enumerate(asked)])
            top = dict(zip(map(str, TOPS), (100 * hits.mean(0)).round(2).tolist(), strict=True))
            yield {"dtype": dtype, "method": method, "prompts": len(hits), "top": top}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    embedders = {dtype: Embedder(dtype=dtype) for dtype in DTYPES}
    with tempfile.TemporaryDirectory() as folder:
        others = {name: Other(embedders["fp32"], run) for name, run in runtimes(Path(folder)).items()}
    embedders |= others
    by_32 = {"bf16 by 32": lambda texts: embedders["bf16"](texts, 32)}
    header = setup("benchmarks/embedding.py", rounds=args.rounds)
    timed = times(embedders | by_32, args.rounds, PAUSE if others else 0)
    write(args.json, chain([header], timed, retrieval(embedders, args.data) if args.data else ()))


if __name__ == "__main__":
    main()

"""Compiled steps on a CPU, beside those that are not: how near each comes to the base model's speed.

    python benchmarks/compiled.py --json benchmarks/compiled.jsonl       # half an hour, most of it compiling
    python benchmarks/compiled.py --json benchmarks/compiled.jsonl --page docs/compiled.md     # the table, from these

transformers      the base, as transformers runs it
base              the base in hilora's engine
hilora            every prompt embedded and routed; prompts share a few adapters
compiled_base     the base in compiled steps that have no sites, in the same places for keys and values
compiled_hilora   the same as hilora; the choice of ROCs is compiled, too
compiled_apart    the same, the choice an operation of its own, as on a GPU

All in one process, in interleaved rounds, on copies of one model. `step_ms` is of each token after the first. Seconds
of compiling are those of a process that finds nothing on disk, and of another one that finds what the first has left.
Run it with nothing else on the machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lines import Line, add, placed

from hilora import HiLoRA, Planner, Pool, get_method
from hilora.base.embed import Embedder
from hilora.base.models import load_base
from hilora.base.padding import pad_batch
from hilora.base.prompts import encode_prompts, pad_id
from hilora.bench.rounds import in_rounds, rounded, seconds_of, spread, time_rounds
from hilora.bench.stage import Contender, fixed
from hilora.bench.workload import Workload, make_workload
from hilora.engine.compiled.options import Compile
from hilora.engine.kernels.top_rocs import top_rocs
from hilora.evaluate.setup import setup
from hilora.evaluate.tables import markdown_table
from hilora.jsonl import read_lines
from hilora.pool.source import find_pool

COMPILED = ("compiled_base", "compiled_hilora", "compiled_apart")
NAMES = ("transformers", "base", "hilora", *COMPILED)
DEVICE = torch.device("cpu")
BEGIN, END = "<!-- from benchmarks/compiled.jsonl -->\n", "<!-- end -->"


def router_of(name: str, pool: Pool, embedder: Embedder, dtype: str, compiled: Compile) -> HiLoRA:
    """A contender's router, on a model of its own."""
    model, tokenizer = load_base(pool.base.name, dtype=dtype, device_map="cpu")
    method = "base" if name == "base" else "hilora"
    planner = Planner(pool, get_method(method), embedder)
    router = HiLoRA(model, tokenizer, planner, packed=True, compile=compiled if name in COMPILED else "off")
    if name == "compiled_base":
        router.lanes.fixed.without_sites()
    if name == "compiled_apart":
        router.lanes.fixed.operation = top_rocs
    return router


def embedder_of(pool: Pool) -> Embedder:
    """The pool's."""
    return pool.embedder.load(pool.path)


def contender(name: str, router: HiLoRA, work: Workload) -> Contender:
    """What answers the batch."""
    prompts = list(work.prompts)
    if name == "transformers":
        model, tokenizer = router.model, router.tokenizer
        ids, mask = pad_batch(encode_prompts(prompts, tokenizer), pad_id(tokenizer), left=True)

        def generate(new_tokens: int) -> object:
            with torch.inference_mode():
                return model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    do_sample=False,
                    pad_token_id=pad_id(tokenizer),
                    **fixed(new_tokens),
                )

        return Contender(name, generate, lambda: torch.empty(0))
    asked: dict[str, Any] = {"allow": [[own] for own in work.adapters]}
    if name in ("base", "compiled_base"):
        asked = {"allow": [[] for _ in prompts]}

    def run(new_tokens: int) -> object:
        return router.generate(prompts, batch_size=len(prompts), **fixed(new_tokens), **asked)

    return Contender(name, run, lambda: torch.empty(0))


def measure(args: argparse.Namespace, dtype: str, batch: int) -> Iterator[Line]:
    """A line: all contenders, interleaved."""
    pool = Pool.open(find_pool(args.pool))
    embedder = embedder_of(pool)
    adapters = min(args.adapters, batch)
    work = make_workload(
        sorted(pool.names), batch=batch, adapters=adapters, share="zipf", words=args.words, new_tokens=args.new_tokens
    )
    built, seconds = [], {}
    for name in NAMES:
        router = router_of(name, pool, embedder, dtype, sizes(args, batch))
        one = contender(name, router, work)
        if name in COMPILED:
            began = time.perf_counter()
            router.compile()
            seconds[name] = round(time.perf_counter() - began, 1)
            one.run(3)
            assert router.lanes.fixed.taken, "its steps are not the compiled ones"
        built.append(one)
    times = time_rounds(built, rounds=args.rounds, new_tokens=args.new_tokens, device=DEVICE)
    steps = {
        name: round(1e3 * statistics.median(seconds_of(each, "decode")) / (args.new_tokens - 1), 2)
        for name, each in times.items()
    }
    pairs = [(ours, base) for ours in NAMES[2:] for base in ("transformers", "base", "compiled_base") if ours != base]
    yield {
        **setup("benchmarks/compiled.py", seed=0, dtype=dtype, batch=batch, adapters=adapters, words=args.words),
        "step_ms": steps,
        "decode": {f"{one}/{other}": spread(in_rounds(times, one, other, "decode")) for one, other in pairs},
        "compile_s": seconds,
        "times": rounded(times),
    }


def sizes(args: argparse.Namespace, batch: int) -> Compile:
    """One step for the batch, with room for its tokens."""
    return Compile((batch,), (-(-(2 * args.words + args.new_tokens) // 64) * 64,), args.adapters, args.backend)


def start(args: argparse.Namespace, dtype: str, batch: int) -> Iterator[Line]:
    """Compiling in two processes, of which the second finds what the first has compiled."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            command = [sys.executable, __file__, "--once", dtype, str(batch), "--pool", str(find_pool(args.pool))]
            done = subprocess.run(
                command,
                env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": folder},
                capture_output=True,
                text=True,
                check=True,
            )
            found.append(json.loads(done.stdout.splitlines()[-1]))
    yield {
        **setup("benchmarks/compiled.py", seed=0, dtype=dtype, batch=batch),
        "first_s": found[0],
        "second_s": found[1],
    }


def once(args: argparse.Namespace, dtype: str, batch: int) -> float:
    """Seconds that compiling takes here."""
    pool = Pool.open(find_pool(args.pool))
    router = router_of("compiled_hilora", pool, embedder_of(pool), dtype, sizes(args, batch))
    router.batching  # noqa: B018  # known before
    began = time.perf_counter()
    router.compile()
    return round(time.perf_counter() - began, 1)


def on_page(page: str, lines: Sequence[Line]) -> str:
    """The page with the table of these lines in its place."""
    starts = [
        f"Compiling a step of {line['batch']} rows in {line['dtype']} took {line['first_s']:.0f} s, and "
        f"{line['second_s']:.0f} s in another process after it ({line['device']}, {line['threads']} threads)."
        for line in lines
        if "first_s" in line
    ]
    return placed(page, BEGIN, END, f"{table(lines)}\n\n{' '.join(starts)}")


def table(lines: Sequence[Line]) -> str:
    """Milliseconds of a token after the first, and speed beside the base's, as medians."""
    head = ("dtype, rows", *NAMES, "hilora / base", "compiled_hilora / base", "compiled_hilora / compiled_base")
    rows = []
    for line in (each for each in lines if "decode" in each):
        ratios = [f"{line['decode'][name.replace(' ', '')]['median']:.2f}" for name in head[1 + len(NAMES) :]]
        times = [f"{line['step_ms'][name]:.1f}" for name in NAMES]
        rows.append((f"{line['dtype']}, {line['batch']}", *times, *ratios))
    return markdown_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pool", default="flan-mini")
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--words", type=int, default=60)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--no-start", action="store_true", help="do not time compiling in new processes")
    parser.add_argument("--once", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="write the table of what --json holds there")
    args = parser.parse_args()
    if args.page:
        args.page.write_text(on_page(args.page.read_text(), list(read_lines(args.json))))
        return
    if args.once:
        print(once(args, args.once[0], int(args.once[1])))
        return
    if not args.no_start:
        add(args.json, start(args, args.dtypes[0], args.batches[-1]))
    for dtype in args.dtypes:
        for batch in args.batches:
            add(args.json, measure(args, dtype, batch))


if __name__ == "__main__":
    main()

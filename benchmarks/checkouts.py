"""Two checkouts of hilora timed in one sitting, so that a change of the code can be told from a mood of the machine.

    git worktree add ../before COMMIT
    python benchmarks/checkouts.py --before ../before --json benchmarks/checkouts.jsonl

Both are loaded into this process, each with a copy of the base model, and answer the same prompts in turn; every
other round goes the other way round:

prefill     a batch, one new token
whole       the same batch, all answers of --new-tokens
mixed       twice as many prompts as a batch holds; answers of up to four times that length, most of which end before

A file that there is gets the lines of another run.

Beside the wall clock it tells the processor's seconds, which others on the machine
disturb less.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from hilora.bench.rounds import turns
from hilora.bench.workload import make_workload
from hilora.evaluate.setup import setup
from hilora.evaluate.tables import markdown_table

HERE = Path(__file__).parents[1]
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
PARTS = ("prefill", "whole", "mixed")
ENDS = 8
"""In `mixed`, one token in so many ends an answer."""


@dataclass
class Checkout:
    """A copy of the package in this process, beside others of the same name.

    Args:
        folder: where it lies.
    """

    folder: Path
    modules: dict[str, ModuleType] = field(default_factory=dict)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """While the context is open, `hilora` is this one, for whatever is imported meanwhile."""
        others = _ours()
        for name in others:
            del sys.modules[name]
        sys.modules.update(self.modules)
        sys.path.insert(0, str(self.folder))
        try:
            yield
        finally:
            sys.path.remove(str(self.folder))
            self.modules = _ours()
            for name in self.modules:
                del sys.modules[name]
            sys.modules.update(others)


def _ours() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.split(".")[0] == "hilora"}


def load(checkout: Checkout, pool: Path, dtype: str) -> Any:
    """Its router."""
    with checkout():
        import hilora

        assert hilora.__file__ is not None
        assert Path(hilora.__file__).is_relative_to(checkout.folder)
        return hilora.HiLoRA.from_pretrained(pool=pool, method="hilora", dtype=dtype)


def measure(
    checkouts: Mapping[str, Checkout], routers: Mapping[str, Any], prompts: Sequence[str], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """A line for each turn that counts."""
    done, most = dict.fromkeys(checkouts, 0), args.new_tokens
    ends = list(range(0, next(iter(routers.values())).model.config.vocab_size, ENDS))
    asked: dict[str, tuple[Sequence[str], dict[str, Any]]] = {
        "prefill": (prompts, {"max_new_tokens": 1, "min_new_tokens": 1}),
        "whole": (prompts, {"max_new_tokens": most, "min_new_tokens": most}),
        "mixed": ([*prompts, *prompts[::-1]], {"max_new_tokens": 4 * most, "eos_token_id": ends}),
    }
    for name, counts in turns(list(checkouts), args.rounds):
        line: dict[str, Any] = {"checkout": name, "round": done[name]}
        for part in args.parts:
            texts, options = asked[part]
            began = {clock: read() for clock, read in CLOCKS.items()}
            with checkouts[name]():
                said = routers[name].generate(list(texts), batch_size=len(prompts), **options)
            line[part] = {clock: round(read() - began[clock], 4) for clock, read in CLOCKS.items()}
            line[part]["tokens"] = sum(answer.completion_tokens for answer in said)
        if counts:
            done[name] += 1
            yield line


def table(lines: Sequence[Mapping[str, Any]], parts: Sequence[str]) -> str:
    """Seconds of both, and the speed of the second over the first, round by round: median and quartiles."""
    rows = []
    for part in parts:
        for clock in CLOCKS:
            before, after = (
                [line[part][clock] for line in lines if line["checkout"] == name] for name in ("before", "after")
            )
            low, middle, high = statistics.quantiles([b / a for b, a in zip(before, after, strict=True)], n=4)
            seconds = (f"{statistics.median(before):.3f}", f"{statistics.median(after):.3f}")
            rows.append((part, clock, *seconds, f"{middle:.3f} ({low:.3f} to {high:.3f})"))
    return markdown_table(("part", "clock", "before, s", "after, s", "speed, after / before"), rows)


def commit_of(folder: Path) -> str:
    """Which commit lies there; "" outside of git."""
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    return asked.stdout.strip()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="another checkout; this one is `after`")
    parser.add_argument("--pool", type=Path, default=HERE / "pools" / "flan-mini")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error(f"--rounds {args.rounds}: quartiles need 2 and more")
    checkouts = {"before": Checkout(args.before.resolve()), "after": Checkout(HERE)}
    routers = {name: load(each, args.pool.resolve(), args.dtype) for name, each in checkouts.items()}
    words, sizes = {"share": "zipf", "words": 60, "new_tokens": args.new_tokens}, {"batch": args.batch}
    work = make_workload([str(i) for i in range(8)], adapters=min(8, args.batch), **words, **sizes)
    lines = []
    for line in measure(checkouts, routers, work.prompts, args):
        print(line, flush=True)
        lines.append(line)
    print(table(lines, args.parts))
    if args.json:
        commits = {name: commit_of(each.folder) for name, each in checkouts.items()}
        header = setup(
            "benchmarks/checkouts.py", dtype=args.dtype, new_tokens=args.new_tokens, commits=commits, **sizes
        )
        with args.json.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in [header, *lines])


if __name__ == "__main__":
    main()

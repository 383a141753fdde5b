"""Seconds from a cold process to an answer, and where they go.

    python benchmarks/start.py --adapters 1000 10000 --json benchmarks/start.jsonl

Every command runs in a process of its own, its files in the system's cache and compiled; medians of several runs. The
imports are those of `hilora route`, by `python -X importtime`: milliseconds of a package's own modules, the largest
first. --adapters adds pools of so many made adapters (`pool.py`), without statistics, and with those that
`hilora pool fit` keeps. Run it with nothing else on the machine.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from lines import Line, write
from pool import make_pool

from hilora import Pool
from hilora.bench.rounds import spread
from hilora.evaluate.setup import setup

PROMPT = "Is the sentiment of this review positive or negative? A film to fall asleep to."
COMMANDS = {
    "help": ["--help"],
    "route": ["route", PROMPT, "--method", "hilora"],
    "route, hilora-plus": ["route", PROMPT, "--method", "hilora-plus"],
    "generate, 16 tokens": ["generate", PROMPT, "--method", "hilora", "--max-new-tokens", "16"],
    "generate, 16 tokens, hilora-plus": ["generate", PROMPT, "--method", "hilora-plus", "--max-new-tokens", "16"],
}
LEARNER = "route, hilora-plus"
"""The command that statistics are kept for."""
IMPORT = re.compile(r"import time:\s*(\d+) \|\s*\d+ \|\s*(\S+)")
SHOWN = 12


def run(arguments: list[str], pool: str, *flags: str) -> tuple[float, str]:
    """Seconds of one process, and what it wrote to standard error."""
    more = [] if arguments == ["--help"] else ["--pool", pool]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, *flags, "-m", "hilora", *arguments, *more]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return time.perf_counter() - began, done.stderr


def imports(log: str) -> list[tuple[str, float]]:
    """Packages and the milliseconds of their own modules."""
    took: Counter[str] = Counter()
    for line in log.splitlines():
        if found := IMPORT.match(line):
            took[found[2].split(".")[0]] += int(found[1])
    return [(name, round(micro / 1000, 1)) for name, micro in took.most_common(SHOWN)]


def large(source: Pool, sizes: Sequence[int], runs: int) -> Iterator[Line]:
    """Lines of pools of made adapters: a cold process that fits, one that finds what was learned, what that takes."""
    # beside the source: hard links do not cross file systems
    with tempfile.TemporaryDirectory(dir=source.path.parent, prefix=".bench-") as folder:
        for size in sizes:
            pool = make_pool(source, size, Path(folder) / str(size))
            for how in ("fitted", "kept"):
                if how == "kept":
                    began = time.perf_counter()
                    path = pool.fit(always=True)
                    assert path is not None
                    took, number = time.perf_counter() - began, path.stat().st_size
                    yield {"adapters": size, "fit_s": round(took, 2), "mb": round(number / 1e6, 1)}
                run(COMMANDS[LEARNER], str(pool.path))
                values = [run(COMMANDS[LEARNER], str(pool.path))[0] for _ in range(runs)]
                yield {"command": LEARNER, "adapters": size, "statistics": how, "seconds": spread(values, 2)}


def measure(pool: str, runs: int, sizes: Sequence[int] = ()) -> Iterator[Line]:
    """All lines of results."""
    yield setup("benchmarks/start.py", runs=runs)
    for name, arguments in COMMANDS.items():
        run(arguments, pool)
        yield {"command": name, "seconds": spread([run(arguments, pool)[0] for _ in range(runs)], 2)}
    yield {"imports_ms": imports(run(COMMANDS["route"], pool, "-X", "importtime")[1])}
    yield from large(Pool.open(pool), sizes, runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pool", default="pools/flan-mini")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--adapters", type=int, nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    write(args.json, measure(args.pool, args.runs, args.adapters))


if __name__ == "__main__":
    main()

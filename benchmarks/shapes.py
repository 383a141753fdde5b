"""Memory that PyTorch keeps for products of ever new shapes, in bf16 on a CPU.

python benchmarks/shapes.py --json benchmarks/shapes.jsonl

A process of its own for each capacity of oneDNN's caches: 6,000 products of one weight, 64 x 64, with 1 to 3,000
rows, and the resident memory after every 500 of them. 1,024 is what PyTorch takes where nobody says otherwise.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from lines import Line, write

from hilora.evaluate.setup import setup

NAMES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
CAPACITIES = (1024, 512, 256, 128)
ROWS, PRODUCTS, EVERY = 3000, 6000, 500


def grow() -> list[int]:
    """Resident MiB before, and after every so many products."""
    torch.set_num_threads(1)
    weight, process = torch.randn(64, 64, dtype=torch.bfloat16), psutil.Process()
    found = [process.memory_info().rss >> 20]
    with torch.inference_mode():
        for number in range(1, PRODUCTS + 1):
            torch.nn.functional.linear(torch.randn(number % ROWS + 1, 64, dtype=torch.bfloat16), weight)
            if number % EVERY == 0:
                found.append(process.memory_info().rss >> 20)
    return found


def measure() -> Iterator[Line]:
    yield setup("benchmarks/shapes.py", products=PRODUCTS, rows=ROWS, every=EVERY)
    for capacity in CAPACITIES:
        env = os.environ | {name: str(capacity) for name in NAMES}
        told = subprocess.run(
            [sys.executable, __file__, "--one"], env=env, capture_output=True, check=True, text=True
        )
        yield {"capacity": capacity, "mib": [int(value) for value in told.stdout.split()]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", action="store_true", help="in this process, with the capacity of its environment")
    args = parser.parse_args()
    if args.one:
        print(*grow())
        return
    write(args.json, measure())


if __name__ == "__main__":
    main()

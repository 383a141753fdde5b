"""Throughput of hilora beside the base model and PEFT, along the axes that decide it.

    python benchmarks/throughput.py --json benchmarks/throughput.jsonl

Each case is a `hilora bench`: contenders that compute the same are compared first, then all are timed in interleaved
rounds. "Routed freely" chooses among all adapters of the pool; in the other cases a prompt is pinned to one, so that
the batch has as many adapters as the case says. Cases that the file has already from this processor are left; --only
names some. Adapters of cases that name a rank are random, as are base models "as wide as Llama-2-7B" (two layers).
Run it with nothing else on the machine.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lines import append
from made import random_pool, wide_base

from hilora import Pool
from hilora.bench.run import Settings, prepared
from hilora.evaluate.setup import setup
from hilora.jsonl import read_lines
from hilora.pool.source import find_pool

QV, ALL = ("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ARROW = ("base", "hilora", "arrow", "peft_arrow")
MIXED = ("base", "pinned", "oracle", "peft_single", "peft_mixed")
FREE = ("base", "hilora", "pinned")
FEW = ("base", "pinned")
SHORT = {"rounds": 3, "new_tokens": 16}
WIDE = "as wide as Llama-2-7B"
LAYERS = 2


@dataclass(frozen=True)
class Case:
    """What is timed, beside what `hilora bench` has by default.

    Attributes:
        name: of the case.
        base: of the random pool.
        rank, modules, count: of random adapters; rank None for pools/flan-mini.
        settings: of the bench.
    """

    name: str
    base: str = "smollm2-135m"
    rank: int | None = None
    modules: Sequence[str] = QV
    count: int = 8
    settings: dict[str, Any] = field(default_factory=dict)


def case(name: str, *, contenders: Sequence[str] = MIXED, **more: Any) -> Case:
    """A case whose other settings are the bench's; its method is the paper's, if no other is named."""
    own = {key: more.pop(key) for key in ("base", "rank", "modules", "count") if key in more}
    return Case(name, **own, settings={"contenders": contenders, "method": ("hilora", {}), **more})


CASES = (
    case("routed freely, batch 32", contenders=(*FREE, "oracle"), rounds=9, method=("hilora-plus", {})),
    case("beside PEFT, batch 32, 8 adapters", **SHORT),
    case("Arrow over 48", contenders=ARROW, rounds=2, new_tokens=8),
    case("hilora as printed, routed freely", contenders=FREE, rounds=9, method=("hilora", {})),
    case("batch 1", batch=1, adapters=1, rounds=9, new_tokens=16),
    case("batch 8, 8 adapters", batch=8, share="distinct", rounds=5, new_tokens=16),
    case("batch 64, 8 adapters", batch=64, contenders=FEW, **SHORT),
    case("identical", share="identical", contenders=FEW, **SHORT),
    case("32 distinct", adapters=32, share="distinct", rank=8, count=32, **SHORT),
    *(case(f"rank {rank}", rank=rank, contenders=FEW, **SHORT) for rank in (4, 16, 64)),
    case("all seven sites, rank 8", rank=8, modules=ALL, contenders=FEW, **SHORT),
    case("wide, q and v", base=WIDE, rank=8, rounds=2, new_tokens=8, batch=16, contenders=FEW),
    case("wide, all seven sites", base=WIDE, rank=8, modules=ALL, rounds=2, new_tokens=8, batch=16, contenders=FEW),
    case(
        "Arrow over 1,000",
        rank=8,
        count=1000,
        batch=8,
        adapters=4,
        arrow_adapters=1000,
        rounds=1,
        new_tokens=2,
        contenders=ARROW,
    ),
)


def measure(one: Case, source: str, folder: Path) -> dict[str, Any]:
    """Time a case."""
    pool, base = source, None
    if one.rank is not None:
        base = wide_base(folder / "base", LAYERS) if one.base == WIDE else one.base
        embedder = Pool.open(find_pool(source)).embedder
        pool = str(random_pool(folder, base, one.count, one.rank, one.modules, embedder).path)
    with prepared(pool, base, "bf16", Settings(**one.settings)) as ready:
        found = ready.run()
    for row in ready.table:
        print("  ".join(row), flush=True)
    about = {"case": one.name, "base": one.base, "modules": list(one.modules)}
    return about | {key: value for key, value in found.items() if key != "base"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    parser.add_argument("--pool", default="pools/flan-mini")
    parser.add_argument("--only", nargs="*", help="names of cases")
    args = parser.parse_args()
    done = set()
    if args.json.exists():
        here = setup("")["device"]
        done = {line["case"] for line in read_lines(args.json) if line["device"] == here}
    for one in CASES:
        if one.name in done or (args.only and one.name not in args.only):
            continue
        print(one.name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            append(args.json, measure(one, args.pool, Path(folder)))


if __name__ == "__main__":
    main()

"""A service shaken for a bounded time: adapters that come and go, processes killed, disks full, clients that misbehave.

python benchmarks/soak.py --json benchmarks/soak.jsonl                  every part, one after the other (hours)
python benchmarks/soak.py --part killed --scale 0.1                     one of them, a tenth as long
python benchmarks/soak.py --json benchmarks/soak.jsonl --table          writes benchmarks/soak.md from the rows

All of it is on this machine and on loopback. A row says what was done how often (`counts`), and what was wrong
(`wrong`, empty where nothing was); the command fails where anything was. Parts that are in the file are not run again.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lines import Line, add

from hilora.evaluate.setup import setup
from hilora.jsonl import read_lines

PARTS = {
    "churn": "Adapters come, change and go while many ask; each answer compared with the solo answer",
    "killed": "`kill -9` in the middle of uploads and of requests",
    "clashes": "Uploads of one name at the same time",
    "full": "A disk that is full at every write",
    "spoiled": "Files of a pool that are damaged while it is served",
    "downgraded": "Pools and states that a newer version has written",
}
"""Part -> what it does, in words. Each is `run(scale, home, seed)` in soaking/PART.py, which yields rows: what was
done, `counts` (name -> number), `wrong` (texts). `scale` is 1 for what the report shows, less for less of it."""


def measure(parts: Sequence[str], scale: float, seed: int, known: Sequence[Line]) -> Iterator[Line]:
    """Rows of every part that is not known."""
    for part in parts:
        if any(line.get("part") == part for line in known):
            continue
        with tempfile.TemporaryDirectory(prefix="soak-") as home:
            began = time.perf_counter()
            rows: list[Line] = []
            for row in importlib.import_module(f"soaking.{part}").run(scale, Path(home), seed):
                seconds = round(time.perf_counter() - began, 1)
                rows.append({"part": part, "scale": scale, "seconds": seconds, **row})
            yield from rows  # a part that breaks off leaves none


def table(lines: Sequence[Line]) -> str:
    """The report."""
    rows = [line for line in lines if "part" in line]
    out = ["# What was shaken", "", "Made by `python benchmarks/soak.py --table` from soak.jsonl.", ""]
    for part, about in PARTS.items():
        out += [f"## {about}", "", "| | counts | wrong |", "|---|---|---|"]
        for row in (row for row in rows if row["part"] == part):
            counts = ", ".join(f"{name}: {value:,}" for name, value in row["counts"].items())
            out.append(f"| {row['what']} | {counts} | {len(row['wrong']) or 'nothing'} |")
        out.append("")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    known = list(read_lines(args.json)) if args.json and args.json.exists() else []
    if args.table:
        (Path(__file__).parent / "soak.md").write_text(table(known))
        return
    if not known:
        add(args.json, [setup("benchmarks/soak.py", seed=args.seed, scale=args.scale)])
    wrong: list[Any] = []

    def watched() -> Iterator[Line]:
        for line in measure(args.part, args.scale, args.seed, known):
            wrong.extend(line["wrong"])
            yield line

    add(args.json, watched())
    if wrong:
        raise SystemExit(f"{len(wrong)} things were wrong: {wrong[:5]}")


if __name__ == "__main__":
    main()

"""hilora on a GPU: the same answers as on the CPU, how near it comes to the base's speed, and why.

    PYTHONPATH=. python benchmarks/gpu.py        # every part, within twelve minutes, on the card that torch finds
    PYTHONPATH=. python benchmarks/gpu.py --parts equality eager --minutes 5
    python benchmarks/gpu.py --table             # writes benchmarks/gpu.md from the rows

It needs hilora, torch, transformers and pytest, and PEFT for its own rows: neither pools nor data, and no network.
Base (Llama-2-7B's shape, bf16), tokenizer, embedder (all-MiniLM-L6-v2's shape) and adapters are random and made on
the spot. A row is appended as soon as it is known; what is done already at this commit, with these versions, on this
device, is left, unless --again. No measurement begins once --minutes are over. --tiny is a rehearsal on a CPU; its
rows are never shown. Nothing else may run on the card.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from gpuing import compiled, eager, equal, page, tables
from gpuing.room import Room
from gpuing.sizes import FULL, TINY, Size
from lines import Line, append

from hilora.evaluate.setup import setup
from hilora.jsonl import read_lines

HERE = Path(__file__).parent
PARTS = ("equality", "eager", "compiled", "compiled-all", "tables", "fig5", "fig7b")
CACHE = "TORCHINDUCTOR_CACHE_DIR"
SAME = ("size", "seed", "commit", "hilora", "torch", "transformers", "device")
"""What rows have in common that one run may take over from another."""


def measurements(size: Size) -> dict[str, dict[str, Any]]:
    """Part -> its measurements by name, in their order."""
    found = {
        "equality": equal.measurements(size),
        "eager": eager.MEASUREMENTS,
        "compiled": compiled.MEASUREMENTS,
        "compiled-all": compiled.MORE,
        **tables.measurements(size),
    }
    assert tuple(found) == PARTS
    return found


def commit_of(given: str | None) -> str:
    """Which commit this is; what is not committed is told by a plus."""

    def git(*words: str) -> str:
        with suppress(OSError):  # there is no git
            return subprocess.run(
                ["git", *words], cwd=HERE, capture_output=True, text=True, check=False
            ).stdout.strip()
        return ""

    if given or not git("rev-parse", "HEAD"):
        return given or "unknown"
    return git("rev-parse", "HEAD")[:12] + "+" * bool(git("status", "--porcelain", "--", "../hilora", "."))


def about(args: argparse.Namespace, size: Size) -> Line:
    """What every row tells of how it came about."""
    command = " ".join(["python benchmarks/gpu.py", *sys.argv[1:]])
    found = setup("benchmarks/gpu.py", commit=commit_of(args.commit), seed=args.seed, size=size.name, command=command)
    if not args.device.startswith("cuda"):
        found["device"] = "CPU"
    return found | {"date": f"{datetime.now(UTC):%Y-%m-%d}", "dtype": size.dtype, "peft": _peft_version()}


def _peft_version() -> str:
    try:
        import peft
    except ImportError:
        return "none"
    return str(peft.__version__)


@contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """What torch compiles is kept in a folder that is empty at first; a second process finds it there."""
    before = os.environ.get(CACHE)
    os.environ[CACHE] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(CACHE)
        os.environ.update({CACHE: before} if before is not None else {})


def measure(room: Room, parts: Sequence[str], minutes: float, header: Line, known: Sequence[Line]) -> Iterator[Line]:
    """Rows of every measurement that is not known, until the time is over."""
    began = time.perf_counter()
    alike = [line for line in known if all(line.get(name) == header[name] for name in SAME)]
    done = {(line["part"], line["what"]) for line in alike if "took_s" in line}
    for part in parts:
        for what, run in measurements(room.size)[part].items():
            if (part, what) in done:
                continue
            start = time.perf_counter() - began
            if start > 60 * minutes:
                print(f"{start:.0f} s: no time is left for {part}: {what}", flush=True)
                continue
            print(f"{start:.0f} s: {part}: {what}", flush=True)
            own = header | {"part": part, "what": what}
            try:
                for row in run(room):
                    yield own | row
            except Exception as error:  # noqa: BLE001  # what comes after is measured all the same
                traceback.print_exc()
                yield own | {"wrong": [f"{type(error).__name__}: {error}"[:500]]}
                continue
            yield own | {"took_s": round(time.perf_counter() - began - start, 1)}


def brief(row: Line, header: Line) -> str:
    """A row for the eye: neither the setup nor what is long."""
    kept = {name: value for name, value in row.items() if name not in header and name not in ("part", "what")}
    return json.dumps({name: value for name, value in kept.items() if name != "seconds"})[:600]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=11.0, help="after these no measurement begins")
    parser.add_argument("--again", action="store_true", help="measure what is known, too")
    parser.add_argument("--tiny", action="store_true", help="rehearse at a tiny size")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", help="where git cannot tell")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    parser.add_argument("--table", action="store_true", help="write the page")
    parser.add_argument("--second", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    size = TINY if args.tiny else FULL
    known = list(read_lines(args.json)) if args.json.exists() else []
    if args.table:
        args.json.with_suffix(".md").write_text(page.page(known))
        return
    if not args.tiny and not args.device.startswith("cuda"):
        raise SystemExit("No CUDA device is here. --tiny rehearses on the CPU.")
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        room = Room(size, Path(folder), args.device, args.seed)
        if args.second:
            print(json.dumps(compiled.in_second(room, args.second)), flush=True)
            return
        header = about(args, size)
        print(json.dumps(header), flush=True)
        with own_cache(Path(folder) / "compiled"):
            for row in measure(room, args.parts, args.minutes, header, [] if args.again else known):
                append(args.json, row)
                print("   ", brief(row, header), flush=True)
                wrong += len(row.get("wrong", ()))
    if wrong:
        raise SystemExit(f"{wrong} things were wrong; the rows tell.")


if __name__ == "__main__":
    main()

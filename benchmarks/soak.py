"""A service shaken for a bounded time: adapters that come and go, servers killed, memory watched.

    python benchmarks/soak.py --json benchmarks/soak.jsonl              # every part, one after the other
    python benchmarks/soak.py --part killed --scale 0.1                 # one of them, a tenth as long
    python benchmarks/soak.py --json benchmarks/soak.jsonl --table      # writes benchmarks/soak.md from the rows

All of it is on this machine and on loopback. A row says what was done how often (`counts`), and what was wrong
(`wrong`, empty where nothing was); the command fails where anything was. Parts that the file has are not run again.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lines import Line, add

from hilora.evaluate.setup import setup
from hilora.evaluate.tables import markdown_table
from hilora.jsonl import read_lines

PARTS = {
    "churn": (
        "Adapters that come and go",
        "A tiny base in fp64, its service in one process with 16 clients who ask all the time: whole answers and "
        "streams, routed by several methods, to adapters by name and by hash, among some, to the base; a quarter of"
        " them leave. Meanwhile adapters are added, replaced, deleted, disabled and enabled at random, over HTTP, "
        "by the library and by the command line. Each answer is compared with the one that a router of its own "
        "gives over the version of the pool that the answer names: adapters, ROCs and text have to be the same.",
    ),
    "churn-default": (
        "The same on flan-mini and its own base",
        "In fp32, where a sum over a batch rounds otherwise than one over a row: an answer may have another token "
        "where the prompt alone has logits within 0.001 of each other.",
    ),
    "killed": (
        "`kill -9` at any moment",
        "`hilora serve` in a process of its own is killed while two clients upload, replace and remove adapters and"
        " three others ask; some times what checks an upload is killed before. After each kill a server is started "
        "on the same pool. All that was told to be live has to be there and whole, all that was told to be gone "
        "gone, nothing may be half done, and no text of a sample, lease of the dead or, a minute later, process may"
        " be left.",
    ),
    "flat": (
        "Memory, files and threads over time",
        "`hilora serve` in a process of its own, while clients ask and adapters come and go. Once a second its "
        "resident memory, open files, threads and child processes are read. A fifth of the time, and a minute, are "
        "left out at first, while all warms up; of the rest the last quarter is compared with the first; shown are "
        "medians. Memory may be 5 % more; the fewest files, threads and processes may not be more than the median "
        "was. In fp32: in bf16, PyTorch on a CPU keeps what it has prepared for each shape of a product, and grows "
        "by hundreds of megabytes meanwhile.",
    ),
    "clients": (
        "Clients that misbehave",
        "Raw sockets at `hilora serve`: headers and bodies that never end, readers who do not read, clients that "
        "vanish, requests that are odd by HTTP's own rules, and more connections than files may be open. Meanwhile "
        "one who behaves asks on. None may be held for ever, the server may run out of nothing, and memory, files, "
        "threads and the line return to what they were.",
    ),
    "malformed": (
        "Requests that are nearly right, and rubbish",
        "Made by schemathesis of the OpenAPI document, and by hypothesis of bodies that are right but for one "
        "place; broken JSON, odd paths, methods and forms. No answer may be a failure of the server, hold a "
        "traceback or a path, or have another form than OpenAI's.",
    ),
    "longest": (
        "Prompts as long as the context",
        "One token less than the context, as many, one more, beside short prompts that stream: these have to go on,"
        " and all answers have to be those that each gets alone.",
    ),
    "crowded": (
        "More clients than places",
        "64 clients for a line of 32, with tenants: each request is answered or refused, once, with the time after "
        "which it finds a place; who asks without end keeps nobody out; the counters agree with what clients saw.",
    ),
    "clashes": (
        "Uploads of one name at the same time",
        "The same content, and different ones, by POST, PUT and beside a DELETE, at many timings: one content wins,"
        " the same content gives the same result, others are told of it; nothing stays open or reserved.",
    ),
    "full": (
        "A disk that is full at every write",
        "The pool on a file system of its own, with so many bytes free, and so many more each time, through all "
        "that an upload, a removal, a token and a change by the library write. Each has to be refused in clear "
        "words or done, never half; requests go on; what is left for `hilora pool prune` is counted.",
    ),
    "spoiled": (
        "Damaged files of a pool that is served",
        "Weights, samples and canonical forms are cut, changed and deleted under a server: the adapter is taken "
        "out, all others go on, and it comes back when the file does.",
    ),
    "clock": (
        "Clocks that are set",
        "The clock of a server goes back and forward by a day and a year while it runs and between runs, and the "
        "time of the pool's manifest with it: uploads, tokens, changes, leases, restarts and `prune` go by what came "
        "when.",
    ),
    "downgraded": (
        "Pools and states that a later version has written",
        "They are refused in words that say what to do, and nothing is changed; what is older is read.",
    ),
}
"""Part -> its title, and what is done and looked at. Each is `run(scale, home, seed)` in soaking/PART.py (where a
dash is an underscore): its rows tell what was done, `counts` (name -> number) and `wrong` (texts). `scale` is 1 for
what the report shows, less for less of it."""

SHOWN = 20
"""Things that were wrong, of one row, at most."""


def measure(parts: Sequence[str], scale: float, seed: int, known: Sequence[Line]) -> Iterator[Line]:
    """Rows of every part that is not known."""
    for part in parts:
        if any(line.get("part") == part for line in known):
            continue
        with tempfile.TemporaryDirectory(prefix="soak-") as home:
            began = time.perf_counter()
            rows: list[Line] = []
            for row in importlib.import_module(f"soaking.{part.replace('-', '_')}").run(scale, Path(home), seed):
                seconds = round(time.perf_counter() - began, 1)
                rows.append({"part": part, "scale": scale, "seconds": seconds, **row})
            yield from rows  # a part that breaks off leaves none


def table(lines: Sequence[Line]) -> str:
    """The report."""
    rows = [line for line in lines if "part" in line]
    took = {part: max((row["seconds"] for row in rows if row["part"] == part), default=0.0) for part in PARTS}
    wrong = sum(len(row["wrong"]) for row in rows)
    out = ["# A service, shaken", "", "Made by `python benchmarks/soak.py --json benchmarks/soak.jsonl --table`."]
    for about in (line for line in lines if "setup" in line):
        out += [
            "",
            f"{about['date']}, {about['device']}, {about['threads']} threads, torch {about['torch']}, transformers "
            f"{about['transformers']}, hilora {about['hilora']}: `{about['command']}`.",
        ]
    told = "Nothing was wrong" if not wrong else f"{wrong:,} things were wrong"
    out += ["", f"{told} in {_minutes(sum(took.values()))} altogether.", ""]
    for part, (title, about) in PARTS.items():
        if not any(row["part"] == part for row in rows):
            continue
        out += [f"## {title}", "", about, ""]
        for row in (row for row in rows if row["part"] == part):
            cells = [(name, f"{value:,}") for name, value in row["counts"].items()]
            cells.append(("**wrong**", f"**{len(row['wrong']) or 'nothing'}**"))
            out += [markdown_table((row["what"], ""), cells), ""]
            out += [f"* {text}" for text in row["wrong"][:SHOWN]] + [""] * bool(row["wrong"])
        scales = {row["scale"] for row in rows if row["part"] == part} - {1.0}
        out += [f"It took {_minutes(took[part])}{''.join(f', at scale {scale:g}' for scale in scales)}.", ""]
    return "\n".join(out)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=[*PARTS], default=list(PARTS))
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
        about = {"seed": args.seed, "date": f"{datetime.now(UTC):%Y-%m-%d}"}
        add(args.json, [setup("benchmarks/soak.py", command="python benchmarks/soak.py", **about)])
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

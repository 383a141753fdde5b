"""The page of all benchmarks, README.md, from their JSON Lines: targets beside what was measured, and tables.

python benchmarks/targets.py
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hilora.bench.rounds import in_rounds, seconds_of
from hilora.evaluate.tables import markdown_table
from hilora.jsonl import read_lines

HERE = Path(__file__).parent
Line = dict[str, Any]
MAIN = "batch 32, 8 adapters, zipf"
PEFT = "... beside PEFT"
DISTINCT = "32 distinct"
ARROW = "Arrow over 48"
MANY = "Arrow over 1,000"

HEAD = """# Benchmarks

Made by `python benchmarks/targets.py` from the files beside it. Each is a command, run alone on the machine:

    python benchmarks/throughput.py --json benchmarks/throughput.jsonl     # half an hour; `hilora bench` on yours
    python benchmarks/forms.py --json benchmarks/forms.jsonl               # a decoding step, piece by piece
    python benchmarks/selection.py --adapters 5 100 1000 10000 1000000 --json benchmarks/selection.jsonl
    python benchmarks/pool.py --json benchmarks/pool.jsonl
    python benchmarks/start.py --json benchmarks/start.jsonl
    python benchmarks/embedding.py --data RAMOLE48 --json benchmarks/embedding.jsonl
    python benchmarks/ending.py --json benchmarks/ending.jsonl --alone     # Ctrl-C, break, a closed pipe
    python benchmarks/architectures.py --json benchmarks/architectures.jsonl --page docs/architectures.md
    python benchmarks/cost.py --measure                                    # cost.md: counted, for larger models too
"""


MISSED = """## What is missed, and why

* **hilora / base at SmolLM2's width.** Reading: the embedder is a tenth of this base by arithmetic, and most of
  the loss (table "Embedding"); it needs a smaller embedder or a larger base. Decoding: hooks that do nothing and
  the two products already cost what the table of pieces says, since each call starts for longer than it computes
  at this width; it needs one kernel for all of a layer's small operations. At the widths of Llama-2-7B the target
  is met for q and v.
* **rank 64, all seven sites.** Bytes: the batch's adapters are then a large part of what a layer reads
  (`cost.md`).
* **PEFT, one adapter and mixed.** The base without any adapter is not that many times as fast on this processor
  (the rows "base / ..."), so no way to serve adapters could be.
"""


def read(home: Path, name: str) -> list[Line]:
    """The lines of one benchmark; none if it has not run."""
    path = home / f"{name}.jsonl"
    return read_lines(path) if path.exists() else []


def pick(lines: Sequence[Line], **wanted: Any) -> Line | None:
    """The last line with these values."""
    found = [line for line in lines if all(line.get(key) == value for key, value in wanted.items())]
    return found[-1] if found else None


def ratio(line: Line, one: str, other: str, part: str = "whole") -> str:
    """Throughput of one contender over another's: median and range over the rounds."""
    rounds = in_rounds(line["seconds"], one, other, part)
    return f"{statistics.median(rounds):.2f} ({min(rounds):.2f} to {max(rounds):.2f})"


def token_targets(lines: Sequence[Line]) -> list[tuple[str, str, str]]:
    """What the token level should reach."""
    rows = []
    for name, one, other, least in (
        (MAIN, "hilora", "base", ">= 0.95"),
        (PEFT, "hilora", "peft_single", ">= 1.8"),
        (DISTINCT, "hilora", "peft_mixed", ">= 4"),
        (ARROW, "arrow", "peft_arrow", ">= 3"),
        (ARROW, "hilora", "peft_arrow", ">= 5"),
        (MANY, "hilora", "peft_arrow", ">= 50"),
    ):
        line = pick(lines, case=name)
        if line and {one, other} <= line["seconds"].keys():
            rows.append((f"{one} / {other}: {name}", least, ratio(line, one, other)))
            if other == "base":
                rows += [(f"... {p}", "-", ratio(line, one, other, p)) for p in ("prefill", "decode")]
            elif one == "hilora":
                rows.append((f"... base / {other}", "-", ratio(line, "base", other)))
    return rows


def selection_targets(lines: Sequence[Line]) -> list[tuple[str, str, str]]:
    """What selection should reach."""
    rows = []
    for what, count, most in (
        ("tied, exact", 10_000, "<= 0.6 ms"),
        ("tied, indexed", 10_000, "<= 0.4 ms"),
        ("tied, indexed", 1_000_000, "<= 4 ms"),
    ):
        if line := pick(lines, what=what, adapters=count):
            rows.append(
                (f"one prompt, {what}, {count:,} adapters", most, f"{line['p50_ms']} ms (95 %: {line['p95_ms']})")
            )
            if "agreement" in line:
                told = f"{100 * line['agreement']:.2f} +- {100 * line['half_width']:.2f} %"
                rows.append(("... the exact best eight", ">= 99.9 %", told))
            if count > 10_000:
                rows.append(
                    ("... memory: means and index", "< 2000 MB", f"{line['means_mb'] + line['search_mb']} MB")
                )
    return rows


def other_targets(home: Path) -> list[tuple[str, str, str]]:
    """What pools, start and embedding should reach."""
    rows: list[tuple[str, str, str]] = []
    pools = read(home, "pool")
    if line := pick(pools, registered=2000, batch=32):
        rows.append(("throughput with 2,000 adapters, of that with 5", ">= 0.97", f"{line['of_smallest']:.3f}"))
    if line := next((line for line in pools if "cold_ms" in line), None):
        rows.append(("first use of a cold adapter", "<= 10 ms", _spread(line["cold_ms"], "ms")))
    for line in pools:
        if line.get("registered") == 10_000 and "open_s" in line:
            rows.append(("opening a pool of 10,000", "<= 1 s", _spread(line["open_s"], "s")))
            rows.append(("adding an adapter to it", "<= 0.1 s", _spread(line["add_s"], "s")))
    starts = read(home, "start")
    for name, most in (("route", "<= 4 s"), ("generate, 16 tokens", "<= 8 s")):
        if line := pick(starts, command=name):
            rows.append((f"`hilora {name}`, cold process", most, _spread(line["seconds"], "s")))
    embedding = read(home, "embedding")
    tops = {(line["dtype"], line["method"]): line["top"] for line in embedding if "top" in line}
    for method in dict.fromkeys(method for _, method in tops):
        gaps = [tops["bf16", method][k] - tops["fp32", method][k] for k in tops["fp32", method]]
        told = ", ".join(f"{gap:+.2f}" for gap in gaps)
        rows.append((f"{method}: top 1, 3, 5, 8 with bf16 embeddings less fp32", "within 0.2", told))
    return rows


def _spread(found: dict[str, float], unit: str) -> str:
    return f"{found['median']} {unit} ({found['least']} to {found['most']})"


def throughput_table(lines: Sequence[Line]) -> str:
    """Every case."""
    rows = []
    first = (MAIN, PEFT)
    for line in sorted(lines, key=lambda line: first.index(line["case"]) if line["case"] in first else len(first)):
        cells = [ratio(line, "hilora", "base", part) for part in ("whole", "prefill", "decode")]
        for other in ("peft_single", "peft_mixed", "peft_arrow"):
            cells.append(ratio(line, "hilora", other) if other in line["seconds"] else "-")
        speed = line["tokens"]["new"] / statistics.median(seconds_of(line["seconds"]["hilora"], "decode"))
        alone = ", one thread" if line["threads"] == 1 else ""
        rows.append((line["case"] + alone, *cells, f"{speed:.0f}"))
    heading = [
        "case",
        "of base",
        "prefill",
        "decode",
        "of peft_single",
        "of peft_mixed",
        "of peft_arrow",
        "new tokens/s",
    ]
    return markdown_table(heading, rows)


def selection_table(lines: Sequence[Line]) -> str:
    """Every size."""
    rows = []
    for line in lines:
        if "p50_ms" in line:
            kept = "-" if "means_mb" not in line else str(line["means_mb"] + line["search_mb"])
            fit = line.get("fit_s", line.get("build_s", "-"))
            same = f"{100 * line['agreement']:.2f}" if "agreement" in line else "-"
            cells = (line["what"], f"{line.get('adapters', 0):,}", str(line["p50_ms"]), str(line["p95_ms"]))
            rows.append((*cells, same, kept, str(fit)))
    return markdown_table(
        ["what", "adapters", "p50, ms", "p95, ms", "of the best eight, %", "memory, MB", "fit, s"], rows
    )


def steps_table(lines: Sequence[Line]) -> str:
    """A decoding step under each contender: its speed over the base's; the base's milliseconds."""
    steps = [line for line in lines if line["what"] == "steps"]
    names = [
        name for name, each in steps[0].items() if isinstance(each, dict) and "of_base" in each and name != "base"
    ]
    rows = [
        (line["batch"], line["rocs"], _spread(line["base"]["ms"], "ms"), *(line[name]["of_base"] for name in names))
        for line in steps
    ]
    return markdown_table(["batch", "ROCs a site", "base", *names], [tuple(map(str, row)) for row in rows])


def forms_table(lines: Sequence[Line]) -> str:
    """Both forms of prefill, by how much gathering spares."""
    cells = sorted(
        (
            (line["spared"], line["tokens"], line["adapters"], line["used"], *_medians(line))
            for line in lines
            if line["what"] == "forms"
        ),
    )
    heading = ["tokens spared", "tokens of a row", "adapters", "used by a row", "stacked, ms", "gathered, ms"]
    return markdown_table(heading, [(f"{row[0]:.0f}", *map(str, row[1:])) for row in cells])


def _medians(line: Line) -> tuple[float, float]:
    return line["stacked"]["median"], line["gathered"]["median"]


def pool_table(lines: Sequence[Line]) -> str:
    """Every size."""
    cells = [
        (
            f"{x['registered']:,}",
            str(x["distinct"]),
            str(x["tokens_per_s"]),
            f"{x['of_smallest']:.3f}",
            str(x["fit_s"]),
        )
        for x in lines
    ]
    heading = ["adapters registered", "distinct in the batch", "tokens/s", "of the smallest pool", "fit, s"]
    return markdown_table(heading, cells)


def embedding_table(lines: Sequence[Line]) -> str:
    """Time and retrieval of each form of the embedder."""
    times = {line["batch"]: line["ms"] for line in lines if "ms" in line}
    tops = {(line["dtype"], line["method"]): line["top"]["1"] for line in lines if "top" in line}
    methods = list(dict.fromkeys(method for _, method in tops))
    cells = []
    for form in dict.fromkeys(form for found in times.values() for form in found):
        own = [f"{tops[form, method]:.2f}" if (form, method) in tops else "-" for method in methods]
        cells.append([form, *(f"{found[form]:.1f}" for found in times.values()), *own])
    return markdown_table(["form", *map(str, times), *methods], cells)


def device(line: Line) -> str:
    """What a benchmark ran on."""
    return "{device}, {threads} threads, torch {torch}".format(**line)


def ending_table(lines: Sequence[Line]) -> str:
    """Tokens and seconds after nobody wants an answer any more."""
    heading = ("how", "runs", "tokens after", "seconds: median (range)", "which are")
    rows = [
        (
            line["case"],
            str(len(line["tokens_after"])),
            f"{min(line['tokens_after'])} to {max(line['tokens_after'])}",
            "{median} ({least} to {most})".format(**line["seconds"]),
            line["seconds_are"],
        )
        for line in lines
        if "tokens_after" in line
    ]
    return markdown_table(heading, rows)


def page(home: Path) -> str:
    """README.md."""
    names = ("throughput", "forms", "selection", "pool", "start", "embedding")
    throughput, forms, selection, pools, starts, embedding = (read(home, name) for name in names)
    targets = token_targets(throughput) + selection_targets(selection) + other_targets(home)
    parts = [HEAD, "## Targets", "", markdown_table(["", "target", "measured"], targets), "", MISSED]
    if throughput:
        line = throughput[0]
        parts += [
            "## Throughput",
            "",
            "{told}, {dtype}, PEFT {peft};".format(told=device(line), **line),
            "median and range of the ratio in each of the interleaved rounds; hilora embeds and routes every prompt.",
            "",
            throughput_table(throughput),
            "",
        ]
    if forms:
        parts += [
            "## A decoding step, piece by piece",
            "",
            f"{device(forms[0])}. Of the base's speed, prompts already read: hooks that do nothing, with x @ down,",
            "with z @ up too, with the sums too; the base with one product for q, k and v; the oracle and hilora as",
            "they are, and with hooks only.",
            "",
            steps_table(forms),
            "",
            "Forms of reading prompts (q and v, 32 rows):",
            "",
            forms_table(forms),
            "",
        ]
    if selection:
        parts += ["## Selection", "", f"{device(selection[0])}.", "", selection_table(selection), ""]
    if rows := [line for line in pools if "tokens_per_s" in line]:
        parts += ["## Pool size", "", f"{device(pools[0])}.", "", pool_table(rows), ""]
    if imports := next((line["imports_ms"] for line in starts if "imports_ms" in line), None):
        told = ", ".join(f"{name} {ms:.0f}" for name, ms in imports)
        parts += ["## Start", "", f"{device(starts[0])}. Imports of `hilora route`, milliseconds:", "", told, ""]
    if embedding:
        about = "Milliseconds for 1, 8 and 32 prompts of 60 words, and prompts whose own adapter is first, percent."
        parts += ["## Embedding", "", f"{device(embedding[0])}. {about}", "", embedding_table(embedding), ""]
    if ending := read(home, "ending"):
        about = (
            "Answers that nobody wants any more: tokens that are still generated (a step that has begun is not "
            "counted), and seconds until all has ended, of a command with its process."
        )
        parts += ["## Ending", "", f"{device(ending[0])}. {about}", "", ending_table(ending), ""]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--home", type=Path, default=HERE, help="where the JSON Lines lie")
    args = parser.parse_args()
    (args.home / "README.md").write_text(page(args.home))


if __name__ == "__main__":
    main()

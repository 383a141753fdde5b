"""The page of all benchmarks, README.md, from their JSON Lines: targets beside what was measured, and tables.

python benchmarks/targets.py
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from growing import ends_table, grown_table, uploads_table
from shared_steps import checkouts_table, same_text, serve_table
from strangers import capture_parts

from hilora.bench.rounds import in_rounds, seconds_of
from hilora.evaluate.goals import is_met, shown
from hilora.evaluate.tables import markdown_table
from hilora.jsonl import read_lines

HERE = Path(__file__).parent
Line = dict[str, Any]
Row = tuple[str, str, str, str]
"""What, its target, what was measured, and the verdict."""
NONE = "-"
MAIN = "routed freely, batch 32"
PEFT = "beside PEFT, batch 32, 8 adapters"
DISTINCT = "32 distinct"
ARROW = "Arrow over 48"
MANY = "Arrow over 1,000"

HEAD = """# Benchmarks

Made by `python benchmarks/targets.py` from the files beside it. Each is a command, run alone on the machine:

    python benchmarks/throughput.py --json benchmarks/throughput.jsonl     # half an hour; `hilora bench` on yours
    python benchmarks/forms.py --json benchmarks/forms.jsonl               # a decoding step, piece by piece
    python benchmarks/selection.py --adapters 5 100 1000 10000 1000000 --near 1000 10000 100000 \\
        --json benchmarks/selection.jsonl
    python benchmarks/pool.py --json benchmarks/pool.jsonl
    python benchmarks/start.py --adapters 1000 10000 --json benchmarks/start.jsonl
    python benchmarks/embedding.py --data RAMOLE48 --json benchmarks/embedding.jsonl
    python benchmarks/ending.py --json benchmarks/ending.jsonl --alone     # Ctrl-C, break, a closed pipe
    python benchmarks/arrivals.py --json benchmarks/arrivals.jsonl         # requests that arrive at random
    python benchmarks/changes.py --json benchmarks/changes.jsonl           # rows and adapters that come and go
    python benchmarks/checkouts.py --before ../58000a8 --dtype fp32 --new-tokens 32 --json benchmarks/checkouts.jsonl
    python benchmarks/checkouts.py --before ../82a4418 --dtype fp32 --new-tokens 32 --rounds 6 \\
        --parts prefill whole --json benchmarks/checkouts-gpu.jsonl
    python benchmarks/compiled.py --json benchmarks/compiled.jsonl         # compiled steps on a CPU: docs/compiled.md
    python benchmarks/same.py --json benchmarks/same.jsonl                 # answers together against each alone
    python benchmarks/serve.py --json benchmarks/serve.jsonl               # a server under load
    python benchmarks/uploads.py --json benchmarks/uploads.jsonl           # uploads to a server at work
    python benchmarks/soak.py --json benchmarks/soak.jsonl                 # a server shaken for an hour: soak.md
    python benchmarks/shapes.py --json benchmarks/shapes.jsonl             # memory that bf16 on a CPU takes
    python benchmarks/epochs.py --data FLAN_MINI/val --json benchmarks/epochs.jsonl    # pools that grow
    python benchmarks/capture.py --json benchmarks/capture.jsonl           # whom the bound on uploads refuses
    python benchmarks/architectures.py --json benchmarks/architectures.jsonl --page docs/architectures.md
    python benchmarks/quantised.py --data FLAN_MINI/val --json benchmarks/quantised.jsonl --page docs/gpus.md
    python benchmarks/quantisers.py --json benchmarks/quantisers.jsonl --page docs/gpus.md    # kinds of them
    python benchmarks/cold.py                                              # an adapter's first use, in its parts
    python benchmarks/compositions.py --data RAMOLE48/test_half.jsonl --json benchmarks/compositions.jsonl \\
        --page docs/vllm.md                                                # what a grid of weights costs
    python benchmarks/gateway.py --json benchmarks/gateway.jsonl           # what a gateway adds to a request
    python benchmarks/in_vllm.py --data RAMOLE48/test_half.jsonl --json benchmarks/in_vllm.jsonl    # inside vLLM
    python benchmarks/equal_in_vllm.py --page docs/vllm.md                 # how equal it is to the library there
    python benchmarks/cost.py --measure                                    # cost.md: counted, for larger models too
    python benchmarks/gpu.py                                               # on a card, by itself: gpu.md
"""


MISSED = """## What is missed, and why

* **hilora / base at SmolLM2's width.** Reading: the embedder is a tenth of this base by arithmetic, and most of
  the loss (table "Embedding"); it needs a smaller embedder or a larger base. Decoding: hooks that do nothing and
  the two products already cost what the table of pieces says, since each call starts for longer than it computes
  at this width; it needs one kernel for all of a layer's small operations. At the widths of Llama-2-7B the target
  is met for q and v.
* **rank 64, all seven sites.** Bytes: the batch's adapters are then a large part of what a layer reads
  (`cost.md`).
* **Selection on the second machine**, which takes three times as long as the first for an embedding and for the exact
  search alone (0.64 ms among 10,000, 80 ms among a million). The short list of `hilora-plus` needs that search, then
  rows of tables that lie far apart; among 100,000 the search is the largest part.
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


def ratio(line: Line, one: str, other: str, part: str = "whole", target: str = NONE) -> str:
    """Throughput of one contender over another's: median, as it stands to a target, and range over the rounds."""
    rounds = in_rounds(line["seconds"], one, other, part)
    median = statistics.median(rounds)
    told = f"{median:.2f}" if target == NONE else shown(median, target, 2)
    return f"{told} ({min(rounds):.2f} to {max(rounds):.2f})"


def judged(value: float, target: str) -> str:
    """Whether a figure meets its target, before it is rounded; nothing where there is none."""
    return "" if target == NONE else "met" if is_met(value, target) else "missed"


def token_targets(lines: Sequence[Line]) -> list[Row]:
    """What the token level should reach."""
    rows = []
    for name, one, other, least in (
        (MAIN, "hilora", "base", ">= 0.95"),
        (MAIN, "pinned", "base", "-"),
        (PEFT, "pinned", "peft_single", ">= 1.8"),
        (DISTINCT, "pinned", "peft_mixed", ">= 4"),
        (DISTINCT, "oracle", "peft_mixed", "-"),
        (ARROW, "arrow", "peft_arrow", ">= 3"),
        (ARROW, "hilora", "peft_arrow", ">= 5"),
        (MANY, "hilora", "peft_arrow", ">= 50"),
        (MANY, "arrow", "peft_arrow", NONE),
    ):
        line = pick(lines, case=name)
        if line and {one, other} <= line["seconds"].keys():
            median = statistics.median(in_rounds(line["seconds"], one, other, "whole"))
            told = ratio(line, one, other, target=least)
            rows.append((f"{one} / {other}: {name}", least, told, judged(median, least)))
            if other == "base" and one == "hilora":
                rows += [(f"... {p}", NONE, ratio(line, one, other, p), "") for p in ("prefill", "decode")]
            elif one != "oracle" and other != "base":
                rows.append((f"... base / {other}", NONE, ratio(line, "base", other), ""))
    return rows


def selection_targets(lines: Sequence[Line]) -> list[Row]:
    """What selection should reach."""
    rows = []
    for what, count, most in (
        ("tied, exact", 10_000, "<= 0.6 ms"),
        ("tied, indexed", 10_000, "<= 0.4 ms"),
        ("tied, indexed", 1_000_000, "<= 4 ms"),
        ("hilora-plus, an epoch's", 10_000, "<= 1 ms"),
        ("hilora-plus, an epoch's", 100_000, "<= 3 ms"),
    ):
        for run in runs(lines):
            if line := pick(run, what=what, adapters=count):
                told = f"{line['p50_ms']} ms (95 %: {line['p95_ms']})"
                where = f"one prompt, {what}, {count:,} adapters ({run[0]['device']})"
                rows.append((where, most, told, judged(line["p50_ms"], most)))
                rows += beside(line, count)
    return rows


def beside(line: Line, count: int) -> Iterator[Row]:
    """What else is known of a way to select."""
    if "agreement" in line:
        found, least = 100 * line["agreement"], ">= 99.9 %"
        told = f"{shown(found, least, 2)} +- {100 * line['half_width']:.2f} %"
        yield "... the exact best eight", least, told, judged(found, least)
    if "top1" in line:
        yield "... the likeliest of all is first", NONE, f"{100 * line['top1']:.1f} %", ""
        yield "... memory of the model", NONE, f"{line['mb']} MB", ""
    elif count > 10_000:
        size, room = float(line["means_mb"] + line["search_mb"]), "< 2000 MB"
        yield "... memory: means and index", room, f"{shown(size, room, 0)} MB", judged(size, room)


def runs(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines by the run that they are of, each with its setup first."""
    found: list[list[Line]] = []
    for line in lines:
        if "setup" in line:
            found.append([])
        found[-1].append(line)
    return found


def other_targets(home: Path) -> list[Row]:
    """What pools, start and embedding should reach."""
    rows: list[Row] = []

    def median(what: str, most: str, found: dict[str, float], unit: str) -> None:
        rows.append((what, most, _spread(found, unit), judged(found["median"], most)))

    pools = read(home, "pool")
    if line := pick(pools, registered=2000, batch=32):
        found, least = line["of_smallest"], ">= 0.97"
        what = "throughput with 2,000 adapters, of that with 5"
        rows.append((what, least, shown(found, least, 3), judged(found, least)))
    if line := next((line for line in pools if "cold_ms" in line), None):
        median("first use of a cold adapter", "<= 10 ms", line["cold_ms"], "ms")
    for line in pools:
        if line.get("registered") == 10_000 and "open_s" in line:
            median("opening a pool of 10,000", "<= 1 s", line["open_s"], "s")
            median("adding an adapter to it", "<= 0.1 s", line["add_s"], "s")
    starts = read(home, "start")
    for name, most in (("route", "<= 4 s"), ("generate, 16 tokens", "<= 8 s")):
        for command, method in ((name, "hilora"), (f"{name}, hilora-plus", "hilora-plus")):
            if line := pick(starts, command=command, adapters=None):
                median(f"`hilora {name}`, {method}, cold process", most, line["seconds"], "s")
    for line in starts:
        if "statistics" in line:
            name, method = line["command"].rsplit(", ", 1)
            what = f"`hilora {name}`, {method}, over {line['adapters']:,} adapters, statistics {line['statistics']}"
            rows.append((what, NONE, _spread(line["seconds"], "s"), ""))
        elif "fit_s" in line:
            what = f"... fitting {line['adapters']:,} and keeping it"
            rows.append((what, NONE, f"{line['fit_s']} s, {line['mb']} MB", ""))
    embedding = read(home, "embedding")
    tops = {(line["dtype"], line["method"]): line["top"] for line in embedding if "top" in line}
    for method in dict.fromkeys(method for _, method in tops):
        gaps = [tops["bf16", method][k] - tops["fp32", method][k] for k in tops["fp32", method]]
        told = ", ".join(f"{gap:+.2f}" for gap in gaps)
        what, most = f"{method}: top 1, 3, 5, 8 with bf16 embeddings less fp32", "within 0.2"
        rows.append((what, most, told, judged(max(gaps, key=abs), most)))
    return rows


def _spread(found: dict[str, float], unit: str) -> str:
    return f"{found['median']} {unit} ({found['least']} to {found['most']})"


def throughput_table(lines: Sequence[Line]) -> str:
    """Every case."""
    rows = []
    first = (MAIN, PEFT)
    for line in sorted(lines, key=lambda line: first.index(line["case"]) if line["case"] in first else len(first)):
        alone = ", one thread" if line["threads"] == 1 else ""
        alone += f" ({line['device']})" if line["device"] != lines[0]["device"] else ""
        for one in (name for name in ("hilora", "pinned") if name in line["seconds"]):
            cells = [ratio(line, one, "base", part) for part in ("whole", "prefill", "decode")]
            for other in ("peft_single", "peft_mixed", "peft_arrow"):
                alike = (one == "hilora") == (other == "peft_arrow")  # who chooses, and who is given one adapter
                cells.append(ratio(line, one, other) if alike and other in line["seconds"] else NONE)
            speed = line["tokens"]["new"] / statistics.median(seconds_of(line["seconds"][one], "decode"))
            used = line["free"]["distinct"] if one == "hilora" else line["distinct"]
            how = "freely" if one == "hilora" else "pinned"
            rows.append((line["case"] + alone, how, str(used), *cells, f"{speed:.0f}"))
    heading = [
        "case",
        "routed",
        "adapters in the batch",
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
    """Every size, on every machine."""
    rows = []
    for setup, *found in runs(lines):
        for line in found:
            if "p50_ms" in line:
                kept = "-" if "means_mb" not in line else str(line["means_mb"] + line["search_mb"])
                fit = line.get("fit_s", line.get("build_s", "-"))
                same = f"{100 * line['agreement']:.2f}" if "agreement" in line else "-"
                cells = (line["what"], f"{line.get('adapters', 0):,}", str(line["p50_ms"]), str(line["p95_ms"]))
                rows.append((*cells, same, str(line.get("mb", kept)), str(fit), setup["device"]))
    heading = ["what", "adapters", "p50, ms", "p95, ms", "of the best eight, %", "memory, MB", "fit, s", "machine"]
    return markdown_table(heading, rows)


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


def last_run(lines: Sequence[Line]) -> Sequence[Line]:
    """The rows of arrivals that were measured as the last one was: the same requests on the same processor."""
    same = ("device", "threads", "pool", "prompts", "requests", "words", "new_tokens", "batch", "seed")
    return [line for line in lines if all(line[key] == lines[-1][key] for key in same)]


def arrivals_table(lines: Sequence[Line]) -> str:
    """Every method, rate and way."""

    def both(line: Line, name: str, digits: int) -> str:
        return NONE if line[name] is None else "{p50:.{n}f} ({p95:.{n}f})".format(**line[name], n=digits)

    methods = list(dict.fromkeys(line["method"] for line in lines))
    rows = [
        (
            f"{line['method']}, {line['rate']} of {line['offline_per_s']:.2f}/s: {line['way']}",
            f"{line['requests_per_s']:.2f}",
            f"{line['tokens_per_s']:.0f}",
            both(line, "first_s", 2),
            both(line, "token_ms", 0),
            both(line, "latency_s", 2),
            both(line, "latency_token_ms", 0),
            str(line["distinct"]),
        )
        for line in sorted(lines, key=lambda line: (methods.index(line["method"]), line["rate"]))
    ]
    heading = [
        "method, rate, way",
        "requests/s",
        "tokens/s",
        "first token, s",
        "a token more, ms",
        "latency, s",
        "... of a token, ms",
        "adapters in all",
    ]
    return markdown_table(heading, rows)


def changes_table(lines: Sequence[Line]) -> str:
    """Every change, in milliseconds and in steps of the base with as many rows."""
    base = {line["rows"]: line["ms"]["median"] for line in lines if "adapters" not in line}
    changes = [line for line in lines if "adapters" in line]
    found = {(line["change"], line["rows"], line["adapters"]): line["ms"] for line in changes}
    adapters = sorted({line["adapters"] for line in changes})
    rows = [("a step of the base", str(count), *[f"{ms:.1f} ms"] * len(adapters)) for count, ms in base.items()]
    for change, count in dict.fromkeys((line["change"], line["rows"]) for line in changes):
        cells = [found[change, count, each] for each in adapters]
        told = [
            "{median:.1f} ms ({least:.1f} to {most:.1f}), {steps:.2f} steps".format(
                **ms, steps=ms["median"] / base[count]
            )
            for ms in cells
        ]
        rows.append((change, str(count), *told))
    return markdown_table(["what changes", "rows", *(f"among {each}" for each in adapters)], rows)


def page(home: Path) -> str:
    """README.md."""
    names = ("throughput", "forms", "selection", "pool", "start", "embedding")
    throughput, forms, selection, pools, starts, embedding = (read(home, name) for name in names)
    targets = token_targets(throughput) + selection_targets(selection) + other_targets(home)
    parts = [HEAD, "## Targets", "", markdown_table(["", "target", "measured", ""], targets), "", MISSED]
    if throughput:
        line = throughput[0]
        parts += [
            "## Throughput",
            "",
            "{told}, {dtype}, PEFT {peft};".format(told=device(line), **line),
            "median and range of the ratio in each of the interleaved rounds; hilora embeds and routes every prompt,",
            "freely among all adapters of the pool or pinned to one, as PEFT's single and mixed batches are.",
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
        parts += ["## Selection", "", selection_table(selection), ""]
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
    if arrivals := last_run(read(home, "arrivals")):
        about = (
            "{requests} requests of {prompts} that arrive at random, {new_tokens[0]} to {new_tokens[1]} new tokens "
            "each; rates are of what a batch of {batch} achieves that is there at once. Median (95th percentile)."
        ).format(**arrivals[0])
        parts += ["## Arrivals", "", f"{device(arrivals[0])}. {about}", "", arrivals_table(arrivals), ""]
    if changes := read(home, "changes"):
        about = "Until the model serves the rows after a change; steps are of the base alone, with as many rows."
        parts += ["## Changes of rows and adapters", "", f"{device(changes[0])}. {about}", ""]
        parts += [changes_table(changes[1:]), ""]
    if checkouts := read(home, "checkouts"):
        about = (
            "Requests that join and leave at every step (`after`) against batches that start together: speed over "
            "that of commit {before}, {new_tokens} new tokens, {dtype}; `mixed` is twice as many "
            "prompts with answers of very different lengths. Median and quartiles of the rounds."
        ).format(before=checkouts[0]["commits"]["before"], **checkouts[0])
        parts += [
            "## Steps that are shared",
            "",
            f"{device(checkouts[0])}. {about}",
            "",
            checkouts_table(checkouts),
            "",
        ]
        if same := read(home, "same"):
            parts += [same_text(same), ""]
    parts += before_and_after(read(home, "checkouts-gpu"))
    parts += growing(home)
    if serve := read(home, "serve"):
        about = (
            "{batch} prompts of {words} words, up to {new_tokens} new tokens, {method}, {dtype}; clients run on the "
            "same cores. Tokens per second over those of an offline batch of these prompts just before: median and "
            "quartiles of the rounds."
        ).format(**serve[0])
        parts += ["## A server under load", "", f"{device(serve[0])}. {about}", "", serve_table(serve), ""]
    parts += capture_parts(read(home, "capture"))
    return "\n".join(parts)


def before_and_after(checkouts: list[Line]) -> list[str]:
    """What was made for GPUs, on a CPU."""
    if not checkouts:
        return []
    about = (
        "Forms, placements and compiled steps for GPUs (`after`) must cost a CPU nothing: speed over that of commit "
        "{before}, {new_tokens} new tokens, {dtype}. Median and quartiles of the rounds."
    ).format(before=checkouts[0]["commits"]["before"], **checkouts[0])
    about = f"{device(checkouts[0])}. {about}"
    return ["## A CPU, before and after", "", about, "", checkouts_table(checkouts), ""]


def growing(home: Path) -> list[str]:
    """On pools that grow."""
    parts, epochs, uploads = [], read(home, "epochs"), read(home, "uploads")
    if ends := [line for line in epochs if line.get("what") == "end of an epoch"]:
        about = (
            "Learned from some adapters of flan-mini, drawn {draws} times, with all routed to, beside a fresh one of "
            "all: hilora-plus on {prompts} prompts, sets for alpha {alpha}. Means over the draws."
        ).format(**epochs[0] | ends[0])
        parts += ["## The end of an epoch", "", about, "", ends_table(ends), ""]
    if grown := [line for line in epochs if line.get("what") == "upload"]:
        about = "In process, median and range: an adapter that was checked is added, and prompts are routed to it."
        parts += ["## A pool grows by one", "", f"{device(runs(epochs)[-1][0])}. {about}", "", grown_table(grown), ""]
    if sent := [line for line in uploads if "what" in line]:
        about = "Over HTTP, from the request, median and range; the clients share the cores with the server."
        parts += ["## Uploads to a server", "", f"{device(uploads[0])}. {about}", "", uploads_table(sent), ""]
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--home", type=Path, default=HERE, help="where the JSON Lines lie")
    args = parser.parse_args()
    (args.home / "README.md").write_text(page(args.home))


if __name__ == "__main__":
    main()

"""The page of `benchmarks/gpu.py`: targets beside what was measured, and why where they are missed; tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from lines import Line

from hilora.bench.rounds import in_rounds
from hilora.evaluate.goals import is_met, shown
from hilora.evaluate.tables import markdown_table

NONE = "-"
RATIOS = (
    ("compiled", "q and v", "decode", "hilora", "base", ">= 0.96"),
    ("compiled", "all seven", "decode", "hilora", "base", ">= 0.85"),
    ("compiled", "q and v", "decode", "hilora", "plain", ">= 1"),
    ("compiled", "all seven", "decode", "hilora", "plain", ">= 1"),
    ("eager", "q and v", "decode", "hilora", "transformers", ">= 0.9"),
    ("eager", "q and v", "prefill", "routed", "transformers", ">= 0.95"),
    ("eager", "all seven", "prefill", "routed", "transformers", ">= 0.85"),
    ("eager", "q and v", "prefill", "hilora", "transformers", ">= 0.86"),
    ("eager", "all seven", "prefill", "hilora", "transformers", ">= 0.80"),
    ("eager", "q and v", "whole", "hilora", "transformers", ">= 0.9"),
    ("eager", "q and v", "whole", "hilora", "peft_single", ">= 1.1"),
    ("eager", "q and v", "whole", "hilora", "peft_mixed", ">= 4"),
)
"""Speed of the first contender over that of the second, in each round: how run, sites, part, both, target."""
LIMIT, ROUTE = "<= 2", "<= 10 ms"
PARTS = {"decode": "a decoding step", "prefill": "the first token", "whole": "a whole batch"}
HEAD = """# On a GPU

Made by `python benchmarks/gpu.py --table` from `gpu.jsonl`. A random base of Llama-2-7B's shape in bf16, a batch of
32 prompts of 90 tokens with 32 new ones each, 8 adapters of rank 8 in zipf shares. Ratios are of speed, medians over
interleaved rounds in one process, like with like: eager with eager, compiled with compiled.

| | |
|---|---|
| `transformers` | the base, as transformers runs it; compiled: with its static cache |
| `base` | the base in hilora's engine; compiled: in the same static slots |
| `hilora` | embeds and routes every prompt |
| `routed` | the same batch, embedded and routed beforehand |
| `pinned`, `oracle` | routes each prompt to one adapter; is given it, whole |
| `base_rows` | compiled: rows of the base among the sites of others' adapters |
| `plain` | one LoRA for all rows, compiled the same way |
| `peft_single`, `peft_mixed` | PEFT: one unmerged adapter; `adapter_names` |

    PYTHONPATH=. python benchmarks/gpu.py                           # on an H100 or H200: twelve minutes
    PYTHONPATH=. python benchmarks/gpu.py --parts eager compiled    # some parts; what is known is not done again
    python -m pytest tests/engine/test_cuda.py                      # the same answers as on the CPU, as a test

It takes torch 2.11, transformers 5.17 and pytest, and PEFT for its rows. Without beartype, pytest takes
`-o addopts=--import-mode=importlib`.
"""
WAITS = "**These rows wait for a card**: none was at hand. The targets, and what will be measured:"


def from_card(lines: Sequence[Line]) -> list[Line]:
    """Rows that count: at full size, from a card; the last of each run's."""
    return [line for line in lines if line.get("size") == "full" and line.get("device") != "CPU"]


def last(lines: Sequence[Line], key: str, **wanted: Any) -> Line | None:
    """The last row with these values that has this key."""
    found = [line for line in lines if key in line and all(line.get(name) == v for name, v in wanted.items())]
    return found[-1] if found else None


def targets(lines: Sequence[Line]) -> Iterator[tuple[str, ...]]:
    """What, its target, what was measured, the verdict."""
    for how, sites, part, one, other, target in RATIOS:
        name = f"{PARTS[part]}, {how}, {sites}: {one} / {other}"
        times = (last(lines, "seconds", what=f"{how}, {sites}") or {}).get("seconds", {})
        yield judged(name, target, in_rounds(times, one, other, part) if {one, other} <= times.keys() else [])
    limit, step = last(lines, "limit_ms"), last(lines, "ms", what="compiled, q and v")
    base = (step or {}).get("ms", {}).get("base")
    over = [base["step_ms"] / limit["limit_ms"]] if base and limit else []
    yield judged("a decoding step, compiled: base / the limit", LIMIT, over)
    route = last(lines, "route_ms")
    yield judged("embedding and routing of 32 prompts", ROUTE, [route["route_ms"]["median"]] if route else [])
    rows = list({line["what"]: line for line in lines if "answers" in line}.values())
    wrong = [float(sum(len(line["wrong"]) for line in rows))] if rows else []
    count = f", of {sum(line['answers'] for line in rows):,}" if rows else ""
    yield judged(f"answers in fp32 that are not the CPU's{count}", "<= 0", wrong)


def judged(name: str, target: str, values: Sequence[float]) -> tuple[str, ...]:
    """A line of the table of targets."""
    if not values:
        return name, target, NONE, "not measured"
    median = statistics.median(values)
    told = f"{shown(median, target, 2)}" + (f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else "")
    return name, target, told, "met" if is_met(median, target) else "missed"


def contenders_table(line: Line) -> str:
    """Milliseconds of every contender."""
    rows = []
    for name, ms in line["ms"].items():
        cells = [f"{ms['prefill_ms']:.1f}", f"{ms['step_ms']:.2f}", f"{ms['whole_ms']:.0f}"]
        rows.append((name, *cells, f"{1e3 * line['batch'] * line['new_tokens'] / ms['whole_ms']:.0f}"))
    return markdown_table(("", "first token, ms", "a step, ms", "whole, ms", "new tokens/s"), rows)


def profile_table(rows: Sequence[Line]) -> str:
    """What a decoding step consists of."""
    cells = []
    for row in rows:
        step = row["step"]
        longest = ", ".join(f"`{name}` {ms:.2f}" for name, ms in list(step["longest"].items())[:3])
        numbers = (f"{step['kernels']:.0f}", f"{step['launches']:.0f}", f"{step['kernel_ms']:.2f}")
        cells.append((row["contender"], *numbers, longest))
    return markdown_table(("", "kernels a step", "launches", "on the card, ms", "longest, ms"), cells)


def batches(lines: Sequence[Line]) -> Iterator[str]:
    """Times and profiles of the targets' batches."""
    for how in ("eager", "compiled"):
        for sites in ("q and v", "all seven"):
            what = f"{how}, {sites}"
            if (line := last(lines, "ms", what=what)) is None:
                continue
            yield from (f"## {what.capitalize()}", "", contenders_table(line), "")
            profiles = {row["contender"]: row for row in lines if row["what"] == what and "step" in row}
            if profiles:
                yield from (profile_table(list(profiles.values())), "")
            times = {row["contender"]: row for row in lines if row["what"] == what and "compile_s" in row}
            if times:
                told = ", ".join(f"{name} {row['compile_s']:.0f}" for name, row in times.items())
                yield from (f"Seconds of compiling: {told}.", "")


def tables(lines: Sequence[Line]) -> Iterator[str]:
    """Batches, ranks and distinct adapters; Fig. 5 and Fig. 7b."""
    rows = []
    for what, line in {line["what"]: line for line in lines if line["part"] == "tables" and "ms" in line}.items():
        for one in (name for name in ("hilora", "pinned") if name in line["ms"]):
            found = [statistics.median(in_rounds(line["seconds"], one, "transformers", part)) for part in PARTS]
            rows.append((what, one, *(f"{value:.2f}" for value in found), f"{line['ms'][one]['whole_ms']:.0f}"))
    if rows:
        yield from ("## Batches, ranks, adapters in a batch", "", "Eager, q and v; of `transformers`' speed.", "")
        yield from (markdown_table(("", "", *PARTS, "whole, ms"), rows), "")
    for part, at, title in (
        ("fig5", "registered", "HiLoRA's Fig. 5: new tokens per second by registered tasks, routing included"),
        ("fig7b", "batch", "RAMoLE's Fig. 7b: tokens read and made per second by batch size, first token only"),
    ):
        found = {line[at]: line["tokens_per_s"] for line in lines if line["part"] == part and "tokens_per_s" in line}
        if found:
            names = list(next(iter(found.values())))
            cells = [(str(place), *(f"{own[name]:,.0f}" for name in names)) for place, own in sorted(found.items())]
            yield from (f"## {title}", "", markdown_table((at, *names), cells), "")


def others(lines: Sequence[Line]) -> Iterator[str]:
    """The card's own speed, starting, a cold adapter, and whatever was wrong or missing."""
    told = []
    if line := last(lines, "limit_ms"):
        told.append(
            f"A copy moves {line['copy_gb_s']:,.0f} GB/s; a step that reads {line['weight_bytes'] / 1e9:.2f} GB of "
            f"weights once takes {line['limit_ms']:.2f} ms at least (the limit)."
        )
    if line := last(lines, "cold_ms"):
        spread = {name: line[f"{name}_ms"]["median"] for name in ("cold", "warm", "same")}
        told.append(
            f"A prompt's first token takes {spread['cold']:.1f} ms with an adapter of "
            f"{line['adapter_bytes'] / 1e6:.1f} MB that comes to the card for it, {spread['warm']:.1f} with one that "
            f"has been there, {spread['same']:.1f} with the one before."
        )
    if line := last(lines, "process_s"):
        told.append(
            f"A second process, which finds torch's cache on disk, compiles hilora in {line['compile_s']:.0f} s, and "
            f"is ready after {line['process_s']:.0f} s, imports and a base included."
        )
    for line in lines:
        told += [f"{line['what']}: {text}" for text in line.get("wrong", ())]
        if "missing" in line:
            told.append(f"{line['what']}, {line.get('contender', 'all')}: {line['missing']}.")
    if told:
        yield from ("## Beside these", "", *(f"* {text}" for text in dict.fromkeys(told)), "")


def page(lines: Sequence[Line]) -> str:
    """gpu.md."""
    found = from_card(lines)
    out = [HEAD]
    setups = dict.fromkeys(
        "{date}, {device}, torch {torch}, transformers {transformers}, PEFT {peft}, commit {commit}".format(**line)
        for line in found
    )
    out += [f"* {each}" for each in setups] + [""] * bool(setups)
    out += [] if found else [WAITS, ""]
    out += ["## Targets", "", markdown_table(("", "target", "measured", ""), list(targets(found))), ""]
    if found:
        out += [*batches(found), *tables(found), *others(found)]
    return "\n".join(out).rstrip() + "\n"

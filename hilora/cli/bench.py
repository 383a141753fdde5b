"""hilora bench: this machine's speed, beside the base model and PEFT."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from hilora.cli.options import Base, Dtype, PoolName, Settings, parse_settings, quiet_transformers, split_names
from hilora.cli.prompts import read_asked
from hilora.cli.show import console, progress, status
from hilora.methods import DEFAULT_METHOD


def bench(
    *,
    pool: PoolName = None,
    base: Base = None,
    dtype: Dtype = None,
    method: Annotated[
        str, typer.Option(help="What is timed as hilora: a method that routes by itself.")
    ] = DEFAULT_METHOD,
    option: Settings = None,
    contenders: Annotated[
        str, typer.Option(help="Of base, hilora, pinned, oracle, arrow, peft_single, peft_mixed, peft_arrow.")
    ] = "",
    batch: Annotated[int, typer.Option(min=1, help="Prompts in the batch.")] = 32,
    adapters: Annotated[int, typer.Option(min=1, help="Adapters that prompts are pinned to.")] = 8,
    share: Annotated[str, typer.Option(help="How prompts share them: zipf, identical, distinct.")] = "zipf",
    words: Annotated[int, typer.Option(min=1, help="Words of a prompt.")] = 60,
    file: Annotated[Path | None, typer.Option(help="Time these prompts, one per line, not random words.")] = None,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 32,
    arrow_adapters: Annotated[int, typer.Option(min=1, help="Adapters that Arrow looks at.")] = 48,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="A minute: 8 prompts, 8 new tokens, 2 rounds.")] = False,
    out: Annotated[Path | None, typer.Option("--json", help="Append the result to this file, one JSON line.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it: a PNG or SVG file.")] = None,
) -> None:
    """Time hilora, the base model and PEFT in interleaved rounds, on your base, pool and device.

    hilora routes each prompt among all adapters of the pool; "pinned" is hilora with one adapter a prompt, which is
    what PEFT's batches are given. Prompts are random words unless --file gives some. Run it with nothing else on the
    machine.
    """
    from hilora.base.outputs import check_file
    from hilora.base.prompts import query_texts
    from hilora.bench.plot import check_plot, draw
    from hilora.bench.run import Settings as Wanted
    from hilora.bench.run import prepared
    from hilora.evaluate.tables import rich_table

    if plot is not None:
        check_plot(plot)
    if out is not None:
        check_file(out)
    settings = Wanted(
        batch=8 if quick else batch,
        adapters=min(adapters, 4) if quick else adapters,
        share=share,
        words=words,
        new_tokens=8 if quick else new_tokens,
        arrow_adapters=arrow_adapters,
        rounds=2 if quick else rounds,
        contenders=split_names(contenders) if contenders else None,
        method=(method, parse_settings(option)),
        prompts=query_texts([each.prompt for each in read_asked((), file)]) if file else None,
    )
    quiet_transformers()
    with ExitStack() as stack:
        with status("Loading"):
            ready = stack.enter_context(prepared(pool, base, dtype, settings))
        with progress(ready.turns, "turns") as advance:
            result = ready.run(advance)
    heading, *rows = ready.table
    console.print(rich_table(heading, rows))
    for name, value in result.items():
        if "_over_" in name:
            console.print(f"{name} {value:.3f}", highlight=False)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(result) + "\n")
    if plot is not None:
        draw(result, plot)

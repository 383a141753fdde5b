"""The top of the command line: route, generate, methods, demo; groups pool and train."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hilora import __version__
from hilora.cli import evaluate, figures, gateway, pool, serve, train
from hilora.cli.bench import bench
from hilora.cli.explain import explain
from hilora.cli.opened import choose_method, open_pool
from hilora.cli.options import (
    Allow,
    Base,
    Deny,
    Dtype,
    Method,
    PoolName,
    Quantize,
    Settings,
    parse_generation,
    quiet_transformers,
    read_prompts,
)
from hilora.cli.prompts import read_asked
from hilora.cli.show import console, show_completion, show_methods, show_route, status
from hilora.cli.usage import HELP, Commands
from hilora.jsonl import json_line
from hilora.methods import DEFAULT_METHOD

app = typer.Typer(
    name="hilora",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": list(HELP)},
)
app.add_typer(pool.app, name="pool")
app.add_typer(train.app, name="train")
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(figures.app, name="figures")
app.add_typer(serve.app, name="serve")
app.add_typer(gateway.app, name="gateway")
app.command()(explain)
app.command()(bench)

Prompts = Annotated[list[str] | None, typer.Argument(help="Prompts; '-' reads lines from standard input.")]
File = Annotated[
    Path | None,
    typer.Option("--file", "-f", help="Prompts: JSON Lines with inputs, prompt or messages; or plain text."),
]
One = Annotated[bool, typer.Option("--one", help="The file, or standard input, is one prompt as it is.")]
Out = Annotated[Path | None, typer.Option("--out", help="Write answers to this file: settings, then --json lines.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the --out file that is there.")]
Seed = Annotated[int, typer.Option(help="Seed of allocation and sampling.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


def _show_version(wanted: bool) -> bool:
    if wanted:
        print(f"hilora {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def top(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Route prompts over a pool of LoRA adapters, without labels and without training."""


@app.command()
def route(
    prompts: Prompts = None,
    *,
    file: File = None,
    one: One = False,
    pool: PoolName = None,
    method: Method = DEFAULT_METHOD,
    option: Settings = None,
    seed: Seed = 0,
    allow: Allow = None,
    deny: Deny = None,
    device: Annotated[str, typer.Option(help="Where prompts are embedded and compared, e.g. cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Say which adapters would serve each prompt, and why. No base model is loaded."""
    from dataclasses import asdict

    from hilora.base.devices import parse_device
    from hilora.base.prompts import query_texts
    from hilora.planner import Planner

    listed = read_prompts(prompts, file, one=one)
    query_texts(listed)  # refuses them before a pool is opened
    built, _ = choose_method(method, option, without_base="hilora route")
    opened = open_pool(pool)
    with status(f"Routing over {len(opened)} adapters"):
        planner = Planner(opened, built, device=parse_device(device))
        routed = planner.route(listed, allow=allow, deny=deny)
        why = planner.explain(routed, seed)
    for text, choices, note in zip(routed.texts, why, routed.notes, strict=True):
        if as_json:
            row = {"prompt": text, "method": built.name, "note": note, "choices": [asdict(c) for c in choices]}
            print(json_line(row, sys.stdout.encoding))
        else:
            show_route(text, choices, note)


@app.command()
def generate(
    prompts: Prompts = None,
    *,
    file: File = None,
    one: One = False,
    pool: PoolName = None,
    base: Base = None,
    method: Method = DEFAULT_METHOD,
    option: Settings = None,
    seed: Seed = 0,
    allow: Allow = None,
    deny: Deny = None,
    max_new_tokens: Annotated[int, typer.Option(help="At most this many tokens per answer.")] = 128,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends an answer (may be repeated).")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sample at this temperature; 0: greedy.")] = None,
    generation: Annotated[
        list[str] | None, typer.Option("--generation", "-g", help="transformers option, e.g. -g num_beams=4")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts per forward pass.")] = 32,
    dtype: Dtype = None,
    quantize: Quantize = None,
    adapter_memory: Annotated[str, typer.Option(help="For adapters between batches, e.g. 2GB.")] = "512MB",
    kv_memory: Annotated[
        str | None, typer.Option(help="For keys and values of all prompts, e.g. 2GB; default: half of what is free.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it comes (one prompt).")] = False,
    as_json: Json = False,
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Answer prompts, each with the adapters that fit it."""
    from contextlib import nullcontext

    from hilora.base.outputs import alone
    from hilora.cli.answers import AnswerFile, settings_of, write_answers
    from hilora.cli.show import print_stream, progress
    from hilora.engine.generate import HiLoRA
    from hilora.errors import InputError

    asked = read_asked(prompts, file, one=one)
    listed = [each.prompt for each in asked]
    if stream and (len(listed) > 1 or as_json):
        raise InputError("--stream prints one prompt's answer as it comes; give one prompt, and no --json.")
    if resume and out is None:
        raise InputError("--resume goes on with a file of answers: give --out FILE, too.")
    if stream and out is not None:
        raise InputError("--stream prints, and --out writes to a file; give one of them.")
    written = None if out is None else AnswerFile(out, resume)
    options: dict[str, Any] = parse_generation(generation, temperature)
    _, settings = choose_method(method, option)
    options |= {"max_new_tokens": max_new_tokens, "seed": seed, "stop": stop, "allow": allow, "deny": deny}
    quiet_transformers()
    with status("Loading the base model"):
        router = HiLoRA.from_pretrained(
            base,
            pool,
            method,
            dtype=dtype,
            quantization_config=quantize,
            adapter_memory=adapter_memory,
            kv_memory=kv_memory,
            **settings,
        )
    if stream:
        show_completion(None, print_stream(router.stream(listed[0], **options)), text=False)
        return
    if as_json or written is not None:
        with nullcontext() if written is None else alone(written.path):
            if written is not None:
                copies = options.get("num_return_sequences", 1)
                written.begin(settings_of(router, options, settings), asked, copies)
            with progress(len(listed), "prompts", bar=written is not None or not console.is_terminal) as advance:
                write_answers(router, asked, advance, written, batch_size=batch_size, **options)
        return
    with progress(len(listed), "prompts") as advance:
        answers = router.generate(listed, batch_size=batch_size, on_batch=lambda done, _: advance(done), **options)
    per_prompt = len(answers) // len(listed)
    for i, answer in enumerate(answers):
        show_completion(listed[i // per_prompt], answer)


@app.command()
def methods(as_json: Json = False) -> None:
    """List the methods, their options and where they come from."""
    from hilora.methods.lookup import method_table

    table = method_table()
    if as_json:
        for row in table:
            print(json.dumps(row, ensure_ascii=False))
    else:
        show_methods(table)


@app.command()
def demo(pool: PoolName = None) -> None:
    """Route and answer prompts of several tasks with the embedded default, and show why."""
    from hilora.cli.demo import run

    quiet_transformers()
    run(pool)

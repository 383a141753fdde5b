"""hilora evaluate: methods measured on a user's data, and the tables that come of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hilora.cli.opened import open_pool
from hilora.cli.options import Base, Dtype, PoolName, Quantize, parse_settings, quiet_transformers, split_names
from hilora.cli.show import console, progress, status
from hilora.cli.usage import Commands
from hilora.errors import InputError
from hilora.methods import DEFAULT_METHOD

app = typer.Typer(cls=Commands, help="Measure methods on your data.", no_args_is_help=True)

PAPER = "hilora"
"""What tables compare with where the default method is not among the results."""
Labels = Annotated[
    str, typer.Option(help="Methods, with commas between; options after colons, e.g. hilora:gamma=0.2:k=5")
]
Names = Annotated[str | None, typer.Option(help="Keep to these, with commas between.")]


@app.command()
def tasks(
    *,
    data: Annotated[Path, typer.Option(help='JSON Lines with "inputs", "targets": a file per task, or one file.')],
    json_out: Annotated[Path, typer.Option("--json", help="Results, one line a row; run again to resume.")],
    pool: PoolName = None,
    methods: Labels = f"base,oracle,{DEFAULT_METHOD}",
    train: Annotated[
        Path | None, typer.Option(help="Training data, as --data: constant gives its most frequent answers.")
    ] = None,
    setting: Annotated[str, typer.Option(help="iid, ood, within, cross or mixed.")] = "iid",
    part: Annotated[str, typer.Option(help="all, first or second half of each task's lines.")] = "all",
    per_task: Annotated[int | None, typer.Option(min=1, help="At most so many rows of each task.")] = None,
    task: Names = None,
    cluster: Names = None,
    halves: Annotated[
        int | None, typer.Option(min=1, help="For within: halves of the tasks, in pairs; default: 2.")
    ] = None,
    base: Base = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer; short tasks get fewer.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    seed: int = 0,
    dtype: Dtype = None,
    quantize: Quantize = None,
) -> None:
    """Answer the rows of tasks by each method, and score the answers. An interrupted run resumes."""
    from hilora.base.devices import reading_device
    from hilora.base.models import load_base
    from hilora.base.outputs import check_file, refuse_held
    from hilora.evaluate.job import CONSTANT, Bench, Job
    from hilora.evaluate.lines import check_plain, constant_answers
    from hilora.evaluate.rows import choose_rows, cluster_of, load_rows
    from hilora.evaluate.run import run_job
    from hilora.evaluate.settings import make_cases

    if halves is not None and setting != "within":
        raise InputError(f"--halves are of the setting within; got --setting {setting}. Leave --halves away.")
    labels = parse_methods(methods)
    if train is not None and CONSTANT not in {name for name, _ in labels.values()}:
        raise InputError(f"--train is of the method {CONSTANT}; got --methods {methods}. Leave --train away.")
    check_plain(json_out)
    check_file(json_out)
    refuse_held(json_out)
    opened = open_pool(pool)
    rows = load_rows(data)
    keep_tasks, keep_clusters = (None if names is None else split_names(names) for names in (task, cluster))
    chosen = choose_rows(rows, part=part, per_task=per_task, tasks=keep_tasks, clusters=keep_clusters, seed=seed)
    cases = make_cases(setting, chosen, opened.names, clusters=cluster_of(rows), halves=halves or 2, seed=seed)
    constant = {} if train is None else constant_answers(load_rows(train))
    job = Job(setting, cases, labels, constant, max_new_tokens, batch_size, seed)
    quiet_transformers()
    with status("Loading the models"):
        model, tokenizer = load_base(base or opened.base.name, dtype=dtype, quantization_config=quantize)
        embedder = opened.embedder.load(opened.path, device=reading_device(model))
    bench = Bench(opened, model, tokenizer, embedder, job)
    header = bench.header("hilora evaluate tasks", part=part, per_task=per_task)
    before = {label: number * len(cases) for number, label in enumerate(job.methods)}
    with progress(len(cases) * len(job.methods), "rows") as advance:

        def on_rows(label: str, done: int) -> None:
            advance(before[label] + done, f"{setting}: {label}")

        run_job(bench, json_out, header=header, on_rows=on_rows)
    table([json_out], setting=setting)


@app.command()
def table(
    results: Annotated[list[Path], typer.Argument(help="Results of evaluate tasks.")],
    *,
    setting: Annotated[str | None, typer.Option(help="Only this setting.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help=f"With --by method: what the others are compared with; default: {DEFAULT_METHOD}, else {PAPER}."
        ),
    ] = None,
    by: Annotated[str, typer.Option(help="method, cost, cluster or task.")] = "method",
    markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table.")] = False,
) -> None:
    """Tables of results: averages with intervals, differences, harm, activated adapters and ROCs."""
    from hilora.analyse.selection import read_results
    from hilora.errors import UnknownNameError
    from hilora.evaluate.report import summarise
    from hilora.evaluate.tables import TABLES, markdown_table, rich_table

    if by not in TABLES:
        raise UnknownNameError("table", by, TABLES)
    if reference is not None and by != "method":
        raise InputError(
            f"--reference is what the table by method compares with, and the one by {by} compares nothing. Leave "
            f"--reference away, or take --by method."
        )
    read = read_results(results)
    if setting is not None and setting not in read.settings:
        raise UnknownNameError("setting of these results:", setting, read.settings)
    settings = read.settings if setting is None else [setting]
    measured = {method for name in settings for method in read.methods(name)}
    if reference is not None and reference not in measured:
        raise UnknownNameError("reference, a method of these results:", reference, measured)
    for name in settings:
        beside = reference or (DEFAULT_METHOD if DEFAULT_METHOD in read.methods(name) else PAPER)
        heading, rows = TABLES[by](summarise(read, name, reference=beside))
        if markdown:
            print(f"### {name}\n\n{markdown_table(heading, rows)}\n")
        else:
            console.print(f"[bold]{name}[/]")
            console.print(rich_table(heading, rows))


@app.command()
def routing(
    *,
    samples: Annotated[Path, typer.Option(help='JSON Lines with "task" and "inputs": the adapters\' samples.')],
    test: Annotated[Path, typer.Option(help='JSON Lines with "task" and "inputs": prompts to route.')],
    methods: Annotated[
        str, typer.Option(help="cosine, own, tied, experts, with commas between.")
    ] = "cosine,own,tied",
    json_out: Annotated[Path | None, typer.Option("--json", help="Where to write the result.")] = None,
    embedder: Annotated[str | None, typer.Option(help="Embedder: a name or a path.")] = None,
    instruction: Annotated[str | None, typer.Option(help="Instruction in front of every text.")] = None,
) -> None:
    """Measure how often the right adapter is among the best 1, 3, 5, 8. No base model is loaded."""
    from hilora.base.embed import DEFAULT_EMBEDDER, INSTRUCTION
    from hilora.evaluate.routing import run_routing
    from hilora.evaluate.tables import rich_table, routing_rows

    with status("Embedding"):
        result = run_routing(
            samples,
            test,
            split_names(methods),
            json_out,
            embedder_name=embedder or DEFAULT_EMBEDDER,
            instruction=INSTRUCTION if instruction is None else instruction,
        )
    heading, *rows = routing_rows(result)
    console.print(rich_table(heading, rows))


def parse_methods(text: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Label -> (method, options) from "a,b:option=value:option=value".

    Raises:
        InputError: there is none, or one is listed twice.
    """
    listed = split_names(text)
    if not listed:
        raise InputError("There is no method to measure. Give --methods hilora,base for example.")
    if len(set(listed)) < len(listed):
        raise InputError(f"A method is listed twice in {text!r}.")
    found = {}
    for label in listed:
        name, *settings = label.split(":")
        found[label] = (name, parse_settings(settings))
    return found

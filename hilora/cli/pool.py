"""hilora pool: put adapters in, look at them, take them out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from hilora.cli.options import quiet_transformers
from hilora.cli.show import console, errors, progress, show_adapters, show_check, status
from hilora.errors import HiloraError, InputError, PoolError

app = typer.Typer(help="Add, list, check and remove the adapters of a pool.", no_args_is_help=True)

PoolOption = Annotated[str, typer.Option("--pool", help="Pool folder.")]
Name = Annotated[str, typer.Argument(help="Adapter name.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Base = Annotated[str, typer.Option(help="Base model of a new pool: a name or a path.")]
EmbedderOption = Annotated[str | None, typer.Option(help="Embedder of a new pool.")]
NoTerms = Annotated[bool, typer.Option("--no-terms", help="Keep no hashed n-grams of the samples.")]
AnyBase = Annotated[bool, typer.Option("--any-base", help="Accept adapters whose config names another base.")]
DEFAULT_BASE = "smollm2-135m"


def _open(path: str) -> Any:
    from hilora.pool import Pool
    from hilora.pool.source import find_pool

    return Pool.open(find_pool(path))


def _open_or_create(path: str, base: str, embedder: str | None) -> tuple[Any, Any]:
    """The pool, made if there is none, and its embedder."""
    from hilora.base.embed import DEFAULT_EMBEDDER, Embedder, describe_embedder
    from hilora.base.fingerprint import describe_base
    from hilora.pool import Pool
    from hilora.pool.store import BASE, MANIFEST

    if (Path(path) / MANIFEST).exists():
        pool = Pool.open(path)
        found = Embedder(embedder or pool.embedder.name, instruction=pool.embedder.instruction)
        pool.embedder.check(describe_embedder(found), pool.path)
        return pool, found
    left = {BASE} if Path(path).is_dir() else set()  # what a crash may leave of a pool that was being made
    if Path(path).exists() and (not left or {p.name for p in Path(path).iterdir() if p.name[0] != "."} - left):
        raise PoolError(f"{path} exists and is no pool. Choose an empty or a new folder for a new pool.")
    quiet_transformers()
    with status(f"Making a pool for {base}"):
        found = Embedder(embedder or DEFAULT_EMBEDDER)
        return Pool.create(path, describe_base(base), describe_embedder(found)), found


@app.command()
def add(
    name: Name,
    source: Annotated[str, typer.Argument(help="PEFT folder, or repository on the Hugging Face Hub.")],
    *,
    samples: Annotated[Path | None, typer.Option(help="About 20 lines of its training data (JSON Lines).")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Or 5 and more prompts that you wrote for it.")] = None,
    describe: Annotated[str | None, typer.Option(help="Or what it does, in a few sentences.")] = None,
    pool: PoolOption = "./pool",
    base: Base = DEFAULT_BASE,
    embedder: EmbedderOption = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of an adapter of that name.")] = False,
    any_base: AnyBase = False,
    no_terms: NoTerms = False,
) -> None:
    """Check an adapter and put it into a pool; the pool is made if there is none."""
    from hilora.pool.described import DESCRIPTION, description_texts
    from hilora.pool.source import adapter_folder, samples_for
    from hilora.route.gaussian import MIN_SAMPLES

    if sum(given is not None for given in (samples, prompts, describe)) > 1:
        raise InputError("Give one of --samples, --prompts and --describe.")
    folder = adapter_folder(source)
    if describe is not None:
        origin, texts = DESCRIPTION, description_texts(describe)
    else:
        origin, texts = "prompts" if prompts else "samples", samples_for(name, folder, prompts or samples)
    opened, embed = _open_or_create(pool, base, embedder)
    with status(f"Adding {name}"):
        entry = opened.add(
            name, folder, texts, embed, replace=replace, any_base=any_base, terms=not no_terms, origin=origin
        )
        opened.tune()
    if origin == DESCRIPTION:
        errors.print(
            f"[yellow]{name} is known by a description only, and will often be missed. "
            f"Five prompts written for it (--prompts FILE --replace) do much better.[/]"
        )
    elif entry.num_samples < MIN_SAMPLES:
        errors.print(
            f"[yellow]{name} has {entry.num_samples} samples: it is routed by a diagonal Gaussian. "
            f"Give {MIN_SAMPLES} or more, 20 is good.[/]"
        )
    console.print(
        f"{name}: rank {entry.rank}, {entry.num_sites} sites, {entry.num_samples} samples ({entry.origin}), "
        f"{entry.hash[:12]}"
    )


@app.command("add-all")
def add_all(
    folder: Annotated[Path, typer.Argument(help="A folder of PEFT folders, each with its samples.jsonl.")],
    *,
    pool: PoolOption = "./pool",
    base: Base = DEFAULT_BASE,
    embedder: EmbedderOption = None,
    any_base: AnyBase = False,
    no_terms: NoTerms = False,
) -> None:
    """Add every PEFT folder inside a folder under its own name; what is there already is left."""
    from hilora.pool.source import samples_for

    found = sorted(path.parent for path in folder.glob("*/adapter_config.json"))
    if not found:
        raise InputError(f"{folder} holds no PEFT folders (none of its folders has an adapter_config.json).")
    opened, embed = _open_or_create(pool, base, embedder)
    new = [path for path in found if path.name not in opened.names]
    refused = []
    with progress(len(new), "adapters") as advance:
        for number, path in enumerate(new, start=1):
            try:
                texts = samples_for(path.name, path, None)
                opened.add(path.name, path, texts, embed, any_base=any_base, terms=not no_terms)
            except HiloraError as error:
                refused.append(f"{path.name}: {error}")
            advance(number)
    opened.tune()
    console.print(f"{len(new) - len(refused)} added, {len(found) - len(new)} there before, {len(refused)} refused")
    if refused:
        raise PoolError("; ".join(refused))


@app.command("list")
def list_adapters(pool: PoolOption = "./pool", as_json: Json = False) -> None:
    """List the adapters of a pool."""
    opened = _open(pool)
    if as_json:
        print(json.dumps([asdict(entry) for entry in opened.entries], indent=1))
    else:
        show_adapters(opened.entries)


@app.command()
def show(name: Name, pool: PoolOption = "./pool", as_json: Json = False) -> None:
    """All that a pool knows of one adapter."""
    opened = _open(pool)
    entry = asdict(opened.entries[opened.index(name)])
    if as_json:
        print(json.dumps(entry, indent=1))
    else:
        for key, value in entry.items():
            console.print(f"[dim]{key:>15}[/]  {escape(str(value))}", highlight=False)


@app.command()
def enable(name: Name, pool: PoolOption = "./pool") -> None:
    """Let an adapter be routed to again."""
    _open(pool).enable(name)
    console.print(f"{name}: enabled")


@app.command()
def disable(name: Name, pool: PoolOption = "./pool") -> None:
    """Keep an adapter, and never route to it."""
    _open(pool).enable(name, False)
    console.print(f"{name}: disabled")


@app.command()
def remove(
    name: Name,
    pool: PoolOption = "./pool",
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete its files now; no one may be using the pool.")
    ] = False,
) -> None:
    """Take an adapter out; its files stay for those who have the pool open."""
    opened = _open(pool)
    opened.remove(name)
    opened.tune()
    gone = opened.prune() if prune else []
    console.print(f"{name}: removed" + (f", {len(gone)} files deleted" if prune else ""))


@app.command()
def check(
    *,
    pool: PoolOption = "./pool",
    files_only: Annotated[bool, typer.Option(help="Only whether files are whole.")] = False,
    as_json: Json = False,
) -> None:
    """Read every adapter again; say what is wrong, how well each can be told from the others, and what to do."""
    from hilora.analyse.confusion import diagnose_pool

    opened = _open(pool)
    problems = {entry.name: problem for entry, problem in opened.check()}
    wrong = sum(map(bool, problems.values()))
    found = {}
    if not files_only and not wrong and len(opened) > 1:
        with status("Telling adapters apart"):
            found = {each.name: each for each in diagnose_pool(opened)}
    for name, problem in problems.items():
        if as_json:
            told = asdict(found[name]) if name in found else {"name": name}
            print(json.dumps({"problem": problem or None, **told}))
        else:
            show_check(name, problem, found.get(name))
    if not as_json:
        advised = sum(bool(each.advice) for each in found.values())
        advice = f"; {advised} with advice" if found else ""
        console.print(
            f"{len(opened)} adapters for {opened.base.name}, embedder {opened.embedder.name}, "
            f"ridge {opened.ridge:.2g}{advice}",
            highlight=False,
        )
    if wrong:
        raise PoolError(f"{wrong} of {len(opened)} adapters are damaged. Remove them and add them again.")


@app.command()
def reembed(
    *,
    samples: Annotated[Path, typer.Option(help="Folder with <adapter>.jsonl or <adapter>/samples.jsonl.")],
    pool: PoolOption = "./pool",
    embedder: EmbedderOption = None,
) -> None:
    """Embed every adapter's samples anew, e.g. with another embedder. The pool keeps no texts: give them."""
    from hilora.base.embed import Embedder, describe_embedder
    from hilora.pool.source import SAMPLES_FILE, read_samples

    opened = _open(pool)
    paths = {n: [samples / f"{n}.jsonl", samples / n / SAMPLES_FILE] for n in opened.names}
    texts = {n: read_samples(p) for n, places in paths.items() for p in places[::-1] if p.exists()}
    with status("Embedding"):
        found = Embedder(embedder or opened.embedder.name)
        opened.reembed(texts, describe_embedder(found), found)
    console.print(f"{len(opened)} adapters embedded with {found.name}")


@app.command()
def export(
    name: Name,
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    pool: PoolOption = "./pool",
) -> None:
    """Write an adapter as a PEFT folder, its scaling in its weights."""
    from hilora.pool.export import export_adapter

    console.print(f"{name}: {export_adapter(_open(pool), name, folder)}")


@app.command()
def prune(pool: PoolOption = "./pool") -> None:
    """Delete files that no adapter uses, e.g. of removed ones. No one may be using the pool meanwhile."""
    gone = _open(pool).prune()
    console.print(f"{len(gone)} files deleted")

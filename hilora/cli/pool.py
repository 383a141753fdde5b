"""hilora pool: put adapters in, look at them, take them out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from hilora.cli.opened import open_pool
from hilora.cli.options import AdapterName, PoolFolder, PoolName
from hilora.cli.pool_add import EmbedderOption, add, add_all
from hilora.cli.pool_push import push
from hilora.cli.remote import Remote, TokenFile, is_url
from hilora.cli.show import console, needs_care, show_adapters, show_check, status
from hilora.cli.usage import Commands
from hilora.errors import InputError, PoolError

app = typer.Typer(cls=Commands, help="Add, list, check and remove the adapters of a pool.", no_args_is_help=True)
app.command()(add)
app.command("add-all")(add_all)
app.command()(push)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_adapters(pool: PoolName = None, as_json: Json = False, token_file: TokenFile = None) -> None:
    """List the adapters of a pool, or of a server (--pool http://...)."""
    entries = list(Remote(str(pool), token_file).entries()) if is_url(pool) else open_pool(pool).entries
    if as_json:
        print(json.dumps([asdict(entry) for entry in entries], indent=1))
    else:
        show_adapters(entries)


@app.command()
def show(name: AdapterName, pool: PoolName = None, as_json: Json = False, token_file: TokenFile = None) -> None:
    """All that a pool, or a server (--pool http://...), knows of one adapter."""
    if is_url(pool):
        entry = Remote(str(pool), token_file).adapter(name)
    else:
        opened = open_pool(pool)
        entry = asdict(opened.entries[opened.index(name)])
    if as_json:
        print(json.dumps(entry, indent=1))
    else:
        for key, value in entry.items():
            console.print(f"[dim]{key:>15}[/]  {escape(str(value))}", highlight=False)


@app.command()
def enable(name: AdapterName, pool: PoolFolder = "./pool") -> None:
    """Let an adapter be routed to again."""
    open_pool(pool).enable(name)
    console.print(f"{name}: enabled")


@app.command()
def disable(name: AdapterName, pool: PoolFolder = "./pool") -> None:
    """Keep an adapter, and never route to it."""
    open_pool(pool).enable(name, False)
    console.print(f"{name}: disabled")


@app.command()
def remove(
    name: AdapterName,
    pool: PoolFolder = "./pool",
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete its files now; no one may be using the pool.")
    ] = False,
    token_file: TokenFile = None,
) -> None:
    """Take an adapter out of a pool, or of a server's (--pool http://...); files stay for those who have it open."""
    if is_url(pool):
        if prune:
            raise InputError("--prune deletes files, which a server needs while it runs. Leave it out.")
        Remote(pool, token_file).remove(name)
        console.print(f"{name}: removed")
        return
    from hilora.pool.lease import refuse_leased

    opened = open_pool(pool)
    if prune:
        refuse_leased(opened.path, "delete files")
    opened.remove(name)
    opened.tune()
    gone = opened.prune() if prune else []
    console.print(f"{name}: removed" + (f", {len(gone)} files deleted" if prune else ""))


@app.command()
def check(
    *,
    pool: PoolName = None,
    files_only: Annotated[bool, typer.Option(help="Only whether files are whole.")] = False,
    everyone: Annotated[bool, typer.Option("--all", help="Show the adapters that are fine, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, of every adapter.")] = False,
) -> None:
    """Read every adapter again; say what is wrong, which are hard to tell from the others, and what to do."""
    from hilora.analyse.confusion import diagnose_pool

    opened = open_pool(pool)
    problems = {entry.name: problem for entry, problem in opened.check()}
    wrong = sum(map(bool, problems.values()))
    found = {}
    if not files_only and not wrong and len(opened) > 1:
        with status("Telling adapters apart"):
            found = {each.name: each for each in diagnose_pool(opened)}
    care = [name for name, problem in problems.items() if needs_care(problem, found.get(name))]
    for name, problem in problems.items():
        if as_json:
            told = asdict(found[name]) if name in found else {"name": name}
            print(json.dumps({"problem": problem or None, **told}))
        elif everyone or name in care:
            show_check(name, problem, found.get(name))
    if not as_json:
        fine, how = len(opened) - len(care), "are fine" if found else "have whole files"
        console.print(
            f"{len(opened)} adapters for {opened.base.name}, embedder {opened.embedder.name}, "
            f"ridge {opened.ridge:.2g}: {fine} {how}{'' if everyone or not fine else ' (--all shows them)'}, "
            f"{len(care)} need care",
            highlight=False,
        )
    if wrong:
        raise PoolError(f"{wrong} of {len(opened)} adapters are damaged. Remove them and add them again.")


@app.command()
def reembed(
    *,
    samples: Annotated[Path, typer.Option(help="Folder with <adapter>.jsonl or <adapter>/samples.jsonl.")],
    pool: PoolFolder = "./pool",
    embedder: EmbedderOption = None,
) -> None:
    """Embed every adapter's samples anew, e.g. with another embedder. The pool keeps no texts: give them."""
    from hilora.base.embed import Embedder, describe_embedder
    from hilora.base.outputs import check_folder
    from hilora.pool.source import SAMPLES_FILE, read_samples

    if not samples.is_dir():
        raise InputError(f"There is no folder {samples} of samples. Check --samples.")
    opened = open_pool(pool)
    check_folder(opened.path)
    paths = {n: [samples / f"{n}.jsonl", samples / n / SAMPLES_FILE] for n in opened.names}
    texts = {n: read_samples(p) for n, places in paths.items() for p in places[::-1] if p.exists()}
    with status("Embedding"):
        found = Embedder(embedder or opened.embedder.name)
        opened.reembed(texts, describe_embedder(found), found)
    console.print(f"{len(opened)} adapters embedded with {found.name}")


@app.command()
def fit(pool: PoolFolder = "./pool") -> None:
    """Keep what hilora-plus learns from the samples, for a quick start; large pools do so at each change."""
    opened = open_pool(pool)
    with status(f"Learning from the samples of {len(opened)} adapters"):
        kept = opened.fit(always=True)
    console.print("nothing to learn: the pool is empty" if kept is None else str(kept), soft_wrap=True, markup=False)


@app.command()
def export(
    name: AdapterName,
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    pool: PoolName = None,
) -> None:
    """Write an adapter as a PEFT folder, its scaling in its weights."""
    from hilora.pool.export import export_adapter

    console.print(f"{name}: {export_adapter(open_pool(pool), name, folder)}")


@app.command()
def prune(pool: PoolFolder = "./pool") -> None:
    """Delete files that no adapter uses, e.g. of removed ones. No one may be using the pool meanwhile."""
    gone = open_pool(pool).prune()
    console.print(f"{len(gone)} files deleted")

"""hilora pool add, add-all: adapters are checked, embedded and put into a pool, which is made if there is none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hilora.cli.options import AdapterName, PoolFolder, quiet_transformers
from hilora.cli.show import console, errors, progress, status
from hilora.errors import HiloraError, InputError, MismatchError, PoolError

if TYPE_CHECKING:
    from hilora.base.fingerprint import BaseInfo

DEFAULT_BASE = "smollm2-135m"
ASKED = 50
"""Adapters of the pool whose samples a new one is tried on; more would take seconds."""
Base = Annotated[
    str | None, typer.Option(help=f"Base model of a new pool: a name or a path; default: {DEFAULT_BASE}.")
]
EmbedderOption = Annotated[str | None, typer.Option(help="Embedder of a new pool.")]
NoTerms = Annotated[bool, typer.Option("--no-terms", help="Keep no hashed n-grams of the samples.")]
AnyBase = Annotated[bool, typer.Option("--any-base", help="Accept adapters whose config names another base.")]


def add(
    name: AdapterName,
    source: Annotated[str, typer.Argument(help="PEFT folder, or repository on the Hugging Face Hub.")],
    *,
    samples: Annotated[Path | None, typer.Option(help="About 20 lines of its training data (JSON Lines).")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Or 5 and more prompts that you wrote for it.")] = None,
    describe: Annotated[str | None, typer.Option(help="Or what it does, in a few sentences.")] = None,
    pool: PoolFolder = "./pool",
    base: Base = None,
    embedder: EmbedderOption = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of an adapter of that name.")] = False,
    any_base: AnyBase = False,
    no_terms: NoTerms = False,
) -> None:
    """Check an adapter and put it into a pool; the pool is made if there is none."""
    from hilora.pool.described import DESCRIPTION, description_texts
    from hilora.pool.manifest import check_name
    from hilora.pool.newcomer import CAPTURE, captured, told
    from hilora.pool.peft_config import read_config
    from hilora.pool.source import adapter_folder, samples_for
    from hilora.route.gaussian import MIN_SAMPLES

    if sum(given is not None for given in (samples, prompts, describe)) > 1:
        raise InputError("Give one of --samples, --prompts and --describe.")
    check_name(name)
    folder = adapter_folder(source)
    read_config(folder)  # what is no adapter is said before samples are asked for
    if describe is not None:
        origin, texts = DESCRIPTION, description_texts(describe)
    else:
        origin, texts = "prompts" if prompts else "samples", samples_for(name, folder, prompts or samples)
    opened, embed = _open_or_create(pool, base, embedder)
    with status(f"Adding {name}"):
        entry = opened.add(
            name, folder, texts, embed, replace=replace, any_base=any_base, terms=not no_terms, origin=origin
        )
        taken = captured(opened, opened.samples([opened.index(name)])[0], name, most=ASKED)
        opened.tune()
    if taken.share > CAPTURE:
        errors.print(f"[yellow]{told(taken, CAPTURE)}[/]")
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


def add_all(
    folder: Annotated[Path, typer.Argument(help="A folder of PEFT folders, each with its samples.jsonl.")],
    *,
    pool: PoolFolder = "./pool",
    base: Base = None,
    embedder: EmbedderOption = None,
    any_base: AnyBase = False,
    no_terms: NoTerms = False,
) -> None:
    """Add every PEFT folder inside a folder under its own name; what is there already is left.

    Whatever is wrong with one, the others are added; each that was refused, and each folder that is no PEFT folder
    and was left, is a line on stderr at the end.
    """
    from hilora.base.models import first_line
    from hilora.pool.peft_config import CONFIG
    from hilora.pool.source import samples_for

    inside = sorted(path for path in folder.glob("*") if path.is_dir())
    found = [path for path in inside if (path / CONFIG).exists()]
    if not found:
        raise InputError(f"{folder} holds no PEFT folders (none of its folders has an {CONFIG}).")
    opened, embed = _open_or_create(pool, base, embedder)
    new = [path for path in found if path.name not in opened.names]
    refused = []
    with progress(len(new), "adapters") as advance:
        for number, path in enumerate(new, start=1):
            try:
                texts = samples_for(path.name, path, None)
                opened.add(path.name, path, texts, embed, any_base=any_base, terms=not no_terms)
            except HiloraError as error:
                refused.append(f"{path.name}: {first_line(error)}")
            except Exception as error:  # noqa: BLE001  not thought of, and no reason to keep the others out
                kind = type(error).__name__
                refused.append(f"{path.name}: {kind}: {first_line(error)}. Check its files, or fetch them again.")
            advance(number)
    opened.tune()
    console.print(f"{len(new) - len(refused)} added, {len(found) - len(new)} there before, {len(refused)} refused")
    others = [path for path in inside if path not in found and path.name[0] != "." and not path.samefile(pool)]
    skipped = [f"{path.name}: skipped, as it has no {CONFIG}; an adapter needs one." for path in others]
    for line in [*refused, *skipped]:
        print(f"hilora: {line.encode(errors='backslashreplace').decode()}", file=sys.stderr)
    if refused:
        raise typer.Exit(2)


def _open_or_create(path: str, base: str | None, embedder: str | None) -> tuple[Any, Any]:
    """The pool, made if there is none, and its embedder; what is named for a pool that is there must be its own."""
    from hilora.base.embed import DEFAULT_EMBEDDER, Embedder, describe_embedder
    from hilora.base.fingerprint import describe_base
    from hilora.base.outputs import check_folder
    from hilora.pool import Pool
    from hilora.pool.store import BASE, MANIFEST

    check_folder(Path(path))
    if (Path(path) / MANIFEST).exists():
        pool = Pool.open(path)
        if base is not None:
            _check_base(pool.base, base, path)
        return pool, pool.embedder.load(pool.path, name=embedder)
    left = {BASE} if Path(path).is_dir() else set()  # what a crash may leave of a pool that was being made
    if Path(path).exists() and (not left or {p.name for p in Path(path).iterdir() if p.name[0] != "."} - left):
        raise PoolError(f"{path} exists and is no pool. Choose an empty or a new folder for a new pool.")
    quiet_transformers()
    with status(f"Making a pool for {base or DEFAULT_BASE}"):
        found = Embedder(embedder or DEFAULT_EMBEDDER)
        return Pool.create(path, describe_base(base or DEFAULT_BASE), describe_embedder(found)), found


def _check_base(own: BaseInfo, base: str, pool: str) -> None:
    """Refuse another base than a pool's; its own may go by another name.

    Raises:
        MismatchError: the two are not the same model, as far as files say.
        ModelError: there is no such base.
    """
    from hilora.base.embedded import BASES
    from hilora.base.fingerprint import describe_base

    if base == own.name or (own.name in BASES and base in BASES[own.name].aliases):
        return
    quiet_transformers()
    if not own.is_same(describe_base(base)):
        raise MismatchError(
            f"The pool {pool} is for {own.name!r}, not for {base!r}. Leave --base away, or name a new --pool."
        )

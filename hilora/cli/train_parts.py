"""hilora train router, moe, phatgoose, lorahub: what methods need trained, kept beside a pool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hilora.cli.opened import load_base_of, open_pool
from hilora.cli.options import Base, Batch, Dtype, Evaluations, Longest, Members, PoolFolder, Rate, Steps
from hilora.cli.show import console, progress

if TYPE_CHECKING:
    from hilora.train.gates import Trainer

Data = Annotated[Path, typer.Option(help='Folder of training data: ADAPTER.jsonl with "inputs" and "targets".')]
PerTask = Annotated[int, typer.Option(min=1, help="Examples of each task.")]


def router(
    *,
    data: Data,
    pool: PoolFolder = "./pool",
    share: Annotated[float, typer.Option(help="Share of the tasks that it is trained on.")] = 0.4,
    dropout: Annotated[float, typer.Option(help="Share of the adapters that each row does without.")] = 0.5,
    rank: Annotated[int, typer.Option(min=1)] = 6,
    name: Annotated[str, typer.Option(help="To save it under; `-o router=NAME` chooses it.")] = "router",
    steps: Steps = 200,
    batch: Batch = 8,
    lr: Rate = 1e-3,
    per_task: PerTask = 100,
    max_tokens: Longest = 512,
    seed: int = 0,
    base: Base = None,
    dtype: Dtype = None,
) -> None:
    """Train RAMoLE's RouterLoRA, for the method `ramole`. An interrupted run resumes."""
    from hilora.train.gates import check_router
    from hilora.train.recipe import GateRecipe

    check_router(name)
    recipe = GateRecipe(
        steps=steps,
        batch=batch,
        lr=lr,
        max_tokens=max_tokens,
        seed=seed,
        per_task=per_task,
        rank=rank,
        alpha=2 * rank,
        dropout=dropout,
        share=share,
    )
    _train(
        pool, data, base, dtype, steps, lambda trainer: trainer.router(recipe, name), name, f"ramole -o router={name}"
    )


def moe(
    *,
    data: Data,
    pool: PoolFolder = "./pool",
    kind: Annotated[str, typer.Option(help="moe-soft, moe-top1, moe-top3 or smear.")],
    steps: Steps = 200,
    batch: Batch = 8,
    lr: Rate = 1e-3,
    per_task: PerTask = 20,
    max_tokens: Longest = 512,
    seed: int = 0,
    base: Base = None,
    dtype: Dtype = None,
) -> None:
    """Train a mixture of experts, or SMEAR: an adapter of each "cluster" of the data. An interrupted run resumes."""
    from hilora.errors import UnknownNameError
    from hilora.train.gates import MOES
    from hilora.train.recipe import GateRecipe
    from hilora.train.tasks import read_clusters

    if kind not in MOES:
        raise UnknownNameError("kind of mixture", kind, MOES)
    recipe = GateRecipe(steps=steps, batch=batch, lr=lr, max_tokens=max_tokens, seed=seed, per_task=per_task)

    def run(trainer: Trainer) -> Path:
        return trainer.moe(kind, read_clusters(data, sorted(trainer.tasks)), recipe)

    _train(pool, data, base, dtype, steps, run, kind)


def phatgoose(
    *,
    data: Data,
    pool: PoolFolder = "./pool",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each adapter.")] = 100,
    batch: Batch = 8,
    lr: Rate = 5e-3,
    per_task: PerTask = 100,
    max_tokens: Longest = 512,
    seed: int = 0,
    base: Base = None,
    dtype: Dtype = None,
) -> None:
    """Train Phatgoose's gates, adapter by adapter; those that have theirs already are left. Resumes."""
    from hilora.train.recipe import GateRecipe

    recipe = GateRecipe(steps=steps, batch=batch, lr=lr, max_tokens=max_tokens, seed=seed, per_task=per_task)
    _train(pool, data, base, dtype, steps, lambda trainer: trainer.phatgoose(recipe), "phatgoose")


def lorahub(
    *,
    data: Data,
    pool: PoolFolder = "./pool",
    members: Members = 20,
    evaluations: Evaluations = 40,
    per_task: PerTask = 20,
    max_tokens: Longest = 512,
    seed: int = 0,
    base: Base = None,
    dtype: Dtype = None,
) -> None:
    """Search LoRAHub's weights on a few examples, without gradients. An interrupted run resumes."""
    from hilora.train.lorahub import train_lorahub
    from hilora.train.recipe import HubRecipe

    recipe = HubRecipe(members=members, evaluations=evaluations, per_task=per_task, max_tokens=max_tokens, seed=seed)

    def run(trainer: Trainer) -> Path:
        def on_step(step: int, loss: float) -> None:
            if trainer.on_step:
                trainer.on_step(step, loss, 0.0)

        return train_lorahub(
            trainer.pool, trainer.tasks, recipe, model=trainer.model, tokenizer=trainer.tokenizer, on_step=on_step
        )

    _train(pool, data, base, dtype, evaluations, run, "lorahub")


def _train(
    pool: str,
    data: Path,
    base: str | None,
    dtype: str | None,
    steps: int,
    run: Callable[[Trainer], Path],
    kind: str,
    method: str | None = None,
) -> None:
    """Load a pool, its base and its training data, and train with a bar; what will not do is refused before.

    Args:
        kind: the name that what is trained is kept under.
        method: how `--method` chooses it; default: by that name.
    """
    from hilora.train.gates import Trainer
    from hilora.train.outcome import check_part
    from hilora.train.tasks import read_tasks

    opened = open_pool(pool)
    check_part(opened, kind)
    tasks = read_tasks(data, opened.names)
    model, tokenizer = load_base_of(opened, base, dtype)
    with progress(steps, "steps") as advance:
        trainer = Trainer(
            opened, tasks, model, tokenizer, lambda step, loss, speed: advance(step, f"loss {loss:.3f}")
        )
        path = run(trainer)
    console.print(f"{path}: trained. Next: hilora generate PROMPT --method {method or kind} --pool {pool}")

"""hilora train: what can be trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hilora.cli.options import Base, Dtype, PoolName, quiet_transformers
from hilora.cli.show import console, progress, status

if TYPE_CHECKING:
    from hilora.pool.pool import Pool
    from hilora.train.gates import Trainer

app = typer.Typer(help="Train adapters, and what some methods need trained.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Train adapters, and what some methods need trained."""


@app.command()
def lora(
    task: Annotated[Path, typer.Argument(help='Training data: JSON Lines with "inputs" and "targets".')],
    *,
    out: Annotated[Path, typer.Option(help="The PEFT folder to write.")],
    base: Annotated[str, typer.Option(help="Base model: a name or a path.")] = "smollm2-135m",
    target: Annotated[list[str] | None, typer.Option(help="Module names to adapt (may be repeated).")] = None,
    rank: Annotated[int, typer.Option(min=1)] = 8,
    alpha: Annotated[int | None, typer.Option(help="Scaling numerator; default: twice the rank.")] = None,
    steps: Annotated[int, typer.Option(min=1)] = 150,
    batch: Annotated[int, typer.Option(min=1, help="Examples per step.")] = 16,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-3,
    max_tokens: Annotated[int, typer.Option(min=8, help="Longer examples are left out.")] = 512,
    samples: Annotated[int, typer.Option(min=2, help="Routing samples to draw (m).")] = 20,
    seed: int = 0,
    dtype: Annotated[str | None, typer.Option(help="fp32 or bf16; default: bf16 where it is fast.")] = None,
) -> None:
    """Train one LoRA adapter and draw its routing samples. An interrupted run resumes."""
    from hilora.base.models import load_base
    from hilora.train.data import read_lines
    from hilora.train.lora import train_lora
    from hilora.train.recipe import Recipe

    rows = read_lines(task)
    recipe = Recipe(
        targets=tuple(target or ("q_proj", "v_proj")),
        rank=rank,
        alpha=alpha or 2 * rank,
        steps=steps,
        batch=batch,
        lr=lr,
        max_tokens=max_tokens,
        seed=seed,
        num_samples=samples,
    )
    quiet_transformers()
    with status(f"Loading {base}"):
        model, tokenizer = load_base(base, dtype=dtype)
    with progress(steps, "steps") as advance:
        train_lora(
            rows,
            out,
            model=model,
            tokenizer=tokenizer,
            base_name=base,
            recipe=recipe,
            on_step=lambda step, loss, speed: advance(step, f"loss {loss:.3f}, {speed:.0f} tokens/s"),
        )
    console.print(f"{out}: a PEFT folder with its samples. Next: hilora pool add {out.name} {out} --pool ./pool")


Data = Annotated[Path, typer.Option(help='Folder of training data: ADAPTER.jsonl with "inputs" and "targets".')]
Steps = Annotated[int, typer.Option(min=1, help="Optimiser steps.")]
PerTask = Annotated[int, typer.Option(min=1, help="Examples of each task.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate.")]
Batch = Annotated[int, typer.Option(min=1, help="Examples per step.")]
Longest = Annotated[int, typer.Option(min=8, help="Longer examples are left out.")]


@app.command()
def router(
    *,
    pool: PoolName,
    data: Data,
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
    from hilora.train.recipe import GateRecipe

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
    _train(pool, data, base, dtype, steps, lambda trainer: trainer.router(recipe, name), f"ramole -o router={name}")


@app.command()
def moe(
    *,
    pool: PoolName,
    data: Data,
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


@app.command()
def phatgoose(
    *,
    pool: PoolName,
    data: Data,
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


@app.command()
def lorahub(
    *,
    pool: PoolName,
    data: Data,
    members: Annotated[int, typer.Option(min=2, help="Adapters that are drawn.")] = 20,
    evaluations: Annotated[int, typer.Option(min=1, help="Of the loss.")] = 40,
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


@app.command()
def combine(
    task: Annotated[Path, typer.Argument(help='A few examples: JSON Lines with "inputs" and "targets".')],
    *,
    pool: PoolName,
    out: Annotated[Path, typer.Option(help="The PEFT folder to write.")],
    without: Annotated[list[str] | None, typer.Option(help="An adapter that is not drawn (may be repeated).")] = None,
    members: Annotated[int, typer.Option(min=2, help="Adapters that are drawn.")] = 20,
    evaluations: Annotated[int, typer.Option(min=1, help="Of the loss.")] = 40,
    examples: Annotated[int, typer.Option(min=1, help="That are drawn.")] = 20,
    max_tokens: Longest = 512,
    seed: int = 0,
    base: Base = None,
    dtype: Dtype = None,
) -> None:
    """Make an adapter for a new task from those of a pool, without gradients (LoRAHub). Resumes."""
    from hilora.pool.pool import Pool
    from hilora.pool.source import find_pool
    from hilora.train.data import read_lines
    from hilora.train.lorahub import make_adapter
    from hilora.train.recipe import HubRecipe

    rows = read_lines(task)
    recipe = HubRecipe(members=members, evaluations=evaluations, per_task=examples, max_tokens=max_tokens, seed=seed)
    opened = Pool.open(find_pool(pool))
    model, tokenizer = _load(opened, base, dtype)
    with progress(evaluations, "evaluations") as advance:
        make_adapter(
            opened,
            rows,
            out,
            recipe,
            model=model,
            tokenizer=tokenizer,
            without=without or (),
            on_step=lambda step, loss: advance(step, f"loss {loss:.3f}"),
        )
    console.print(f"{out}: a PEFT folder with its samples. Next: hilora pool add {out.name} {out} --pool {pool}")


@app.command()
def retriever(
    *,
    samples: Annotated[Path, typer.Option(help='JSON Lines with "task" and "inputs": each adapter\'s samples.')],
    out: Annotated[Path, typer.Option(help="The sentence-transformers folder to write.")],
    embedder: Annotated[str, typer.Option(help="What to start from: a name or a folder.")] = "all-minilm-l6-v2",
    share: Annotated[float, typer.Option(help="Share of the tasks that it is trained on.")] = 1.0,
    temperature: Annotated[float, typer.Option(help="Of the softmax over cosines.")] = 0.05,
    steps: Steps = 300,
    batch: Annotated[int, typer.Option(min=2, help="Tasks per step.")] = 32,
    lr: Rate = 5e-5,
    seed: int = 0,
) -> None:
    """Train RAMoLE's LoraRetriever: an embedder for `hilora pool reembed`. An interrupted run resumes."""
    from hilora.evaluate.routing import read_samples
    from hilora.train.retriever import RetrieverRecipe, check_training, train_retriever

    texts = read_samples(samples)
    check_training(texts, out)
    recipe = RetrieverRecipe(
        steps=steps, batch=batch, lr=lr, seed=seed, temperature=temperature, share=share, embedder=embedder
    )
    quiet_transformers()
    with progress(steps, "steps") as advance:
        train_retriever(
            texts,
            out,
            recipe,
            on_step=lambda step, loss, speed: advance(step, f"loss {loss:.3f}, {speed:.0f} texts/s"),
        )
    console.print(f"{out}: an embedder. Next: hilora pool reembed --embedder {out} --pool ./pool --samples DIR")


def _train(
    pool: str,
    data: Path,
    base: str | None,
    dtype: str | None,
    steps: int,
    run: Callable[[Trainer], Path],
    method: str,
) -> None:
    """Load a pool, its base and its training data, and train with a bar."""
    from hilora.pool.pool import Pool
    from hilora.pool.source import find_pool
    from hilora.train.gates import Trainer
    from hilora.train.tasks import read_tasks

    opened = Pool.open(find_pool(pool))
    tasks = read_tasks(data, opened.names)  # refused before anything is loaded
    model, tokenizer = _load(opened, base, dtype)
    with progress(steps, "steps") as advance:
        trainer = Trainer(
            opened, tasks, model, tokenizer, lambda step, loss, speed: advance(step, f"loss {loss:.3f}")
        )
        path = run(trainer)
    console.print(f"{path}: trained. Next: hilora generate PROMPT --method {method} --pool {pool}")


def _load(pool: Pool, base: str | None, dtype: str | None) -> tuple[Any, Any]:
    """A pool's base and tokenizer."""
    from hilora.base.models import load_base
    from hilora.base.prompts import template_id

    quiet_transformers()
    with status(f"Loading {base or pool.base.name}"):
        model, tokenizer = load_base(base or pool.base.name, dtype=dtype)
    pool.base.check_model(model, template_id(tokenizer))
    return model, tokenizer

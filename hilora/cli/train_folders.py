"""hilora train lora, combine, retriever: what comes out is a folder, of an adapter or an embedder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hilora.cli.opened import load_base_of, open_pool
from hilora.cli.options import (
    Base,
    Batch,
    Dtype,
    Evaluations,
    Longest,
    Members,
    PoolName,
    Rate,
    Steps,
    quiet_transformers,
)
from hilora.cli.show import console, progress, status


def lora(
    task: Annotated[Path, typer.Argument(help='Training data: JSON Lines with "inputs" and "targets", or chats.')],
    *,
    out: Annotated[Path, typer.Option(help="The PEFT folder to write.")],
    base: Annotated[str, typer.Option(help="Base model: a name or a path.")] = "smollm2-135m",
    target: Annotated[list[str] | None, typer.Option(help="Module names to adapt (may be repeated).")] = None,
    rank: Annotated[int, typer.Option(min=1)] = 8,
    alpha: Annotated[int | None, typer.Option(help="Scaling numerator; default: twice the rank.")] = None,
    steps: Annotated[int, typer.Option(min=1)] = 150,
    batch: Batch = 16,
    lr: Rate = 3e-3,
    max_tokens: Longest = 512,
    samples: Annotated[int, typer.Option(min=2, help="Routing samples to draw (m).")] = 20,
    seed: int = 0,
    dtype: Annotated[str | None, typer.Option(help="fp32 or bf16; default: bf16 where it is fast.")] = None,
) -> None:
    """Train one LoRA adapter and draw its routing samples. An interrupted run resumes."""
    from hilora.base.models import load_base
    from hilora.train.data import read_lines
    from hilora.train.lora import train_lora
    from hilora.train.outcome import refuse_existing
    from hilora.train.recipe import Recipe

    refuse_existing(out)
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
    _show_made(out, "./pool")


def combine(
    task: Annotated[Path, typer.Argument(help='A few examples: JSON Lines with "inputs" and "targets".')],
    *,
    out: Annotated[Path, typer.Option(help="The PEFT folder to write.")],
    pool: PoolName = None,
    without: Annotated[list[str] | None, typer.Option(help="An adapter that is not drawn (may be repeated).")] = None,
    members: Members = 20,
    evaluations: Evaluations = 40,
    examples: Annotated[int, typer.Option(min=1, help="That are drawn.")] = 20,
    max_tokens: Longest = 512,
    seed: int = 0,
    base: Base = None,
    dtype: Dtype = None,
) -> None:
    """Make an adapter for a new task from those of a pool, without gradients (LoRAHub). Resumes."""
    from hilora.train.data import read_lines
    from hilora.train.lorahub import make_adapter
    from hilora.train.outcome import refuse_existing
    from hilora.train.recipe import HubRecipe

    refuse_existing(out, "search")
    rows = read_lines(task)
    recipe = HubRecipe(members=members, evaluations=evaluations, per_task=examples, max_tokens=max_tokens, seed=seed)
    opened = open_pool(pool)
    model, tokenizer = load_base_of(opened, base, dtype)
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
    _show_made(out, pool or "./pool")


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


def _show_made(adapter: Path, pool: str) -> None:
    """Where an adapter is, and how it gets into a pool."""
    console.print(
        f"{adapter}: a PEFT folder with its samples. Next: hilora pool add {adapter.name} {adapter} --pool {pool}"
    )

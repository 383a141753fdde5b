"""hilora train: what can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hilora.cli.options import quiet_transformers
from hilora.cli.show import console, progress, status

app = typer.Typer(help="Train adapters.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Train adapters."""


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
    from hilora.models import load_base
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

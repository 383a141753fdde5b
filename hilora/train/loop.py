"""The loop that everything trained here goes through: AdamW, warm-up and decay, checkpoints, a log line per step.

A run that was interrupted goes on at its last checkpoint and ends as if it had not been: each step's batch depends on
the seed and the step alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hilora.train.checkpoint import load_checkpoint, save_checkpoint
from hilora.train.recipe import Schedule

if TYPE_CHECKING:
    import torch

LOG = "training.jsonl"
"""A line per step, in the work folder."""
Batch = TypeVar("Batch")
OnStep = Callable[[int, float, float], None]
"""Called with (step, loss, real tokens per second)."""


def learning_rate(step: int, schedule: Schedule) -> float:
    """Linear rise to the peak over the warm-up, linear fall to 0 at the end."""
    rise = max(1, round(schedule.warmup * schedule.steps))
    return schedule.lr * min((step + 1) / rise, (schedule.steps - step) / max(1, schedule.steps - rise))


def optimise(
    named: Mapping[str, torch.nn.Parameter],
    stream: Iterator[Batch],
    loss_of: Callable[[Batch], torch.Tensor],
    size_of: Callable[[Batch], int],
    schedule: Schedule,
    work: Path,
    *,
    key: str = "",
    checkpoint_every: int = 25,
    on_step: OnStep | None = None,
) -> None:
    """Minimise a loss over a stream of batches.

    Args:
        named: what is trained; nothing else changes.
        stream: a batch per step.
        loss_of: batch -> its loss.
        size_of: batch -> its tokens, for the log.
        schedule: how; a checkpoint of another one is refused.
        work: folder of the checkpoint and of `training.jsonl`.
        key: of everything else that the outcome depends on: data, adapters, base. A checkpoint of another is refused.
        checkpoint_every: steps between checkpoints.
        on_step: called after each step.

    Raises:
        InputError: the folder holds a run with another recipe or key.
    """
    import torch

    optimiser = torch.optim.AdamW(named.values(), lr=schedule.lr, weight_decay=0.0)
    done = load_checkpoint(work, schedule, named, optimiser, key)
    log = work / LOG
    kept = log.read_text().splitlines()[:done] if log.exists() else []
    log.write_text("".join(line + "\n" for line in kept))
    for step in range(schedule.steps):
        batch = next(stream)
        if step < done:
            continue
        start = time.perf_counter()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, schedule)
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        value, speed = float(loss.detach()), size_of(batch) / (time.perf_counter() - start)
        with log.open("a") as lines:
            row = {"step": step + 1, "loss": round(value, 4), "tokens_per_s": round(speed)}
            lines.write(json.dumps(row) + "\n")
        if (step + 1) % checkpoint_every == 0 and step + 1 < schedule.steps:
            save_checkpoint(work, schedule, step + 1, named, optimiser, key)
        if on_step:
            on_step(step + 1, value, speed)


@contextmanager
def as_it_was(model: Any) -> Iterator[None]:
    """Attention, mode and what is trainable of a model are as before when this is left.

    Inside, attention is "eager": on a CPU the fused kernel's backward is 3 times slower in bf16.
    """
    attention, training = model.config._attn_implementation, model.training
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(attention)
        model.train(training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])

"""How things are trained, in one place; written beside what was trained."""

from __future__ import annotations

from dataclasses import dataclass

from hilora.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a training loop runs.

    Attributes:
        steps, batch: optimiser steps, and examples in each.
        lr, warmup: peak learning rate; share of the steps that rise to it, then a linear decay to 0.
        max_tokens: examples longer than this (prompt and completion) are left out.
        seed: order of the examples and initial weights.
    """

    steps: int = 150
    batch: int = 16
    lr: float = 3e-3
    warmup: float = 0.06
    max_tokens: int = 512
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Shared(Schedule):
    """How something is trained on a share of the tasks, so that the others show whether it generalises.

    Attributes:
        share: of the tasks; the others stay unknown to it.
    """

    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"share is a share of the tasks: got {self.share}, expected 0 < share <= 1.")


@dataclass(frozen=True, kw_only=True)
class Recipe(Schedule):
    """How an adapter is trained.

    Attributes:
        targets: names of the linear modules to adapt.
        rank, alpha: LoRA rank and scaling numerator.
        num_samples: m, the routing samples drawn from the training lines.
    """

    targets: tuple[str, ...] = ("q_proj", "v_proj")
    rank: int = 8
    alpha: int = 16
    num_samples: int = 20

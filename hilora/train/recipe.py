"""How things are trained, in one place; written beside what was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hilora.errors import InputError


def check_rank(rank: int, largest: Mapping[str, int]) -> None:
    """Refuse a rank that only takes memory.

    Args:
        rank: that is asked for.
        largest: module -> the largest rank that it can have, the smaller of its widths.

    Raises:
        InputError: names the module.
    """
    smallest = min(largest, key=largest.__getitem__)
    if rank > largest[smallest]:
        raise InputError(
            f"A rank of {rank} is more than the module {smallest} can have, which is {largest[smallest]}. "
            f"Give a smaller --rank; 8 is usual."
        )


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


@dataclass(frozen=True, kw_only=True)
class GateRecipe(Shared):
    """How gates are trained.

    Attributes:
        per_task: examples of each task.
        rank, alpha: of RouterLoRA.
        dropout: share of the adapters that each row does without, for RouterLoRA; never all.
        share: of the tasks, for RouterLoRA.
        temperature: tau of the Gumbel softmax of sparse mixtures.
    """

    steps: int = 200
    batch: int = 8
    lr: float = 1e-3
    per_task: int = 20
    rank: int = 6
    alpha: int = 12
    dropout: float = 0.5
    share: float = 0.4
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is a share of the adapters: got {self.dropout}, expected 0 <= dropout < 1.")


@dataclass(frozen=True, kw_only=True)
class HubRecipe:
    """How the weights are searched.

    Attributes:
        members: adapters that are drawn.
        evaluations: of the loss.
        l1: weight of the mean |w_i|.
        bound: largest |w_i|.
        sigma: first step size.
        per_task: examples of each task.
        batch, max_tokens: of the loss.
        seed: of the draw and of the search.
    """

    members: int = 20
    evaluations: int = 40
    l1: float = 0.05
    bound: float = 1.5
    sigma: float = 0.5
    per_task: int = 20
    batch: int = 32
    max_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.members < 2 or self.evaluations < 1:
            raise InputError("LoRAHub needs at least 2 members and 1 evaluation.")

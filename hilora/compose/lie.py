"""How ROCs lie at a site: in runs, each of one adapter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from hilora.types import Plan, Rocs


@dataclass(frozen=True)
class Lie:
    """Which adapter each ROC is of, and where among the adapter's.

    Attributes:
        columns: (run,) plan column of each run.
        run: (roc,) which one each ROC is of; `place`: where in it.
        first, count: (run,) its first ROC, and how many they are; `most`: the largest count.
    """

    columns: Int[Tensor, " run"]
    run: Int[Tensor, " roc"]
    place: Int[Tensor, " roc"]
    first: Int[Tensor, " run"]
    count: Int[Tensor, " run"]
    most: int


def lie_of(rocs: Rocs) -> Lie:
    """How ROCs lie; worked out once, since it depends on `blocks` alone, and kept with them."""
    found: Lie | None = getattr(rocs, "_lie", None)
    if found is None:
        counts = [rank for rank, columns in rocs.blocks for _ in columns]
        count = torch.tensor(counts, device=rocs.owner.device)
        first = count.cumsum(0) - count
        run = torch.arange(len(count), device=count.device).repeat_interleave(count, output_size=sum(counts))
        place = torch.arange(len(run), device=count.device) - first[run]
        found = Lie(torch.cat([columns for _, columns in rocs.blocks]), run, place, first, count, max(counts))
        object.__setattr__(rocs, "_lie", found)
    return found


def positions_of(plan: Plan, where: torch.device) -> Int[Tensor, " adapter"]:
    """Of a plan's adapters in their pool, on a device."""
    return torch.tensor(plan.ids, device=where) if plan.at is None else plan.at

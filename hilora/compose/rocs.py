"""HiLoRA's token level: each token keeps its strongest ROCs.

Section 3.3: of adapter i, the top-o_i ROCs by projection a.x; the sum is scaled by sqrt(mean rank / O).
HiLoRA-ROC ranks all ROCs of the pool together and keeps k of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hilora.errors import InputError, UnknownNameError
from hilora.types import Plan, Site

Strength = Callable[[Tensor, Site], Tensor]

CRITERIA: dict[str, Strength] = {
    "value": lambda z, site: z,
    "magnitude": lambda z, site: z.abs(),
    "contribution": lambda z, site: z.abs() * site.up.norm(dim=0),
}
"""How strong a ROC is for a token: the paper's signed a.x, its size, or the size of what the ROC adds."""

SORT_ABOVE = 24
"""Ranks above this are ordered by sorting; below, counting comparisons is faster."""


def among_strongest(
    strength: Float[Tensor, "token column rank"], keep: Int[Tensor, "token column"]
) -> Bool[Tensor, "token column rank"]:
    """Whether each ROC is one of the `keep` strongest of its adapter; ties go to the earlier ROC."""
    rank = strength.shape[-1]
    if rank > SORT_ABOVE:
        order = strength.argsort(dim=-1, descending=True, stable=True)
        place = torch.empty_like(order).scatter_(-1, order, torch.arange(rank, device=order.device).expand_as(order))
        return place < keep[..., None]
    # place = how many are stronger; filled one rival at a time, so that nothing is rank times larger
    place = torch.zeros(strength.shape, dtype=torch.int8, device=strength.device)
    for rival in range(rank):
        other = strength[..., rival : rival + 1]
        place[..., :rival] += other > strength[..., :rival]
        place[..., rival + 1 :] += other >= strength[..., rival + 1 :]
    return place < keep[..., None]


@dataclass(frozen=True)
class TopRocs:
    """Keep each token's strongest ROCs of each adapter, as many as the plan gives the adapter.

    Args:
        criterion: a name in `CRITERIA`.
    """

    criterion: str = "value"

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise UnknownNameError("criterion", self.criterion, CRITERIA)

    def __call__(
        self, z: Float[Tensor, "token roc"], site: Site, plan: Plan, row: Int[Tensor, " token"]
    ) -> Float[Tensor, "token roc"]:
        """Projections of the kept ROCs, scaled; 0 for the others."""
        strength = CRITERIA[self.criterion](z, site)
        kept, start = [], 0
        for rank, columns in site.blocks:
            stop = start + rank * len(columns)
            # a site whose rank is below the adapter's largest (rank_pattern) gets its share of the budget
            largest = plan.ranks[columns]
            keep = (plan.rocs[:, columns] * rank + largest - 1) // largest  # (batch, column), rounded up
            part = among_strongest(strength[:, start:stop].unflatten(1, (-1, rank)), keep[row])
            kept.append(part.flatten(1))
            start = stop
        gate = torch.cat(kept, dim=1) if len(kept) > 1 else kept[0]
        return z * gate * plan.scale[row, None].to(z.dtype)


@dataclass(frozen=True)
class PoolTopRocs:
    """Keep each token's k strongest ROCs over all adapters that its row may use (HiLoRA-ROC).

    Args:
        k: ROCs kept at each site, at most all there are.
        criterion: a name in `CRITERIA`.
    """

    k: int = 24
    criterion: str = "value"

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise UnknownNameError("criterion", self.criterion, CRITERIA)
        if self.k < 1:
            raise InputError(f"k is the number of ROCs that a token uses: got {self.k}, expected at least 1.")

    def __call__(
        self, z: Float[Tensor, "token roc"], site: Site, plan: Plan, row: Int[Tensor, " token"]
    ) -> Float[Tensor, "token roc"]:
        """Projections of the kept ROCs, scaled; 0 for the others."""
        usable = (plan.rocs > 0)[:, site.owner][row]
        strength = CRITERIA[self.criterion](z, site).masked_fill(~usable, -torch.inf)
        chosen = strength.topk(min(self.k, z.shape[1]), dim=1).indices
        gate = torch.zeros_like(usable).scatter_(1, chosen, True) & usable
        return z * gate * plan.scale[row, None].to(z.dtype)

"""HiLoRA's token level: each token keeps its strongest ROCs.

Section 3.3: of adapter i, the top-o_i ROCs by projection a.x; the sum is scaled by sqrt(mean rank / O).
HiLoRA-ROC ranks all ROCs of the pool together and keeps k of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hilora.errors import InputError, UnknownNameError
from hilora.types import Plan, Site

Strength = Callable[[Tensor, Site], Tensor]

CRITERIA: dict[str, Strength] = {
    "value": lambda z, site: z,
    "magnitude": lambda z, site: z.abs(),
    "contribution": lambda z, site: z.abs() * site.up.norm(dim=0)[:, None],
}
"""How strong a ROC is for a token: the paper's signed a.x, its size, or the size of what the ROC adds."""

SORT_ABOVE = 24
"""Ranks above this are ordered by sorting, whose cost grows more slowly with the rank."""
SORT_BELOW = 2**13
"""So few projections (a decoding step) are sorted too: few operations matter more than cheap ones."""


def places(strength: Float[Tensor, "column rank token"]) -> Int[Tensor, "column rank token"]:
    """How many ROCs of its adapter are stronger than each ROC; of equal ones the earlier is the stronger."""
    columns, rank, tokens = strength.shape
    if rank > SORT_ABOVE or strength.numel() <= SORT_BELOW:
        order = strength.argsort(dim=1, descending=True, stable=True)
        numbers = torch.arange(rank, device=order.device)[:, None].expand_as(order)
        return torch.empty_like(order).scatter_(1, order, numbers)
    # count: each ROC starts behind all later ones, and comparing it with them corrects both sides
    place = torch.arange(rank - 1, -1, -1, dtype=torch.int8, device=strength.device)[:, None]
    place = place.repeat(columns, 1, tokens)
    for roc in range(rank - 1):
        wins = (strength[:, roc : roc + 1] >= strength[:, roc + 1 :]).view(torch.int8)  # (column, later, token)
        place[:, roc + 1 :] += wins
        place[:, roc] -= wins.sum(1, dtype=torch.int8)
    return place


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
        self, z: Float[Tensor, "roc token"], site: Site, plan: Plan, row: Int[Tensor, " token"]
    ) -> Float[Tensor, "roc token"]:
        """Projections of the kept ROCs, scaled; 0 for the others."""
        strength = CRITERIA[self.criterion](z, site)
        gates, start = [], 0
        for rank, columns in site.blocks:
            stop = start + rank * len(columns)
            # a site whose rank is below the adapter's largest (rank_pattern) gets its share of the budget
            largest = plan.ranks[columns]
            keep = (plan.rocs[:, columns] * rank + largest - 1) // largest  # (batch, column), rounded up
            keep = keep.T.to(torch.int16)[:, None, row]  # (column, 1, token)
            part = strength[start:stop].unflatten(0, (-1, rank))  # (column, rank, token)
            gate = (keep > 0).expand_as(part) if plan.whole else places(part) < keep
            gates.append(gate.flatten(0, 1))
            start = stop
        gate = torch.cat(gates) if len(gates) > 1 else gates[0]
        return z * gate * plan.scale.to(z.dtype)[row]


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
        self, z: Float[Tensor, "roc token"], site: Site, plan: Plan, row: Int[Tensor, " token"]
    ) -> Float[Tensor, "roc token"]:
        """Projections of the kept ROCs, scaled; 0 for the others."""
        usable = (plan.rocs > 0).T[site.owner][:, row]
        strength = CRITERIA[self.criterion](z, site).masked_fill(~usable, -torch.inf)
        chosen = strength.topk(min(self.k, len(z)), dim=0).indices
        gate = torch.zeros_like(usable).scatter_(0, chosen, True) & usable
        return z * gate * plan.scale.to(z.dtype)[row]

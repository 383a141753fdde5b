"""HiLoRA's token level (section 3.3): each token keeps its strongest ROCs.

Of adapter i, the top o_i = plan.rocs[row, i] ROCs by projection a.x; the sum is scaled by sqrt(mean rank / O).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hilora.compose.delta import Gated, Spread
from hilora.errors import UnknownNameError
from hilora.types import Plan, Rocs

CRITERIA: dict[str, Callable[[Tensor, Tensor, Spread], Tensor]] = {
    "value": lambda z, size, spread: z,
    "magnitude": lambda z, size, spread: z.abs(),
    "contribution": lambda z, size, spread: z.abs() * spread(size),
}
"""How strong ROCs are, by z, size (roc, batch), spread: the paper's signed a.x, its size, or that of what it adds."""


def places(strength: Float[Tensor, "roc token"], owner: Int[Tensor, " roc"]) -> Int[Tensor, "roc token"]:
    """Place of each ROC among those of its adapter, 0 = the strongest; of equal ones the earlier is stronger."""
    order = strength.argsort(dim=0, descending=True, stable=True)
    order = order.gather(0, owner[order].argsort(dim=0, stable=True))  # adapter by adapter
    number = torch.arange(len(owner), device=owner.device)[:, None].expand_as(order)
    before = (owner < owner[:, None]).sum(1, keepdim=True)  # ROCs of the adapters that come first
    return torch.empty_like(order).scatter_(0, order, number) - before


def row_weights(rocs: Rocs, plan: Plan) -> Float[Tensor, "roc batch"]:
    """What each row multiplies each ROC by where whole adapters are weighed: its adapter's weight, and the scale."""
    return (plan.weights * plan.scale[:, None]).T[rocs.owner].to(rocs.down.dtype)


def row_sizes(rocs: Rocs, plan: Plan) -> Float[Tensor, "roc batch"]:
    """Size of each ROC, the same for all rows unless each has ROCs of its own."""
    return rocs.size.view(len(rocs.owner), -1).expand(-1, len(plan.scale))


@dataclass(frozen=True)
class TopRocs:
    """Keep each token's strongest ROCs of each adapter, as many as the plan gives the adapter."""

    criterion: str = "value"  # a name in `CRITERIA`
    weighted: bool = False  # whether each adapter's ROCs count by its routing weight; in the paper they do not
    joinable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise UnknownNameError("criterion", self.criterion, CRITERIA)

    def __call__(self, rocs: Rocs, plan: Plan) -> Gated:
        """Bind to ROCs and a plan."""
        scale = row_weights(rocs, plan) if self.weighted else plan.scale.to(rocs.down.dtype)
        if plan.whole:  # nothing to choose
            factor = (plan.rocs > 0).T[rocs.owner] * scale  # (roc, batch)
            return lambda z, spread: z * spread(factor)
        kept, size, measure = self.kept(rocs, plan), row_sizes(rocs, plan), CRITERIA[self.criterion]
        return lambda z, spread: kept(measure(z, size, spread), spread).mul_(z).mul_(spread(scale))

    def kept(self, rocs: Rocs, plan: Plan) -> Callable[[Tensor, Spread], Tensor]:
        """(strength (roc, token), spread) -> 1 on the ROCs that the token keeps, else 0."""
        ranks = torch.tensor([rank for rank, columns in rocs.blocks for _ in columns], device=rocs.owner.device)
        adapter = torch.arange(len(ranks), device=ranks.device).repeat_interleave(ranks)  # (roc,) at one site each
        largest = plan.ranks[..., rocs.owner]  # a site with a lower rank (rank_pattern) gets its share of the budget
        keep = ((plan.rocs[:, rocs.owner] * ranks[adapter] + largest - 1) // largest).T  # (roc, batch)
        return lambda strength, spread: (places(strength, adapter) < spread(keep)).to(strength.dtype)

"""`compose.rocs` as one operation (`kernels.top_rocs`): one launch on a GPU, and what a compiled graph can hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hilora.compose.delta import Gate, Gated, Tokens
from hilora.compose.lie import lie_of
from hilora.compose.rocs import TopRocs
from hilora.engine.kernels.top_rocs import CRITERIA, by_triton, top_rocs
from hilora.engine.kernels.tried import works
from hilora.types import Plan, Rocs


@dataclass(frozen=True)
class FusedTopRocs(TopRocs):
    """`TopRocs`, chosen and multiplied in one go. What it gets and gives is best (token, roc) in memory, turned.

    Attributes:
        operation: `kernels.top_rocs.top_rocs`, or a twin of it.
        known: what lies alike, and plans, as the operation reads them.
    """

    operation: Any = top_rocs
    known: dict[Any, Any] = field(default_factory=dict, compare=False)

    def __call__(self, rocs: Rocs, plan: Plan) -> Gated:
        """Bind to ROCs and a plan."""
        lies, shares = self._once(rocs.blocks, lambda: lies_of(rocs)), self._once(plan, lambda: self.shares_of(plan))
        one, plainly = self.bound(rocs, lies, shares), super().__call__

        def gated(z: Tensor, tokens: Tokens) -> Tensor:
            if torch.is_grad_enabled():  # the operation has no gradient
                return plainly(rocs, plan)(z, tokens)
            return one(z, tokens)

        return gated

    def bound(self, rocs: Rocs, lies: tuple[Any, ...], shares: tuple[Tensor, Tensor, Tensor]) -> Gated:
        """The same, given what ROCs that lie alike have in common, and what all sites have."""
        (*where, most), criterion = lies, CRITERIA.index(self.criterion)
        return lambda z, tokens: self.operation(z.t(), rocs.size, *where, *shares, criterion, most).t()

    def shares_of(self, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, adapter) budget, (adapter,) rank, (batch, adapter) factor."""
        scale = plan.scale[:, None]
        factor = plan.weights * scale if self.weighted else scale.expand_as(plan.weights).contiguous()
        return plan.rocs.int(), plan.ranks.int(), factor

    def _once(self, of: object, make: Any) -> Any:
        if id(of) not in self.known:
            self.known[id(of)] = of, make()  # it stays, and so does its address
        return self.known[id(of)][1]


def lies_of(rocs: Rocs) -> tuple[Tensor, Tensor, Tensor, int]:
    """(roc,) first and count of each ROC's run, and its owner, all int32; the largest count."""
    lie = lie_of(rocs)
    return lie.first[lie.run].int(), lie.count[lie.run].int(), rocs.owner.int(), lie.most


@cache
def has_kernels(where: torch.device) -> bool:
    """Whether kernels run on a device: a GPU for which triton is there, and can compile."""
    if where.type != "cuda":
        return False
    numbers = torch.zeros(1, dtype=torch.int32, device=where)
    one, ones = torch.zeros(1, 1, device=where), torch.ones(1, 1, dtype=torch.int32, device=where)
    given = (one, one[0], numbers, ones[0], numbers, ones, ones[0], one, 0, 1)
    return works(lambda: by_triton(*given), where, "ROCs are chosen by PyTorch")


def fused(gate: Gate, where: torch.device) -> Gate | None:
    """A composer as one operation, where that costs least: on a GPU."""
    if type(gate) is TopRocs and has_kernels(where):
        return FusedTopRocs(gate.criterion, gate.weighted, by_triton)  # itself: torch asks a while whose it is
    return None

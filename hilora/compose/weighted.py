"""Whole adapters, weighted: Selection, Mixture (RAMoLE section IV-B) and Ensemble.

    delta = sum_i w_i B_i A_i x

with w_i the row's routing weight of adapter i: 1 for the one that is selected, 1/k for each of k retrieved
ones (the average of their outputs), 1/n for each of the pool's n (Ensemble).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from hilora.compose.delta import Gated
from hilora.types import Plan, Rocs


def roc_weights(rocs: Rocs, plan: Plan) -> Float[Tensor, "roc batch"]:
    """What each row multiplies each ROC by: its adapter's weight, and the row's scale."""
    return (plan.weights * plan.scale[:, None]).T[rocs.owner].to(rocs.down.dtype)


@dataclass(frozen=True)
class Weighted:
    """The adapter's weight on each of its ROCs, the same for all tokens."""

    joinable: ClassVar[bool] = True

    def __call__(self, rocs: Rocs, plan: Plan) -> Gated:
        """Bind to ROCs and a plan."""
        factor = roc_weights(rocs, plan)
        return lambda z, spread: z * spread(factor)

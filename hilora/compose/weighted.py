"""Whole adapters, weighted: Selection, Mixture (RAMoLE section IV-B) and Ensemble.

    delta = sum_i w_i B_i A_i x

with w_i the row's routing weight of adapter i: 1 for the one that is selected, 1/k for each of k retrieved
ones (the average of their outputs), 1/n for each of the pool's n (Ensemble).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hilora.compose.delta import Gated
from hilora.compose.rocs import row_weights
from hilora.types import Plan, Rocs


@dataclass(frozen=True)
class Weighted:
    """The adapter's weight on each of its ROCs, the same for all tokens."""

    joinable: ClassVar[bool] = True

    def __call__(self, rocs: Rocs, plan: Plan) -> Gated:
        """Bind to ROCs and a plan."""
        factor = row_weights(rocs, plan)
        return lambda z, spread: z * spread(factor)

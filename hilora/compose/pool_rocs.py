"""HiLoRA-ROC: the ROCs of all adapters are ranked together, and each token keeps the k strongest at each site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hilora.compose.delta import Gated, Spread
from hilora.compose.rocs import CRITERIA, row_sizes
from hilora.errors import InputError, UnknownNameError
from hilora.types import Plan, Rocs


@dataclass(frozen=True)
class PoolTopRocs:
    """Keep each token's k strongest ROCs over all adapters that its row may use (HiLoRA-ROC).

    Args:
        k: ROCs kept at each site, at most all there are.
        criterion: a name in `CRITERIA`.
    """

    k: int = 24
    criterion: str = "value"
    joinable: ClassVar[bool] = False  # k at each site

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise UnknownNameError("criterion", self.criterion, CRITERIA)
        if self.k < 1:
            raise InputError(f"k is the number of ROCs that a token uses: got {self.k}, expected at least 1.")

    def __call__(self, rocs: Rocs, plan: Plan) -> Gated:
        """Bind to ROCs: which of them each row may use."""
        usable, scale = (plan.rocs > 0).T[rocs.owner], plan.scale.to(rocs.down.dtype)  # (roc, batch)
        measure, size, k = CRITERIA[self.criterion], row_sizes(rocs, plan), min(self.k, len(rocs.owner))

        def gated(z: Tensor, spread: Spread) -> Tensor:
            may = spread(usable)
            chosen = measure(z, size, spread).masked_fill(~may, -torch.inf).topk(k, dim=0).indices
            gate = torch.zeros_like(may).scatter_(0, chosen, True) & may
            return z * gate * spread(scale)

        return gated

"""Arrow (Ostapenko et al. 2024, "Towards Modular LLMs by Building and Reusing a Library of LoRAs").

At each site, adapter i's prototype v_i is the first right singular vector of B_i A_i, the input direction that it
changes most. A token uses the k adapters with the largest |v_i . x|, weighted by a softmax over those:

    delta = sum_i p_i B_i A_i x,        p = softmax over the top k of |v_i . x| / temperature

With canonical ROCs, v_i . x is the projection on the adapter's first ROC: nothing else has to be computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hilora.compose.delta import Gated, Spread
from hilora.errors import InputError
from hilora.types import Plan, Rocs


@dataclass(frozen=True)
class Arrow:
    """A token-wise softmax over the adapters' prototypes; the ROCs must be canonical.

    Args:
        k: adapters that a token uses at each site.
        temperature: of the softmax.
    """

    k: int = 3
    temperature: float = 1.0
    joinable: ClassVar[bool] = False  # each site routes by itself

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k is the number of adapters that a token uses: got {self.k}, expected at least 1.")
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0; got {self.temperature}.")

    def __call__(self, rocs: Rocs, plan: Plan) -> Gated:
        """Bind to ROCs: where each adapter's first one lies, and who may use it."""
        ranks = torch.tensor([rank for rank, columns in rocs.blocks for _ in columns])
        first = (ranks.cumsum(0) - ranks).to(rocs.owner.device)  # (adapter,)
        ranks = ranks.to(rocs.owner.device)
        barred = (plan.rocs == 0).T[rocs.owner[first]]  # (adapter, batch)
        scale, k = plan.scale.to(rocs.down.dtype), min(self.k, len(first))

        def gated(z: Tensor, spread: Spread) -> Tensor:
            wide = z[first].to(torch.promote_types(z.dtype, torch.float32))  # the softmax is at least fp32
            logits = (wide.abs() / self.temperature).masked_fill(spread(barred), -torch.inf)
            top, ids = logits.topk(k, dim=0)
            weight = torch.softmax(top, dim=0).nan_to_num(0.0)  # rows that may use no adapter
            gate = torch.zeros_like(logits).scatter_(0, ids, weight)
            return z * gate.repeat_interleave(ranks, 0).to(z.dtype) * spread(scale)

        return gated

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

from hilora.compose.delta import Gated, Tokens
from hilora.compose.layout import Layout, top_weights, wide
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
        layout = Layout.of(rocs, plan)

        def gated(z: Tensor, tokens: Tokens) -> Tensor:
            logits = z[layout.first].to(wide(rocs)).abs() / self.temperature
            logits = logits.masked_fill(tokens(layout.barred), -torch.inf)
            return layout.weigh(z, top_weights(logits, self.k), tokens)

        return gated

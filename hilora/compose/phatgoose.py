"""Phatgoose (Muqeeth et al. 2024, "Learning to Route Among Specialized Experts for Zero-Shot Generalization").

Each adapter i has at each site a vector v_i, trained alone with everything else frozen, as a sigmoid gate on that
adapter's output:

    training     delta = sigmoid(v_i . x) B_i A_i x
    serving      alpha_i = vbar_i . xbar        delta = sum_(top k of alpha) softmax(alpha / sqrt(in))_i B_i A_i x

where vbar and xbar are standardised over their entries: mean 0, variance 1. k = 2 as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hilora.compose.delta import Gated, Tokens
from hilora.compose.layout import Layout, top_weights, wide
from hilora.compose.lie import positions_of
from hilora.errors import InputError
from hilora.types import Plan, Rocs, Site

EPSILON = 1e-5


def standardise(values: Float[Tensor, "*any in"]) -> Float[Tensor, "*any in"]:
    """Mean 0 and variance 1 over the last axis, in at least fp32."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    return torch.nn.functional.layer_norm(wide, wide.shape[-1:], eps=EPSILON)


@dataclass(frozen=True)
class Phatgoose:
    """Each token's k adapters by their gate vectors.

    Args:
        vectors: site -> (pool position, in) gate vectors; zeros where an adapter lacks the site.
        k: adapters that a token uses.
    """

    vectors: Mapping[str, Tensor]
    k: int = 2
    joinable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k is the number of adapters that a token uses: got {self.k}, expected at least 1.")

    def __call__(self, rocs: Rocs, plan: Plan) -> Gated:
        """Bind to a site's ROCs: the gate vectors of its adapters."""
        assert isinstance(rocs, Site)
        layout = Layout.of(rocs, plan)
        chosen = positions_of(plan, layout.columns.device)[layout.columns]
        vectors = standardise(self.vectors[rocs.name].to(rocs.up.device, wide(rocs))[chosen])  # (here, in)
        vectors = vectors / vectors.shape[1] ** 0.5

        def gated(z: Tensor, tokens: Tokens) -> Tensor:
            logits = vectors @ standardise(tokens.x).T
            logits = logits.masked_fill(tokens(layout.barred), -torch.inf)
            return layout.weigh(z, top_weights(logits, self.k), tokens)

        return gated


@dataclass(frozen=True)
class SigmoidGate:
    """One adapter whose outputs are gated by sigmoid(v . x): what training optimises.

    Args:
        vectors: site -> v (in,).
    """

    vectors: Mapping[str, Tensor]
    joinable: ClassVar[bool] = False

    def __call__(self, rocs: Rocs, plan: Plan) -> Gated:
        """Bind to a site's ROCs."""
        assert isinstance(rocs, Site)
        vector, scale = self.vectors[rocs.name].to(rocs.up.device), plan.scale.to(rocs.down.dtype)

        def gated(z: Tensor, tokens: Tokens) -> Tensor:
            gate = torch.sigmoid(tokens.x.to(vector.dtype) @ vector).to(z.dtype)
            return z * gate * tokens(scale)

        return gated

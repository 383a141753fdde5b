"""Mixture of experts over trained adapters, and SMEAR (RAMoLE section V-A-5, Eq. 16 to 19).

At each site a dense layer W_g weighs the experts of a token:

    R(x) = softmax(W_g x)
    moe-soft    delta = sum_i R(x)_i B_i A_i x
    moe-topk    the same over the k largest R(x)_i, which then sum to 1
    smear       delta = (sum_i R(x)_i B_i) (sum_i R(x)_i A_i) x        parameters averaged, not outputs

The sparse forms are trained with Gumbel noise g: softmax((log R + g) / tau) (Eq. 18), of which the k largest are
kept; the gradient is that of all of them (straight through). SMEAR as first published averages its router's inputs
over a sequence; the paper gives one R(x) for both, and a decoder's answer comes token by token: here each token has
its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hilora.compose.delta import Gated, Tokens
from hilora.compose.layout import Layout, fuse_by, top_weights, wide
from hilora.compose.lie import positions_of
from hilora.errors import InputError
from hilora.types import Plan, Rocs, Site


@dataclass(frozen=True)
class Moe:
    """Experts weighed by a dense layer at each site.

    Args:
        weights: site -> W_g (expert, in).
        experts: pool position of each expert.
        k: experts that a token uses; None for all.
        fused: whether parameters are averaged instead of outputs (SMEAR).
        noise: a source of Gumbel noise, in training; its state goes on from call to call.
        temperature: tau of the noisy softmax.
    """

    weights: Mapping[str, Tensor]
    experts: tuple[int, ...]
    k: int | None = None
    fused: bool = False
    noise: torch.Generator | None = None
    temperature: float = 1.0
    joinable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 1:
            raise InputError(f"k is the number of experts that a token uses: got {self.k}, expected at least 1.")

    def __call__(self, rocs: Rocs, plan: Plan) -> Gated:
        """Bind to a site's ROCs: the lines of W_g that belong to its adapters."""
        assert isinstance(rocs, Site)
        layout = Layout.of(rocs, plan)
        experts = torch.tensor(self.experts, device=layout.columns.device)
        expert = (positions_of(plan, experts.device)[layout.columns, None] == experts).int().argmax(1)  # (here,)
        weights = self.weights[rocs.name].to(rocs.up.device, wide(rocs))[expert]  # (here, in)
        fuse = fuse_by(rocs)

        def gated(z: Tensor, tokens: Tokens) -> Tensor:
            logits = weights @ tokens.x.to(weights.dtype).T
            weight = self._weigh(logits, layout, tokens)
            if not self.fused:
                return layout.weigh(z, weight, tokens)
            return fuse(z, weight.to(z.dtype)[layout.adapter]) * tokens(layout.scale)

        return gated

    def _weigh(self, logits: Tensor, layout: Layout, tokens: Tokens) -> Tensor:
        """(here, token): how much each expert counts for each token."""
        if self.noise is not None:
            uniform = torch.rand(logits.shape, generator=self.noise).to(logits).clamp(1e-9, 1 - 1e-7)
            logits = (torch.log_softmax(logits, 0) - torch.log(-torch.log(uniform))) / self.temperature
        soft = layout.softmax(logits, tokens)
        if self.k is None:
            return soft
        kept = top_weights(logits.masked_fill(tokens(layout.barred), -torch.inf), self.k)
        if self.noise is None:
            return kept
        return soft + (kept - soft).detach()

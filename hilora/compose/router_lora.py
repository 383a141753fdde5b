"""RouterLoRA (RAMoLE section IV-B-2): a LoRA that attends to the outputs of other LoRAs.

At each site, with the router's A_r and B_r of rank r and v_i = B_i A_i x,

    q = A_r x        k_i = B_r^T v_i        s_i = q . k_i / sqrt(r)        delta = sum_i softmax(s)_i v_i

over the adapters that the row retrieved. It never looks at who an adapter is, only at what it does to this token: it
serves adapters that came after its training.

No v_i is ever made: with z the projections and b the up vectors of adapter i's ROCs, q . k_i is the sum of
(q . B_r^T b) z over them. The products B_r^T b depend on the batch's adapters alone; once a batch is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hilora.compose.delta import Gated, Tokens
from hilora.compose.layout import Layout, wide
from hilora.types import Plan, Rocs, Site


@dataclass(frozen=True)
class RouterLora:
    """Attention over the adapters of the plan.

    Args:
        weights: site -> (A_r (r, in), B_r (out, r)), the scaling alpha / r folded into B_r.
    """

    weights: Mapping[str, tuple[Tensor, Tensor]]
    joinable: ClassVar[bool] = False  # each site routes by itself

    def __call__(self, rocs: Rocs, plan: Plan) -> Gated:
        """Bind to a site's ROCs: the keys of each. At a site that the router was trained without, all weigh alike."""
        assert isinstance(rocs, Site)
        layout = Layout.of(rocs, plan)
        if rocs.name not in self.weights:
            alike = torch.zeros(len(layout.columns), 1, dtype=wide(rocs), device=rocs.up.device)
            return lambda z, tokens: layout.weigh(z, layout.softmax(alike.expand(-1, z.shape[1]), tokens), tokens)
        down, up = (w.to(rocs.up) for w in self.weights[rocs.name])
        # keys_roc = B_r^T b_roc / sqrt(r)
        keys = rocs.up.T @ up / len(down) ** 0.5  # (roc, r)

        def gated(z: Tensor, tokens: Tokens) -> Tensor:
            query = down @ tokens.x.T  # (r, token)
            # s_i = sum over the ROCs of i: (keys_roc . q) z_roc
            scores = layout.sums((keys @ query).to(wide(rocs)) * z.to(wide(rocs)))
            return layout.weigh(z, layout.softmax(scores, tokens), tokens)

        return gated

"""How the ROCs of a site lie: which adapter each is of, for gates that weigh whole adapters token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hilora.compose.delta import Tokens
from hilora.compose.lie import lie_of
from hilora.types import Plan, Rocs


def wide(rocs: Rocs) -> torch.dtype:
    """What routing is computed in: at least fp32."""
    return torch.promote_types(rocs.down.dtype, torch.float32)


@dataclass(frozen=True)
class Layout:
    """The adapters that a site has, in the order in which their ROCs lie there.

    Attributes:
        columns: (here,) plan columns of the adapters.
        adapter: (roc,) place of each ROC's adapter among `columns`.
        first: (here,) place of each adapter's first ROC.
        barred: (here, batch) rows that may not use an adapter.
        scale: (batch,) factor of each row, in the ROCs' dtype.
    """

    columns: Int[Tensor, " here"]
    adapter: Int[Tensor, " roc"]
    first: Int[Tensor, " here"]
    barred: Bool[Tensor, "here batch"]
    scale: Float[Tensor, " batch"]

    @classmethod
    def of(cls, rocs: Rocs, plan: Plan) -> Layout:
        """Lay out ROCs under a plan."""
        lie = lie_of(rocs)
        barred = (plan.rocs == 0).T[lie.columns]
        return cls(lie.columns, lie.run, lie.first, barred, plan.scale.to(rocs.down.dtype))

    def sums(self, values: Float[Tensor, "roc token"]) -> Float[Tensor, "here token"]:
        """Sums over each adapter's ROCs."""
        zeros = torch.zeros(len(self.columns), values.shape[1], dtype=values.dtype, device=values.device)
        return zeros.index_add(0, self.adapter, values)

    def softmax(self, logits: Float[Tensor, "here token"], tokens: Tokens) -> Float[Tensor, "here token"]:
        """Weights over the adapters that each token's row may use; all zero where it may use none."""
        lowest = torch.finfo(logits.dtype).min  # finite, so that gradients are, too
        weight = torch.softmax(logits.masked_fill(tokens(self.barred), lowest), dim=0)
        return torch.where(tokens(self.barred.all(0)), 0.0, weight)

    def weigh(self, z: Tensor, weight: Float[Tensor, "here token"], tokens: Tokens) -> Float[Tensor, "roc token"]:
        """z times its adapter's weight and its row's scale."""
        return z * weight.to(z.dtype)[self.adapter] * tokens(self.scale)


def fuse_by(rocs: Rocs) -> Callable[[Tensor, Tensor], Tensor]:
    """(z, weight), both (roc, token) -> each ROC's weight times sum_i w_i z_ip over the ROCs at its position p.

    That is what averaging A and B separately does to the projections, lower ranks padded with zeros.
    """
    lie = lie_of(rocs)
    position, longest = lie.place, lie.most

    def fuse(z: Tensor, weight: Tensor) -> Tensor:
        shared = torch.zeros(longest, z.shape[1], dtype=z.dtype, device=z.device)  # (position, token)
        shared.index_add_(0, position, z * weight)
        return shared[position] * weight

    return fuse


def top_weights(logits: Float[Tensor, "here token"], k: int) -> Float[Tensor, "here token"]:
    """Softmax over the k largest logits of each token, 0 elsewhere, also where fewer than k are finite."""
    top, ids = logits.topk(min(k, len(logits)), dim=0)
    weight = torch.where(top[:1] == -torch.inf, 0.0, torch.softmax(top, dim=0))
    return torch.zeros_like(logits).scatter(0, ids, weight)

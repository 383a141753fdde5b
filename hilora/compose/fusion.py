"""Fused parameters: A and B are averaged separately (RAMoLE section IV-B-1b).

    delta = (sum_i w_i B_i) (sum_i w_i A_i) x,        Theta_fusion = (1/k) sum_j Theta_j

Its cross terms B_i A_j x make it another map than Mixture. It is no gate, but a linear map of the same
projections: the ROCs at one position p of their adapters share zbar_p = sum_i w_i a_ip . x. Lower ranks are
padded with zeros. Each row fuses its own adapters; no fused matrix is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hilora.compose.delta import Gated
from hilora.compose.layout import fuse_by
from hilora.types import Plan, Rocs


@dataclass(frozen=True)
class Fused:
    """The weighted mean of the projections at each position, times the adapter's weight."""

    joinable: ClassVar[bool] = False  # sums run over the adapters of one site

    def __call__(self, rocs: Rocs, plan: Plan) -> Gated:
        """Bind to ROCs and a plan."""
        fuse = fuse_by(rocs)
        factor = plan.weights.T[rocs.owner].to(rocs.down.dtype)  # (roc, batch), twice, so without the scale
        scale = plan.scale.to(rocs.down.dtype)
        return lambda z, spread: fuse(z, spread(factor)) * spread(scale)

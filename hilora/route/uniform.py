"""Every allowed adapter, equally: for methods whose only level is the token's, and for merging all adapters."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from hilora.route.candidates import select
from hilora.route.router import Known, Query
from hilora.types import Route


@dataclass
class Everyone:
    """Weight 1 / n on each of the n allowed adapters.

    Args:
        members: positions of those that count; None for all.
    """

    members: tuple[int, ...] | None = None
    needs_embedding: bool = field(default=False, init=False)
    seen_above_: float | None = field(default=None, init=False)

    def fit(self, known: Known) -> Everyone:
        """Nothing to learn."""
        return self

    def __call__(self, query: Query, allowed: Bool[Tensor, "batch adapter"]) -> Route:
        """The same route for every row; scores are 0, for nothing was compared."""
        if self.members is not None:
            listed = torch.zeros(allowed.shape[1], dtype=torch.bool)
            listed[list(self.members)] = True
            allowed = allowed & listed
        scores = torch.zeros(allowed.shape)
        return select(scores, allowed.sum(1).float(), allowed)

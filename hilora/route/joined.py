"""One route of several, each of some of the rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from hilora.types import Route


def joined(rows: int, parts: Sequence[tuple[Int[Tensor, "_"], Route]]) -> Route:
    """One route of several, and the rows that each is of; rows of none have weight 0 everywhere."""
    width = max((route.ids.shape[1] for _, route in parts), default=1)
    ids = torch.zeros(rows, width, dtype=torch.long)
    scores, weights = torch.zeros(rows, width), torch.zeros(rows, width)
    leads = torch.zeros(rows) if any(route.leads is not None for _, route in parts) else None
    for own, route in parts:
        size = route.ids.shape[1]
        ids[own, :size], scores[own, :size], weights[own, :size] = route.ids, route.scores, route.weights
        if leads is not None and route.leads is not None:
            leads[own] = route.leads
    return Route(ids, scores, weights, leads)

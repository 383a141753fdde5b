"""Which adapters a score lets through: HiLoRA Eq. 4 ("sign"), or a fixed number, as in retrieval papers ("top")."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hilora.types import Route


def sign_sizes(scores: Float[Tensor, "batch adapter"], k: int) -> Float[Tensor, " batch"]:
    """How many adapters Eq. 4 keeps: all with a positive score; if there is none, c = max(|max s|, k), rounded up."""
    best = scores.max(1).values
    broad = torch.clamp(best.abs().ceil(), min=k)
    size = torch.where(best > 0, (scores > 0).sum(1).float(), broad)
    return torch.minimum(size, torch.isfinite(scores).sum(1).float())


def select(
    scores: Float[Tensor, "batch adapter"],
    sizes: Float[Tensor, " batch"],
    allowed: Bool[Tensor, "batch adapter"],
    *,
    uniform: bool = False,
) -> Route:
    """The `sizes` best allowed adapters of each row, with softmax weights over them (pi in the paper), or equal ones.

    A row that may use none has weight 0 everywhere; scores of adapters that are not allowed may be any number.
    """
    scores = scores.float().masked_fill(~allowed, -torch.inf)
    sizes = torch.minimum(sizes, allowed.sum(1))
    width = max(1, int(sizes.max()))
    # a stable sort: equal scores keep the pool's own order, whatever else is in the batch
    ordered, ids = torch.sort(scores, dim=1, descending=True, stable=True)
    ordered, ids = ordered[:, :width], ids[:, :width]
    chosen = torch.arange(width, device=scores.device)[None] < sizes[:, None]
    return weigh(torch.zeros_like(ordered) if uniform else ordered, ordered, ids, chosen)


def weigh(
    logits: Float[Tensor, "batch candidate"],
    scores: Float[Tensor, "batch candidate"],
    ids: Int[Tensor, "batch candidate"],
    chosen: Bool[Tensor, "batch candidate"],
) -> Route:
    """The route of chosen adapters, weighted by the softmax of their logits."""
    weights = torch.softmax(logits.masked_fill(~chosen, -torch.inf), dim=1).nan_to_num(0.0)
    weights = weights.clamp_min(torch.finfo(torch.float32).tiny) * chosen  # 0 means padding, not "unlikely"
    return Route(ids, scores, weights)

"""`compose.rocs.TopRocs` where each token has adapters of its own: how vLLM's LoRA layers are gated.

    gated = z * factor where fewer than `keep` ROCs of the same adapter are stronger, else 0
    keep  = rocs * count / rank, rounded up: a site whose rank is below the adapter's largest gets its share

A token has a few *places*, an adapter in each or none; they are gated apart, at each site apart. Shapes depend on no
data, and the operation is torch's own (`torch.library`), so that a compiled or captured graph holds it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SCHEMA = (
    "(Tensor z, Tensor size, Tensor count, Tensor slot, Tensor rocs, Tensor rank, Tensor factor, Tensor criterion) "
    "-> Tensor"
)


def by_torch(
    z: Tensor,
    size: Tensor,
    count: Tensor,
    slot: Tensor,
    rocs: Tensor,
    rank: Tensor,
    factor: Tensor,
    criterion: Tensor,
) -> Tensor:
    """Gated z.

    Args:
        z: (place, site, token, roc) projections, fp32; of adapters of a lower rank the last are anything.
        size: (site, slot, roc) lengths of what each adds.
        count: (site, slot) rank of the slot's adapter at the site; 0 where it has none.
        slot: (place, token) where the adapter lies; -1 for none.
        rocs: (place, token) that the token uses of it.
        rank: (place, token) its largest, in which `rocs` counts.
        factor: (place, token) what its ROCs are multiplied by.
        criterion: (token,) place in `kernels.top_rocs.CRITERIA`.
    """
    lies = slot.clamp(min=0)
    have = count[:, lies].transpose(0, 1).masked_fill((slot < 0)[:, None], 0)  # (place, site, token)
    keep = (rocs[:, None] * have + rank[:, None] - 1) // rank[:, None]
    lengths = size[:, lies].transpose(0, 1)  # (place, site, token, roc)
    strength = torch.where(criterion[:, None] == 0, z, z.abs())
    strength = torch.where(criterion[:, None] == 2, strength * lengths, strength)
    near = torch.arange(z.shape[-1], device=z.device)
    strength = torch.where(near < have[..., None], strength, -torch.inf)
    place = strength.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)  # 0 = the strongest
    return torch.where(place < keep[..., None], z * factor[:, None, :, None], 0)


gate = torch.library.custom_op("hilora::gate_places", by_torch, mutates_args=(), schema=SCHEMA)
"""`by_torch` as an operation of torch's own."""


@gate.register_fake
def _(z: Tensor, *args: Any) -> Tensor:
    return z.new_empty(z.shape)

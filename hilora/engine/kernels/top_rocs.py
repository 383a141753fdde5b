"""`compose.rocs.TopRocs` as one operation: choose each token's ROCs, and multiply them.

    gated = z * factor where fewer than `keep` ROCs of the same adapter are stronger, else 0
    keep  = budget * count / rank, rounded up: a site whose rank is below the adapter's largest gets its share

It is an operation of torch's own (`torch.library`), so that a compiled graph holds it: one launch of a Triton kernel
on a GPU, tensor operations elsewhere. Of equal ROCs the earlier is the stronger.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

CRITERIA = ("value", "magnitude", "contribution")
"""Names in `compose.rocs.CRITERIA`; the operation is told by place."""
BLOCK = 128
"""ROCs of a token that a program of the kernel chooses at most."""


SCHEMA = (
    "(Tensor z, Tensor size, Tensor first, Tensor count, Tensor owner, Tensor budget, Tensor rank, Tensor factor, "
    "int criterion, int most) -> Tensor"
)


def by_torch(
    z: Tensor,
    size: Tensor,
    first: Tensor,
    count: Tensor,
    owner: Tensor,
    budget: Tensor,
    rank: Tensor,
    factor: Tensor,
    criterion: int,
    most: int,
) -> Tensor:
    """Gated z, by operations of torch, which a compiler may join.

    Args:
        z: (token, roc), of any strides; rows of one length, row by row.
        size: (roc,) lengths of what each adds.
        first, count: (roc,) int32, where the ROCs of its adapter begin at its site, and how many they are.
        owner: (roc,) int32, its adapter.
        budget: (batch, adapter) int32, ROCs of each adapter that a token of the row uses.
        rank: (adapter,) int32, in which the budget counts.
        factor: (batch, adapter) what the row multiplies the adapter's ROCs by.
        criterion: place in `CRITERIA`.
        most: the largest `count`.

    Returns:
        (token, roc), contiguous, in z's dtype.
    """
    each = z.shape[0] // budget.shape[0]
    wide = z if z.dtype.itemsize > 2 else z.float()
    strength = wide if criterion == 0 else wide.abs()
    if criterion == 2:
        strength = strength * size.to(wide.dtype)
    keep = (budget[:, owner] * count + rank[owner] - 1) // rank[owner]  # (batch, roc)
    near = torch.arange(most, device=z.device)
    other = (first[:, None] + near).clamp(max=z.shape[1] - 1)  # (roc, most)
    theirs = strength[:, other]  # (token, roc, most)
    mine, here = strength[:, :, None], torch.arange(z.shape[1], device=z.device)[:, None]
    wins = (theirs > mine) | ((theirs == mine) & (other < here))
    place = (wins & (near < count[:, None])).sum(-1, dtype=torch.int32)
    if each != 1:
        keep, factor = keep.repeat_interleave(each, 0), factor.repeat_interleave(each, 0)
    return torch.where(place < keep, wide * factor[:, owner].to(wide.dtype), 0).to(z.dtype)


def by_triton(
    z: Tensor,
    size: Tensor,
    first: Tensor,
    count: Tensor,
    owner: Tensor,
    budget: Tensor,
    rank: Tensor,
    factor: Tensor,
    criterion: int,
    most: int,
) -> Tensor:
    """The same by one launch (`by_torch`)."""
    tokens, rocs = z.shape
    out = z.new_empty(tokens, rocs)
    if not out.numel():
        return out
    block = min(BLOCK, max(16, 1 << (rocs - 1).bit_length()))
    grid = (tokens, -(-rocs // block))
    rows, slots = budget.shape
    given = (z, size, first, count, owner, budget, rank, factor, out)
    numbers = (rocs, slots, tokens // rows, z.stride(0), z.stride(1))
    fixed = {"CRITERION": criterion, "MOST": most, "BLOCK": block, "DOUBLE": z.dtype == torch.float64}
    with torch.cuda.device(z.device) if z.is_cuda else nullcontext():
        kernel()[grid](*given, *numbers, **fixed, num_warps=max(1, block // 64))
    return out


@cache
def kernel() -> Any:
    """The kernel; triton is imported when it is first asked for."""
    from hilora.engine.kernels.top_rocs_triton import choose

    return choose


top_rocs = torch.library.custom_op("hilora::top_rocs", by_torch, mutates_args=(), schema=SCHEMA)
"""`by_torch` as an operation of torch's own; on a GPU `by_triton`."""
top_rocs.register_kernel("cuda", by_triton)


@top_rocs.register_fake
def _(z: Tensor, *args: Any) -> Tensor:
    return z.new_empty(z.shape)

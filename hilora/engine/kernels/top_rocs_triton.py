"""The kernel of `top_rocs`: a program for some ROCs of a token, each compared with all of its adapter's."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def choose(  # type: ignore[no-untyped-def]
    z, size, first, count, owner, budget, rank, factor, out,
    rocs, slots, each, z_token, z_roc,
    CRITERION: tl.constexpr, MOST: tl.constexpr, BLOCK: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """One token's ROCs, `BLOCK` of them; see `top_rocs.top_rocs` for the arguments."""
    token = tl.program_id(0).to(tl.int64)
    row = token // each
    roc = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = roc < rocs
    mine_of = tl.load(owner + roc, mask=inside, other=0)
    begin = tl.load(first + roc, mask=inside, other=0)
    number = tl.load(count + roc, mask=inside, other=0)
    largest = tl.load(rank + mine_of, mask=inside, other=1)
    may = tl.load(budget + row * slots + mine_of, mask=inside, other=0)
    keep = (may * number + largest - 1) // largest
    wide = tl.float64 if DOUBLE else tl.float32
    here = z + token * z_token
    value = tl.load(here + roc * z_roc, mask=inside & (keep > 0), other=0.0).to(wide)
    mine = value
    if CRITERION > 0:
        mine = tl.abs(mine)
    if CRITERION == 2:
        mine = mine * tl.load(size + roc, mask=inside, other=0.0).to(wide)
    chooses = inside & (keep > 0) & (keep < number)  # else all or none are kept
    place = tl.zeros([BLOCK], dtype=tl.int32)
    for step in range(MOST):
        other = begin + step
        compared = chooses & (step < number)
        theirs = tl.load(here + other * z_roc, mask=compared, other=0.0).to(wide)
        if CRITERION > 0:
            theirs = tl.abs(theirs)
        if CRITERION == 2:
            theirs = theirs * tl.load(size + other, mask=compared, other=0.0).to(wide)
        wins = (theirs > mine) | ((theirs == mine) & (other < roc))
        place += (wins & compared).to(tl.int32)
    times = tl.load(factor + row * slots + mine_of, mask=inside, other=0.0).to(wide)
    gated = tl.where((keep > 0) & (place < keep), value * times, 0.0)
    tl.store(out + token * rocs + roc, gated.to(out.dtype.element_ty), mask=inside)

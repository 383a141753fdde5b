"""Each row's own ROCs among those of the batch: a row uses few of them, and only those need be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from hilora.types import Plan, Rocs


@dataclass(frozen=True)
class Own:
    """Each row's own ROCs; rows that use fewer adapters than others have some that they do not use.

    Attributes:
        index: (own, batch) where they lie in the stack.
        lengths: how many of them are of each site.
        rocs, plan: what a gate needs to know; the plan's columns are the places of a row's adapters. `down` has no
            width, and `size` is (own, batch).
    """

    index: Int[Tensor, "own batch"]
    lengths: list[int]
    rocs: Rocs
    plan: Plan


def own_rocs(parts: Sequence[Rocs], plan: Plan) -> Own | None:
    """Pick each row's own ROCs out of the sites' stacks, which lie one after another; None if that spares nothing."""
    used = plan.rocs > 0
    picks, blocks, index, owner, lengths, start, place = [], [], [], [], [], 0, 0
    for part in parts:
        lengths.append(0)
        for rank, columns in part.blocks:
            mine = used[:, columns]
            slots = int(mine.sum(1).max())
            pick = mine.byte().topk(slots, dim=1).indices  # (batch, slot): those in use, and others up to the most
            first = start + rank * pick.T[:, None]  # (slot, 1, batch)
            index.append((first + torch.arange(rank, device=pick.device)[:, None]).flatten(0, 1))
            places = torch.arange(place, place + slots, device=pick.device)
            picks.append(columns[pick])
            blocks.append((rank, places))
            owner.append(places.repeat_interleave(rank))
            lengths[-1] += rank * slots
            start, place = start + rank * len(columns), place + slots
    if 2 * sum(lengths) > start:
        return None
    chosen, lies = torch.cat(picks, 1), torch.cat(index)  # (batch, place), (own, batch)
    size = torch.cat([part.size for part in parts])[lies]
    rocs = Rocs(parts[0].down.new_empty(len(size), 0), size, torch.cat(owner), tuple(blocks))
    plan = replace(
        plan,
        ids=(),
        ranks=plan.ranks[chosen],
        weights=plan.weights.gather(1, chosen),
        rocs=plan.rocs.gather(1, chosen),
    )
    return Own(lies, lengths, rocs, plan)


def join(parts: Sequence[Rocs]) -> Rocs:
    """The ROCs of several modules that read the same input, one after another."""
    if len(parts) == 1:
        return parts[0]
    down, size, owner = (torch.cat([getattr(part, name) for part in parts]) for name in ("down", "size", "owner"))
    return Rocs(down, size, owner, tuple(block for part in parts for block in part.blocks))

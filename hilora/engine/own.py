"""Each row's own ROCs among those of the batch: a row uses few of them, and only those need be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from hilora.types import Plan, Rocs

Layout = Sequence[Sequence[tuple[int, ...]]]
"""Of each site, (rank, plan columns) of each run of ROCs that lie side by side."""


@dataclass(frozen=True)
class Own:
    """Each row's own ROCs; rows that use fewer adapters than others have some that they do not use.

    Attributes:
        index: (own, batch) where they lie in the stack.
        lengths: how many of them are of each site.
        rocs, plan: what a gate needs to know; the plan's columns are the places of a row's adapters. `down` has no
            width; `size`, (own, batch), is each layer's own.
    """

    index: Int[Tensor, "own batch"]
    lengths: list[int]
    rocs: Rocs
    plan: Plan


def own_rocs(layout: Layout, plan: Plan) -> Own | None:
    """Pick each row's own ROCs out of the sites' stacks, which lie one after another; None if that spares nothing.

    Args:
        layout: of each site, (rank, plan columns) of each run of its ROCs.
        plan: of the batch.
    """
    used, where = plan.rocs > 0, plan.rocs.device
    picks, blocks, index, owner, lengths, start, place = [], [], [], [], [], 0, 0
    for runs in layout:
        lengths.append(0)
        for rank, *run in runs:
            columns = torch.tensor(run, device=where)
            mine = used[:, columns]
            slots = int(mine.sum(1).max())
            pick = mine.byte().topk(slots, dim=1).indices  # (batch, slot): those in use, and others up to the most
            first = start + rank * pick.T[:, None]  # (slot, 1, batch)
            index.append((first + torch.arange(rank, device=where)[:, None]).flatten(0, 1))
            places = torch.arange(place, place + slots, device=where)
            picks.append(columns[pick])
            blocks.append((rank, places))
            owner.append(places.repeat_interleave(rank))
            lengths[-1] += rank * slots
            start, place = start + rank * len(run), place + slots
    if 2 * sum(lengths) > start:
        return None
    chosen, lies = torch.cat(picks, 1), torch.cat(index)  # (batch, place), (own, batch)
    none = plan.scale.new_empty(len(lies), 0)
    plan = replace(
        plan,
        ids=(),
        ranks=plan.ranks[chosen],
        weights=plan.weights.gather(1, chosen),
        rocs=plan.rocs.gather(1, chosen),
    )
    return Own(lies, lengths, Rocs(none, none, torch.cat(owner), tuple(blocks)), plan)

"""`compose.rocs` in less time: ROCs of one adapter are compared in pairs, many adapters at once, not sorted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hilora.compose.delta import Gate, Spread
from hilora.compose.rocs import TopRocs
from hilora.engine.fused import fused
from hilora.types import Plan, Rocs

SORT_ABOVE = 32
"""Adapters of a higher rank are ordered by sorting; below, comparing all pairs of their ROCs is cheaper."""
CHUNK = 2**17
"""Adapters are compared together while the matrix (roc, pair) for that has no more entries."""

Placed = Callable[[Tensor], Tensor]
"""Strengths (roc, token) -> place of each ROC among those of its adapter, 0 = the strongest."""


def by_sorting(strength: Float[Tensor, "roc token"]) -> Float[Tensor, "roc token"]:
    """Places in one adapter by a stable sort: of equal ROCs the earlier counts as stronger."""
    order = strength.argsort(dim=0, descending=True, stable=True)
    numbers = torch.arange(len(order), device=order.device, dtype=strength.dtype)[:, None].expand_as(order)
    return torch.empty_like(strength).scatter_(0, order, numbers)


def by_pairs(ranks: Sequence[int], like: Tensor) -> Placed:
    """Places in several adapters of these ranks, by comparing each pair of ROCs of one adapter.

    A ROC starts behind all later ones of its adapter; each comparison that it wins against a later one moves it
    one place forward, and the later one back by one. Comparisons are kept in the dtype of the strengths: PyTorch
    compares half precision several times faster into half precision than into bool.
    """
    one, other, moves, begin = pairs_of(tuple(ranks), like.dtype, like.device)

    def placed(strength: Tensor) -> Tensor:
        wins = strength.index_select(0, one).ge_(strength.index_select(0, other))  # (pair, token)
        return torch.addmm(begin, moves, wins)

    return placed


@lru_cache(maxsize=64)
def pairs_of(
    ranks: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"], Float[Tensor, "roc pair"], Float[Tensor, "roc 1"]]:
    """Both ROCs of each pair, how a comparison moves ROCs, and where they start: alike in all layers and batches."""
    first, second, behind, start = [], [], [], 0
    with torch.inference_mode(False):  # so that any mode may use them
        for rank in ranks:
            earlier, later = torch.triu_indices(rank, rank, 1)
            first.append(earlier + start)
            second.append(later + start)
            behind.append(torch.arange(rank - 1, -1, -1))
            start += rank
        one, other = torch.cat(first).to(device), torch.cat(second).to(device)
        pairs = torch.arange(len(one), device=device)
        moves = torch.zeros(start, len(one), dtype=dtype, device=device)
        moves[one, pairs], moves[other, pairs] = -1, 1
        return one, other, moves, torch.cat(behind).to(device, dtype)[:, None]


def chunks(ranks: Sequence[int]) -> list[list[int]]:
    """Adapters' ranks cut into runs that are compared together; a high rank stands alone."""
    runs: list[list[int]] = [[]]
    for rank in ranks:
        run = [*runs[-1], rank]
        if max(run) > SORT_ABOVE or sum(run) * sum(r * (r - 1) // 2 for r in run) > CHUNK:
            runs.append([rank])
        else:
            runs[-1] = run
    return [run for run in runs if run]


@dataclass(frozen=True)
class PairedTopRocs(TopRocs):
    """`TopRocs`, its choice made by comparisons; bound once to a plan and to ROCs that lie alike."""

    known: dict[Any, Any] = field(default_factory=dict, compare=False)

    def kept(self, rocs: Rocs, plan: Plan) -> Callable[[Tensor, Spread], Tensor]:
        """(strength (roc, token), spread) -> 1 on the ROCs that the token keeps, else 0."""
        key = id(rocs.blocks), id(plan), rocs.down.dtype
        if key not in self.known:
            self.known[key] = (rocs.blocks, plan), self._kept(rocs, plan)  # both stay, and so do their addresses
        found: Callable[[Tensor, Spread], Tensor] = self.known[key][1]
        return found

    def _kept(self, rocs: Rocs, plan: Plan) -> Callable[[Tensor, Spread], Tensor]:
        keeps = []
        for rank, columns in rocs.blocks:
            # a site whose rank is below the adapter's largest (rank_pattern) gets its share of the budget
            largest = plan.ranks[..., columns]
            keep = ((plan.rocs[:, columns] * rank + largest - 1) // largest).T  # (column, batch)
            keeps.append(keep.repeat_interleave(rank, 0))
        keep = torch.cat(keeps).to(rocs.down.dtype)  # (roc, batch)
        runs, spans, start = chunks([rank for rank, columns in rocs.blocks for _ in columns]), [], 0
        for run in runs:
            placed = by_sorting if run[0] > SORT_ABOVE else by_pairs(run, rocs.down)
            spans.append((start, start + sum(run), placed))
            start += sum(run)

        def gate(strength: Tensor, spread: Spread) -> Tensor:
            places = [placed(strength[start:stop]) for start, stop, placed in spans]
            place = places[0] if len(places) == 1 else torch.cat(places)
            return place.lt_(spread(keep))

        return gate


def faster(gate: Gate, where: torch.device) -> Gate:
    """The same composer in the form that costs least on a device."""
    if (one := fused(gate, where)) is not None:
        return one
    return PairedTopRocs(gate.criterion, gate.weighted) if type(gate) is TopRocs else gate

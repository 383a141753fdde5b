"""HiLoRA's token level: each token keeps its strongest ROCs.

Section 3.3: of adapter i, the top-o_i ROCs by projection a.x; the sum is scaled by sqrt(mean rank / O).
HiLoRA-ROC ranks all ROCs of the pool together and keeps k of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hilora.compose.delta import Gated, Spread
from hilora.compose.weighted import roc_weights
from hilora.errors import InputError, UnknownNameError
from hilora.types import Plan, Rocs

Strength = Callable[[Tensor, Tensor, Spread], Tensor]
"""(z (roc, token), size (roc, batch), spread) -> (roc, token)."""

CRITERIA: dict[str, Strength] = {
    "value": lambda z, size, spread: z,
    "magnitude": lambda z, size, spread: z.abs(),
    "contribution": lambda z, size, spread: z.abs() * spread(size),
}
"""How strong a ROC is for a token: the paper's signed a.x, its size, or the size of what the ROC adds."""

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


def top_gate(rocs: Rocs, plan: Plan) -> Gated:
    """(strength (roc, token), spread) -> 1 on each adapter's strongest ROCs, as many as the row may use, else 0."""
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


def row_sizes(rocs: Rocs, plan: Plan) -> Float[Tensor, "roc batch"]:
    """Size of each ROC, the same for all rows unless each has ROCs of its own."""
    return rocs.size.view(len(rocs.owner), -1).expand(-1, len(plan.scale))


@dataclass(frozen=True)
class TopRocs:
    """Keep each token's strongest ROCs of each adapter, as many as the plan gives the adapter.

    Args:
        criterion: a name in `CRITERIA`.
        weighted: whether each adapter's ROCs count by its routing weight (in the paper they do not).
    """

    criterion: str = "value"
    weighted: bool = False
    joinable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise UnknownNameError("criterion", self.criterion, CRITERIA)

    def __call__(self, rocs: Rocs, plan: Plan) -> Gated:
        """Bind to ROCs and a plan."""
        scale, measure = plan.scale.to(rocs.down.dtype), CRITERIA[self.criterion]
        if self.weighted:
            scale = roc_weights(rocs, plan)
        if plan.whole:
            factor = (plan.rocs > 0).T[rocs.owner] * scale  # (roc, batch)
            return lambda z, spread: z * spread(factor)
        gate, size = top_gate(rocs, plan), row_sizes(rocs, plan)
        return lambda z, spread: gate(measure(z, size, spread), spread).mul_(z).mul_(spread(scale))


@dataclass(frozen=True)
class PoolTopRocs:
    """Keep each token's k strongest ROCs over all adapters that its row may use (HiLoRA-ROC).

    Args:
        k: ROCs kept at each site, at most all there are.
        criterion: a name in `CRITERIA`.
    """

    k: int = 24
    criterion: str = "value"
    joinable: ClassVar[bool] = False  # k at each site

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise UnknownNameError("criterion", self.criterion, CRITERIA)
        if self.k < 1:
            raise InputError(f"k is the number of ROCs that a token uses: got {self.k}, expected at least 1.")

    def __call__(self, rocs: Rocs, plan: Plan) -> Gated:
        """Bind to ROCs: which of them each row may use."""
        usable, scale = (plan.rocs > 0).T[rocs.owner], plan.scale.to(rocs.down.dtype)  # (roc, batch)
        measure, size, k = CRITERIA[self.criterion], row_sizes(rocs, plan), min(self.k, len(rocs.owner))

        def gated(z: Tensor, spread: Spread) -> Tensor:
            may = spread(usable)
            chosen = measure(z, size, spread).masked_fill(~may, -torch.inf).topk(k, dim=0).indices
            gate = torch.zeros_like(may).scatter_(0, chosen, True) & may
            return z * gate * spread(scale)

        return gated

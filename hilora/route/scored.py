"""Adapters that a search has come down to, scored in full: fp64, each by itself, equal ones in the pool's order."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

SLACK = 16
"""Adapters beyond the best k that are scored in fp64."""
ROUGH_FROM = 200
"""More adapters than that are first scored in fp32."""
AT_ONCE = 100_000
"""Means whose lengths are worked out at once."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Found = tuple[Float[Tensor, "batch found"], Int[Tensor, "batch found"]]
"""fp64 scores, best first, -inf where nothing is allowed; positions."""


class Scored:
    """Means that a few at a time are scored, in numpy: on so few numbers PyTorch's calls cost more than the work."""

    def __init__(self, means: Tensor, offset: Tensor | None) -> None:
        self.table, self.means = means, means.numpy()
        self.constant: Floats = np.empty(len(means))
        self.longest = 0.0
        for start in range(0, len(means), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            squares = np.square(self.means[part].astype(np.float64)).sum(1)
            self.constant[part] = -squares / 2
            self.longest = max(self.longest, float(np.sqrt(squares.max())))
        if offset is not None:
            self.constant += offset.double().numpy()

    def __len__(self) -> int:
        return len(self.means)

    def roughly(self, own: Floats, some: Ints, count: int) -> Ints:
        """The best so many of some adapters for one row, in fp32."""
        if len(some) <= max(count, ROUGH_FROM):
            return some
        means = self.table.index_select(0, torch.from_numpy(some))  # they lie far apart: both cores fetch them
        rough = (means @ torch.from_numpy(own.astype(np.float32))).numpy() + self.constant[some]
        return some[np.argpartition(-rough, count)[:count]]

    def best(self, own: Floats, some: Ints, scores: Floats, ids: Ints) -> None:
        """The best of some adapters for one row, in fp64; of equal ones the earlier in the pool comes first."""
        some = np.sort(some)
        # a product and a sum, not a matrix product: an adapter's score must not depend on who is scored beside it
        found = (self.means[some] * own).sum(1) + self.constant[some]
        order = np.argsort(-found, kind="stable")[: len(scores)]
        scores[: len(order)], ids[: len(order)] = found[order], some[order]


def everyone(allowed: Bool[Tensor, "batch adapter"]) -> bool:
    """Whether every row may use every adapter; one row that stands for all is looked at once."""
    return bool((allowed[:1] if allowed.stride(0) == 0 else allowed).numpy().all())


def empty(rows: int, k: int) -> tuple[Floats, Ints]:
    """Scores and positions where nothing is found yet."""
    return np.full((rows, k), -np.inf), np.zeros((rows, k), dtype=np.int64)

"""One adapter with averaged parameters: Merged, AdapterSoup, and what Fusion computes without making it.

    A = (1/n) sum_i A_i,        B = (1/n) sum_i B_i

A and B are averaged separately, as averaging parameters does (Ostapenko et al. 2023; averaging the products B A
instead would be Ensemble). Lower ranks are padded with zeros, and so is a site that an adapter leaves alone. The
scaling alpha / r is part of B here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from hilora.types import Factors


@runtime_checkable
class Merge(Protocol):
    """Several adapters -> the factors of one; equal merges have equal reprs."""

    def __call__(self, adapters: Sequence[Factors]) -> Factors:
        """Merge adapters, given in the pool's order."""
        ...


@dataclass(frozen=True)
class Average:
    """The mean of A and the mean of B."""

    def __call__(self, adapters: Sequence[Factors]) -> Factors:
        """Merge adapters, at least one."""
        merged: Factors = {}
        for site in sorted({site for factors in adapters for site in factors}):
            parts = [factors[site] for factors in adapters if site in factors]
            rank = max(down.shape[0] for down, _ in parts)
            down = torch.zeros(rank, parts[0][0].shape[1], dtype=torch.float64)
            up = torch.zeros(parts[0][1].shape[0], rank, dtype=torch.float64)
            for a, b in parts:
                down[: a.shape[0]] += a
                up[:, : b.shape[1]] += b
            wide = torch.float64 if parts[0][0].dtype == torch.float64 else torch.float32
            merged[site] = ((down / len(adapters)).to(wide), (up / len(adapters)).to(wide))
        return merged

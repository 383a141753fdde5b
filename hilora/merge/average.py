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

    def __call__(self, adapters: Sequence[Factors], hashes: Sequence[str]) -> Factors:
        """Merge adapters, given in the pool's order, with their content hashes."""
        ...


@dataclass(frozen=True)
class Average:
    """The mean of A and the mean of B."""

    def __call__(self, adapters: Sequence[Factors], hashes: Sequence[str] = ()) -> Factors:
        """Merge adapters, at least one."""
        return combine(adapters, [1 / len(adapters)] * len(adapters))


def combine(adapters: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """The weighted sums of A and of B, each by itself, summed in fp64: a weight such as 1/52 times a bf16 factor is
    rounded only once, in the sum (fp32; fp64 where a factor is).
    """
    merged: Factors = {}
    for site in sorted({site for factors in adapters for site in factors}):
        parts = [
            (weight, *factors[site]) for weight, factors in zip(weights, adapters, strict=True) if site in factors
        ]
        rank = max(down.shape[0] for _, down, _ in parts)
        _, first, last = parts[0]
        exact = any(torch.float64 in (a.dtype, b.dtype) for _, a, b in parts)
        down = torch.zeros(rank, first.shape[1], dtype=torch.float64)
        up = torch.zeros(last.shape[0], rank, dtype=torch.float64)
        for weight, a, b in parts:
            down[: a.shape[0]] += weight * a.double()
            up[:, : b.shape[1]] += weight * b.double()
        wide = torch.float64 if exact else torch.float32
        merged[site] = (down.to(wide), up.to(wide))
    return merged

"""LoRAHub (Huang et al. 2023, arXiv 2307.13269): one adapter with learnt weights on the parameters of others.

    A = sum_i w_i A_i        B = sum_i w_i B_i

with w found without gradients on a few examples (`hilora.train.lorahub`). Weights may be negative. Lower ranks and
missing sites are padded with zeros, as in `average`; the scaling alpha / r is part of B here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hilora.merge.average import combine
from hilora.types import Factors


@dataclass(frozen=True)
class WeightedSum:
    """Weights by content hash; an adapter that has none counts nothing.

    Args:
        weights: (content hash, weight) pairs.
    """

    weights: tuple[tuple[str, float], ...]

    def __call__(self, adapters: Sequence[Factors], hashes: Sequence[str]) -> Factors:
        """Merge adapters, at least one, told apart by their hashes."""
        known = dict(self.weights)
        return combine(adapters, [known.get(content, 0.0) for content in hashes])

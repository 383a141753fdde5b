"""The ridge of the own-covariance Gaussian, chosen by cross-validation on the samples alone.

The sign rule of HiLoRA's Eq. 4 depends on the ridge: a large one makes every score positive (the whole pool
is a candidate), a small one makes every score strongly negative (Eq. 4 then takes many). Between the two
lies a ridge under which a held-out sample's own adapter gets the largest share of the ROC budget; that
share falls when the likelihood misses the adapter and when the set grows, so it is what is maximised.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hilora.base.threads import one_thread
from hilora.route.allocate import budget
from hilora.route.candidates import select, sign_sizes
from hilora.route.crossfit import FOLDS, MOST_ADAPTERS, fold_scores
from hilora.route.expected import share_expected
from hilora.route.gaussian import RIDGE, OwnGaussian

GRID = tuple(float(r) for r in np.geomspace(1e-5, 1e-2, 13))
MOST_QUERIES = 400


def choose_ridge(
    embeddings: Sequence[Float[Tensor, "_ dim"]], *, k: int = 3, gamma: float = 0.4, rank: int = 8
) -> float:
    """The ridge that gives held-out samples' own adapters the largest expected share of the budget.

    Large pools are judged on their first `MOST_ADAPTERS` adapters, by about `MOST_QUERIES` samples. Without enough
    samples to hold some out, the answer is `RIDGE`.

    Args:
        embeddings: (sample, dim) per adapter.
        k, gamma: of the sign rule and the budget.
        rank: a typical adapter's rank.
    """
    embeddings = embeddings[:MOST_ADAPTERS]
    with one_thread(sum(map(len, embeddings))):
        shares = {ridge: _share(embeddings, ridge, k, gamma, rank) for ridge in GRID}
    best = max(shares.values())
    return max(r for r, share in shares.items() if share >= best - 1e-3) if best > 0 else RIDGE


def _share(embeddings: Sequence[Float[Tensor, "_ dim"]], ridge: float, k: int, gamma: float, rank: int) -> float:
    """Mean expected share of the budget that goes to the right adapter, over held-out samples."""
    shares: list[float] = []
    for owner, scores in fold_scores(embeddings, lambda: OwnGaussian(ridge)):
        route = select(scores, sign_sizes(scores, k), torch.ones_like(scores, dtype=torch.bool))
        stride = -(-len(owner) * FOLDS // MOST_QUERIES)  # rows lie adapter by adapter: take from all of them
        for row in range(0, len(owner), stride):
            chosen = route.weights[row] > 0
            ids, pi = route.ids[row][chosen], route.weights[row][chosen].double().numpy()
            capacity = np.full(len(ids), rank)
            total = budget(capacity, gamma)
            share = share_expected(pi / pi.sum(), capacity, total)
            shares.append(float(share[(ids == owner[row]).numpy()].sum()) / total)
    return float(np.mean(shares)) if shares else 0.0

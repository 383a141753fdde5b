"""Calibrated posterior weights: how likely is each adapter's task, given the prompt?

The weighted product of witnesses (`experts`) is a calibrated log posterior: w_i(x) = softmax_i(log p(x | i)). A
composer that weighs outputs by w is the posterior mean of the adapters' outputs: the right adapter alone where the
prompt is clear, a mixture of likely ones where it is not. A part of `hilora-plus`, not in the papers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from hilora.errors import InputError
from hilora.route.candidates import select
from hilora.route.experts import Experts
from hilora.route.features import Features, hash_terms
from hilora.route.router import Known, Query
from hilora.types import Route


@dataclass
class Posterior:
    """The k likeliest adapters, weighted by their calibrated probability.

    Args:
        k: at most so many adapters per row.
        floor: adapters below this share of the best one's weight are left out.
        terms: whether to look at n-grams beside the embedding.
        temperature: scores are divided by it: above 1 spreads the weights over more adapters.
    """

    k: int = 3
    floor: float = 0.1
    terms: bool = True
    temperature: float = 1.0
    needs_embedding: bool = field(default=True, init=False)
    seen_above_: float | None = field(init=False, default=None)
    model_: Experts = field(init=False)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k is the number of candidates: got {self.k}, expected at least 1.")
        if not 0 <= self.floor <= 1:
            raise InputError(f"floor is a share of the best weight: got {self.floor}, expected 0 <= floor <= 1.")
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0; got {self.temperature}.")

    def fit(self, known: Known) -> Posterior:
        """Fit the likelihoods; their weights come with a pool, or are fitted here."""
        self.model_ = Experts(known.weights, self.terms).fit(known.samples())
        return self

    def __call__(self, query: Query, allowed: Bool[Tensor, "batch adapter"]) -> Route:
        """Each row's likeliest allowed adapters; scores are log posteriors over the whole pool."""
        assert query.embedding is not None
        texts = Features(query.embedding, hash_terms(query.texts) if self.terms else None)
        logits = torch.log_softmax(self.model_.score(texts) / self.temperature, dim=1)
        best = logits.masked_fill(~allowed, -torch.inf).max(1, keepdim=True).values
        near = allowed & (logits - best >= float(np.log(max(self.floor, 1e-30))))
        return select(logits, torch.full((len(logits),), float(self.k)), near)

"""Calibrated posterior weights: how likely is each adapter's task, given the prompt?

The tied Gaussian's log-likelihoods, unscaled, are far too sure of themselves: samples are few, dimensions correlate.
One temperature, fitted on held-out samples, turns them into probabilities,

    w_i(x) = softmax_i(log p_i(z) / T),        T = argmax of the held-out samples' log w_own,

and a composer that weighs outputs by w is then the posterior mean of the adapters' outputs: the right adapter alone
where the prompt is clear, a mixture of likely ones where it is not. A part of `hilora-plus`, not in the papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hilora.errors import InputError
from hilora.route.candidates import select
from hilora.route.gaussian import TiedGaussian
from hilora.route.ridge import held_out_scores
from hilora.route.router import Query
from hilora.types import Route

TEMPERATURE = 10.0
"""Where nothing can be held out; near what is fitted for 20 samples of dim 384."""
GRID = np.geomspace(0.5, 200, 61)


@dataclass
class Posterior:
    """The k likeliest adapters, weighted by their calibrated probability.

    Args:
        k: at most so many adapters per row.
        floor: adapters below this share of the best one's weight are left out.
        shrinkage: of the tied covariance.
        temperature: default: fitted on the samples.
    """

    k: int = 3
    floor: float = 0.1
    shrinkage: float = 0.1
    temperature: float | None = None
    needs_embedding: bool = field(default=True, init=False)
    seen_above_: float | None = field(init=False, default=None)
    model_: TiedGaussian = field(init=False)
    temperature_: float = field(init=False)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k is the number of candidates: got {self.k}, expected at least 1.")
        if not 0 <= self.floor <= 1:
            raise InputError(f"floor is a share of the best weight: got {self.floor}, expected 0 <= floor <= 1.")
        if self.temperature is not None and not self.temperature > 0:
            raise InputError(f"temperature must be above 0; got {self.temperature}.")
        TiedGaussian(self.shrinkage)

    def fit(self, embeddings: Sequence[Float[Tensor, "_ dim"]]) -> Posterior:
        """Fit the Gaussians, and the temperature on samples that they have not seen."""
        self.model_ = TiedGaussian(self.shrinkage).fit(embeddings)
        own, scores = held_out_scores(embeddings, lambda: TiedGaussian(self.shrinkage))
        self.seen_above_ = float(own.quantile(0.05)) if len(own) else None
        dim = embeddings[0].shape[1]
        self.temperature_ = self.temperature or fit_temperature(own.double() * dim, scores.double() * dim)
        return self

    def __call__(self, query: Query, allowed: Bool[Tensor, "batch adapter"]) -> Route:
        """Each row's likeliest allowed adapters; scores are (1/dim) log-likelihoods."""
        assert query.embedding is not None
        dim = query.embedding.shape[1]
        scores = self.model_.score(query.embedding)
        logits = (scores.double() * dim / self.temperature_).float()
        best = logits.masked_fill(~allowed, -torch.inf).max(1, keepdim=True).values
        near = allowed & (logits - best >= float(np.log(max(self.floor, 1e-30))))
        route = select(logits, torch.full((len(logits),), float(self.k)), near)
        return Route(route.ids, scores.gather(1, route.ids), route.weights)


def fit_temperature(own: Float[Tensor, " held"], scores: Float[Tensor, "held adapter"]) -> float:
    """The temperature under which the right adapters' probabilities are largest.

    Args:
        own: log-likelihood of each held-out sample under its own adapter.
        scores: under all adapters.
    """
    if not len(own) or scores.shape[1] < 2:
        return TEMPERATURE
    gains = [float((own / t - torch.logsumexp(scores / t, dim=1)).mean()) for t in GRID]
    return float(GRID[int(np.argmax(gains))])

"""`TiedGaussian` where there are fewer samples than dimensions: the same scores, at a cost that follows the samples.

With B (sample, dim) the scaled deviations of the samples from their adapters' means, and r > 0 the shrunk level,

    Sigma        = r I + B'B
    Sigma^-1     = (I - B' (r I + BB')^-1 B) / r                       Woodbury
    log |Sigma|  = (dim - sample) log r + log |r I + BB'|              determinant lemma,

so that only BB' (sample, sample) is factored, LL' = r I + BB', and for delta = z - mu_i,

    delta' Sigma^-1 delta = (|delta|^2 - |L^-1 B delta|^2) / r.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from hilora.base.devices import meet
from hilora.route.gaussian import LOG_2PI


@dataclass
class DualGaussian:
    """One Gaussian per adapter with a covariance shared by all, see `TiedGaussian`.

    Args:
        shrinkage: share of the identity (times the mean variance) in the covariance, in (0, 1].
    """

    shrinkage: float

    mean_: Float[Tensor, "adapter dim"] = field(init=False, repr=False)
    whitening_: Float[Tensor, "sample dim"] = field(init=False, repr=False)
    white_mean_: Float[Tensor, "adapter sample"] = field(init=False, repr=False)
    level_: float = field(init=False)
    log_det_: float = field(init=False)
    spread_: float = field(init=False)

    def fit(self, embeddings: Sequence[Float[Tensor, "_ dim"]]) -> DualGaussian:
        """Learn means and the pooled within-adapter covariance."""
        self.mean_ = torch.stack([samples.double().mean(0) for samples in embeddings])
        centred = torch.cat([s.double() - m for s, m in zip(embeddings, self.mean_, strict=True)])
        count, dim = centred.shape
        freedom = max(1, count - len(self.mean_))
        variance = float(centred.square().sum()) / (freedom * dim)
        self.level_ = self.shrinkage * max(variance, 1e-6)  # samples may be all alike
        deviation = centred * math.sqrt((1 - self.shrinkage) / freedom)
        lower = torch.linalg.cholesky(deviation @ deviation.T + self.level_ * torch.eye(count, dtype=torch.float64))
        self.whitening_ = torch.linalg.solve_triangular(lower, deviation, upper=False)  # L^-1 B
        self.white_mean_ = self.mean_ @ self.whitening_.T
        within = float(self.whitening_.square().sum())  # (1 - shrinkage) trace(Sigma^-1 S)
        self.spread_ = within / (1 - self.shrinkage) if self.shrinkage < 1 else float(dim)
        self.log_det_ = (dim - count) * math.log(self.level_) + 2 * float(lower.diagonal().log().sum())
        return self

    def score(self, query: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch adapter"]:
        """(1/dim) log p_i(query) for every adapter, fp32, in fp64, for the squares cancel; where the query is."""
        query, own = meet(query, self)
        dim = query.shape[1]
        z = query.double()
        whole = _squared_distances(z, own.mean_)
        spanned = _squared_distances(z @ own.whitening_.T, own.white_mean_)
        distance = (whole - spanned) / self.level_
        return (-0.5 / dim * (distance + self.log_det_ + dim * LOG_2PI)).float()


def _squared_distances(one: Float[Tensor, "batch dim"], other: Float[Tensor, "adapter dim"]) -> Tensor:
    return one.square().sum(1, keepdim=True) - 2 * one @ other.T + other.square().sum(1)

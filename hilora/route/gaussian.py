"""Each adapter as a Gaussian over its samples' embeddings; a prompt's log-likelihood is the score.

HiLoRA section 3.2, Eq. 3. With m samples in dim >> m dimensions the covariance of Eq. 3 is singular and
the paper names no remedy. Two forms are here, both O(dim * m) per adapter:

* "own", the paper's: the adapter's own covariance plus a ridge,
      Sigma_i = V_i' diag(l_i) V_i + D_i,     D_i = ridge * I,
  V_i (m - 1, dim) the principal directions of the samples. With the Woodbury identity and the determinant
  lemma, for delta = z - mu_i,
      delta' Sigma_i^-1 delta = sum(delta^2 / ridge) - sum_k l_k / (ridge (l_k + ridge)) (v_k . delta)^2
      log |Sigma_i|           = dim log ridge + sum_k log(1 + l_k / ridge).
* "tied": one within-adapter covariance pooled over all adapters, shrunk towards a multiple of the identity;
  scoring is one whitening and one matrix product.

Scores are divided by dim, as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from hilora.errors import InputError, UnknownNameError
from hilora.route.nearest import SEARCHES, Nearest, make_search

LOG_2PI = math.log(2 * math.pi)
DERIVED = ("nearest", "_whitening")
"""What a tied Gaussian works out when it is first needed."""
MIN_SAMPLES = 5
"""Fewer samples than this say little about directions: a diagonal Gaussian takes over (at least 2)."""


def check_samples(embeddings: Float[Tensor, "sample dim"], name: str) -> None:
    """Refuse samples that no Gaussian can be fitted to.

    Raises:
        InputError: fewer than 2 samples, or NaN or infinite embeddings.
    """
    count = embeddings.shape[0]
    if count < 2:
        raise InputError(
            f"Adapter {name!r} has {count} sample(s); a Gaussian needs at least 2, and {MIN_SAMPLES} or more "
            f"(20 in the paper) to be any good. Give more lines in --samples."
        )
    if not torch.isfinite(embeddings).all():
        raise InputError(f"The embeddings of {name!r} contain NaN or infinite values; embed its samples again.")


@dataclass
class OwnGaussian:
    """One Gaussian per adapter with its own covariance (HiLoRA Eq. 3) and a ridge.

    An adapter with fewer than `MIN_SAMPLES` samples gets a diagonal covariance, scaled to the median volume
    of the others: a wide Gaussian would otherwise score high on everybody's prompts.

    Args:
        ridge: variance added in every direction, in squared units of the embedding.
    """

    ridge: float = 1e-4

    mean_: Float[Tensor, "adapter dim"] = field(init=False, repr=False)
    precision_: Float[Tensor, "adapter dim"] = field(init=False, repr=False)
    directions_: Float[Tensor, "direction dim"] = field(init=False, repr=False)
    offset_: Float[Tensor, " direction"] = field(init=False, repr=False)
    gain_: Float[Tensor, " direction"] = field(init=False, repr=False)
    owner_: Int[Tensor, " direction"] = field(init=False, repr=False)
    log_det_: Float[Tensor, " adapter"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.ridge > 0:
            raise InputError(f"ridge is a variance: got {self.ridge}, expected a number above 0, such as 1e-4.")

    def fit(self, embeddings: Sequence[Float[Tensor, "_ dim"]]) -> OwnGaussian:
        """Learn means and low-rank covariances, one adapter's samples each."""
        dim = embeddings[0].shape[1]
        means, precisions, directions, gains, owners, log_dets, few = [], [], [], [], [], [], []
        for i, samples in enumerate(vectors.double() for vectors in embeddings):
            mean = samples.mean(0)
            means.append(mean)
            if len(samples) < MIN_SAMPLES:
                variance = samples.var(0)
                variance = (variance + variance.mean()) / 2 + self.ridge  # few samples: half way to isotropic
                precisions.append(1 / variance)
                log_dets.append(variance.log().sum())
                few.append(i)
                continue
            centred = (samples - mean) / math.sqrt(len(samples) - 1)
            _, singular, right = torch.linalg.svd(centred, full_matrices=False)
            keep = singular > 1e-7
            spread = singular[keep] ** 2  # eigenvalues of the covariance
            precisions.append(torch.full((dim,), 1 / self.ridge, dtype=torch.float64))
            directions.append(right[keep])
            gains.append(spread / (self.ridge * (spread + self.ridge)))
            owners.append(torch.full((len(spread),), i))
            log_dets.append(dim * math.log(self.ridge) + torch.log1p(spread / self.ridge).sum())
        log_det = torch.stack(log_dets)
        precision = torch.stack(precisions)
        full = [i for i in range(len(embeddings)) if i not in set(few)]
        if few and full:
            shift = log_det[full].median() - log_det[few]
            precision[few] *= torch.exp(-shift / dim)[:, None]
            log_det[few] += shift
        mean = torch.stack(means)
        self.mean_, self.precision_, self.log_det_ = mean, precision, log_det
        self.directions_ = torch.cat([*directions, torch.empty(0, dim, dtype=torch.float64)])
        self.gain_ = torch.cat([*gains, torch.empty(0, dtype=torch.float64)])
        self.owner_ = torch.cat([*owners, torch.empty(0, dtype=torch.long)])
        self.offset_ = (self.directions_ * self.mean_[self.owner_]).sum(1)
        return self

    def score(self, query: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch adapter"]:
        """(1/dim) log p_i(query) for every adapter, fp32, worked out in fp64."""
        dim = query.shape[1]
        z = query.double()
        # sum_d precision (z - mean)^2, expanded into matrix products; the terms cancel, hence fp64: in fp32 a
        # score near 0 would depend on the batch, and with it the candidates
        distance = (
            z.square() @ self.precision_.T
            - 2 * z @ (self.precision_ * self.mean_).T
            + (self.precision_ * self.mean_.square()).sum(1)
        )
        along = (z @ self.directions_.T - self.offset_).square() * self.gain_  # (batch, direction)
        distance = distance.index_add(1, self.owner_, along, alpha=-1)
        return (-0.5 / dim * (distance + self.log_det_ + dim * LOG_2PI)).float()


@dataclass
class TiedGaussian:
    """One Gaussian per adapter with a covariance shared by all.

    Args:
        shrinkage: share of the identity (times the mean variance) in the covariance, in (0, 1].
        search: a name in `nearest.SEARCHES`: how `top` finds the best adapters.

    Attributes:
        spread_: trace(Sigma^-1 S) for the covariance Sigma and the pooled covariance S before shrinking: the expected
            squared distance of a text from its adapter's mean, whitened.
    """

    shrinkage: float = 0.1
    search: str = "exact"

    whitening_: Float[Tensor, "dim dim"] = field(init=False, repr=False)
    mean_: Float[Tensor, "adapter dim"] = field(init=False, repr=False)
    log_det_: float = field(init=False)
    spread_: float = field(init=False)

    def __post_init__(self) -> None:
        if not 0 < self.shrinkage <= 1:
            raise InputError(f"shrinkage is a share: got {self.shrinkage}, expected 0 < shrinkage <= 1.")
        if self.search not in SEARCHES:
            raise UnknownNameError("search", self.search, SEARCHES)

    def fit(self, embeddings: Sequence[Float[Tensor, "_ dim"]]) -> TiedGaussian:
        """Learn means and the pooled within-adapter covariance."""
        means = torch.stack([samples.double().mean(0) for samples in embeddings])
        centred = torch.cat([s.double() - m for s, m in zip(embeddings, means, strict=True)])
        freedom = max(1, len(centred) - len(means))
        pooled = centred.T @ centred / freedom
        dim = pooled.shape[0]
        level = self.shrinkage * max(float(pooled.diagonal().mean()), 1e-6)  # samples may be all alike
        pooled = (1 - self.shrinkage) * pooled + level * torch.eye(dim, dtype=torch.float64)
        # any square root of the inverse whitens: with pooled = L L', z' L^-T has the identity for its covariance
        lower = torch.linalg.cholesky(pooled)
        whitening = torch.linalg.solve_triangular(lower, torch.eye(dim, dtype=torch.float64), upper=False).T
        self.whitening_ = whitening.float()  # (dim, whitened)
        self.mean_ = (means @ whitening).float()
        self.log_det_ = 2 * float(lower.diagonal().log().sum())
        for name in DERIVED:  # of an earlier fit
            self.__dict__.pop(name, None)
        within = dim - level * float(whitening.square().sum())  # (1 - shrinkage) trace(Sigma^-1 S)
        self.spread_ = within / (1 - self.shrinkage) if self.shrinkage < 1 else float(dim)
        return self

    def top(
        self, query: Float[Tensor, "batch dim"], k: int, allowed: Bool[Tensor, "batch adapter"]
    ) -> tuple[Float[Tensor, "batch found"], Int[Tensor, "batch found"]]:
        """(1/dim) log p_i(query) of the k best allowed adapters, fp32, best first, and their positions.

        Fewer than k where a pool has fewer; -inf where a row may use fewer.
        """
        dim = query.shape[1]
        white = query.numpy().astype(np.float64) @ self._whitening
        scores, ids = self.nearest.top(torch.from_numpy(white), k, allowed)
        distance = np.square(white).sum(1, keepdims=True) - 2 * scores.numpy()
        return torch.from_numpy((-0.5 / dim * (distance + self.log_det_ + dim * LOG_2PI)).astype(np.float32)), ids

    def __getstate__(self) -> dict[str, Any]:
        """Copies make their own search: an index cannot be copied."""
        return {name: value for name, value in vars(self).items() if name not in DERIVED}

    @cached_property
    def nearest(self) -> Nearest:
        """The search over the means, made when it is first needed."""
        return make_search(self.search, self.mean_)

    @cached_property
    def _whitening(self) -> NDArray[np.float64]:
        return self.whitening_.double().numpy()

    def score(self, query: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch adapter"]:
        """(1/dim) log p_i(query) for every adapter, fp32."""
        dim = query.shape[1]
        white = query.float() @ self.whitening_
        distance = torch.cdist(white, self.mean_, compute_mode="donot_use_mm_for_euclid_dist").square()
        return -0.5 / dim * (distance + self.log_det_ + dim * LOG_2PI)


COVARIANCES = {"own": OwnGaussian, "tied": TiedGaussian}

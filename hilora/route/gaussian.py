"""Each adapter as a Gaussian over its samples' embeddings; a prompt's log-likelihood is the score.

HiLoRA section 3.2, Eq. 3. With m samples in dim >> m dimensions the covariance of Eq. 3 is singular and the paper
names no remedy. Here it gets a ridge; V_i (m - 1, dim) are the samples' principal directions, l_i their variances:

    Sigma_i = V_i' diag(l_i) V_i + ridge * I.

With the Woodbury identity and the determinant lemma, both O(dim * m) per adapter, for delta = z - mu_i,

    delta' Sigma_i^-1 delta = sum(delta^2 / ridge) - sum_k l_k / (ridge (l_k + ridge)) (v_k . delta)^2
    log |Sigma_i|           = dim log ridge + sum_k log(1 + l_k / ridge).

Scores are divided by dim, as in the paper. One covariance shared by all adapters, which ranks better: `tied`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hilora.base.devices import meet
from hilora.errors import InputError

LOG_2PI = math.log(2 * math.pi)
RIDGE = 1e-4
"""Where no ridge can be cross-validated (`ridge`); near what is chosen for unit embeddings of dim 384."""
MIN_SAMPLES = 5
"""Fewer samples than this say little about directions: a diagonal Gaussian takes over (at least 2)."""


class OwnGaussian:
    """One Gaussian per adapter with its own covariance (HiLoRA Eq. 3) and a ridge.

    An adapter with fewer than `MIN_SAMPLES` samples gets a diagonal covariance, scaled to the median volume
    of the others: a wide Gaussian would otherwise score high on everybody's prompts. The ridge is a variance, in
    squared units of the embedding.
    """

    def __init__(self, ridge: float = RIDGE) -> None:
        if not ridge > 0:
            raise InputError(f"ridge is a variance: got {ridge}, expected a number above 0, such as 1e-4.")
        self.ridge = ridge

    def fit(self, embeddings: Sequence[Float[Tensor, "_ dim"]], volume: float | None = None) -> OwnGaussian:
        """Learn means and low-rank covariances, one adapter's samples each; `volume`: the median, if it is given."""
        dim = embeddings[0].shape[1]
        means, precisions, directions, gains, owners, log_dets, few = [], [], [], [], [], [], []
        for i, samples in enumerate(vectors.double() for vectors in embeddings):
            means.append(mean := samples.mean(0))
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
        log_det, precision = torch.stack(log_dets), torch.stack(precisions)
        full = [i for i in range(len(embeddings)) if i not in set(few)]
        if volume is None:
            volume = float(log_det[full].median()) if full else math.nan
        if few and not math.isnan(volume):
            shift = volume - log_det[few]
            precision[few] *= torch.exp(-shift / dim)[:, None]
            log_det[few] += shift
        self.mean_, self.precision_, self.log_det_, self.volume_ = torch.stack(means), precision, log_det, volume
        self.directions_ = torch.cat([*directions, torch.empty(0, dim, dtype=torch.float64)])  # (direction, dim)
        self.gain_ = torch.cat([*gains, torch.empty(0, dtype=torch.float64)])  # (direction,)
        self.owner_ = torch.cat([*owners, torch.empty(0, dtype=torch.long)])
        self.offset_ = (self.directions_ * self.mean_[self.owner_]).sum(1)
        return self

    def score(self, query: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch adapter"]:
        """(1/dim) log p_i(query) for every adapter, fp32, worked out in fp64, where the query is."""
        dim, (z, own) = query.shape[1], meet(query.double(), self)
        # sum_d precision (z - mean)^2, expanded into matrix products; the terms cancel, hence fp64: in fp32 a
        # score near 0 would depend on the batch, and with it the candidates
        distance = (
            z.square() @ own.precision_.T
            - 2 * z @ (own.precision_ * own.mean_).T
            + (own.precision_ * own.mean_.square()).sum(1)
        )
        along = (z @ own.directions_.T - own.offset_).square() * own.gain_  # (batch, direction)
        distance = distance.index_add(1, own.owner_, along, alpha=-1)
        return (-0.5 / dim * (distance + own.log_det_ + dim * LOG_2PI)).float()

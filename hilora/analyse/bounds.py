"""How often may routing miss the right adapter? The bound for seen tasks, HiLoRA section 3.4 and appendix B.

Bhattacharyya distance of two adapters' Gaussians (Lemma 1), with S = (Sigma_i + Sigma_j) / 2, delta = mu_i - mu_j:

    B_ij = 1/8 delta' S^-1 delta + 1/2 log(|S| / sqrt(|Sigma_i| |Sigma_j|)),     int sqrt(p_i p_j) = exp(-B_ij)

For a prompt z ~ p_i, a rival scores at least as high, p_j(z) >= p_i(z), with probability at most exp(-B_ij). The
number of such rivals has mean at most sum_j exp(-B_ij), so that by Markov's inequality (Theorem 1)

    Pr(i not among the k best) <= 1/k sum_{j != i} exp(-B_ij).

Every covariance here is Sigma = D + F' F with D diagonal and few rows in F (direction, dim), so nothing is ever
dim x dim. With R = I + F D^-1 F', as small as F has rows,

    log |Sigma|    = log |D| + log |R|
    x' Sigma^-1 x  = (x - F' y)' D^-1 (x - F' y) + y' y,     y = R^-1 F D^-1 x,

the second a sum of squares, so that nothing cancels, however small the ridge in D.

The theorem speaks of prompts that *are* draws from the fitted Gaussians. Those of 20 samples in hundreds of
dimensions are much further apart than the tasks: `hilora.analyse.confusion` puts the measured rate beside the bound.

Errata: appendix B.2 prints mu~ = Sigma~^-1 (mu_i + mu_j); its own C needs mu~ = 1/2 Sigma~ (Sigma_i^-1 mu_i +
Sigma_j^-1 mu_j). The distance that it arrives at is right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hilora.base.threads import one_thread
from hilora.errors import InputError
from hilora.route.gaussian import OwnGaussian
from hilora.route.tied import TiedGaussian

PAIRS = 64  # worked on at once


@dataclass(frozen=True)
class Normals:
    """Gaussians N(mean, diag(floor) + factor' factor), one per adapter, fp64.

    Attributes:
        mean: (adapter, dim).
        floor: (adapter, dim) variances of the diagonal part, above 0.
        factor: (adapter, direction, dim) rows sqrt(l_k) v_k; rows of zeros where an adapter has fewer.
    """

    mean: Float[Tensor, "adapter dim"]
    floor: Float[Tensor, "adapter dim"]
    factor: Float[Tensor, "adapter direction dim"]

    def __len__(self) -> int:
        return len(self.mean)

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "adapter draw dim"]:
        """Random prompts of each adapter."""
        num, direction, dim = self.factor.shape
        wide = torch.randn(num, count, dim, generator=generator, dtype=torch.float64)
        along = torch.randn(num, count, direction, generator=generator, dtype=torch.float64)
        return self.mean[:, None] + wide * self.floor.sqrt()[:, None] + along @ self.factor


def normals(model: OwnGaussian | TiedGaussian) -> Normals:
    """The Gaussians of a fitted model, as the bounds take them.

    Own covariances: D is the ridge; for adapters with fewer than `MIN_SAMPLES` samples, whose covariance is diagonal,
    D is all of it, and distances to them are as exact as any. One covariance for all: in whitened coordinates, where
    it is the identity; distances and ratios of densities are the same in all coordinates. Means are then fp32's.
    """
    if isinstance(model, TiedGaussian):
        mean = model.mean_.double()
        return Normals(mean, torch.ones_like(mean), mean.new_empty(len(mean), 0, mean.shape[1]))
    floor = 1 / model.precision_
    # gain = l / (ridge (l + ridge)), so l = gain ridge^2 / (1 - gain ridge)
    share = model.gain_ * model.ridge
    spread = share * model.ridge / (1 - share)
    rows = model.directions_ * spread.sqrt()[:, None]
    counts = torch.bincount(model.owner_, minlength=len(floor)).tolist()
    factor = torch.nn.utils.rnn.pad_sequence(list(rows.split(counts)), batch_first=True)
    return Normals(model.mean_, floor, factor)


@one_thread()  # each matrix is as wide as one adapter has directions
def squares(
    floor: Float[Tensor, "adapter dim"],
    factor: Float[Tensor, "adapter direction dim"],
    rows: Float[Tensor, "adapter row dim"],
) -> tuple[Float[Tensor, "adapter row"], Float[Tensor, " adapter"]]:
    """x' Sigma^-1 x of each row x, and log |Sigma|, for Sigma = diag(floor) + factor' factor."""
    rows = rows * floor.rsqrt()[:, None]
    factor, small = reduced(floor, factor)
    lower = torch.linalg.cholesky(small)
    y = torch.cholesky_solve(factor @ rows.mT, lower).mT  # (adapter, row, direction)
    squared = (rows - y @ factor).square().sum(2) + y.square().sum(2)
    return squared, floor.log().sum(1) + 2 * lower.diagonal(dim1=1, dim2=2).log().sum(1)


def reduced(
    floor: Float[Tensor, "adapter dim"], factor: Float[Tensor, "adapter direction dim"]
) -> tuple[Float[Tensor, "adapter direction dim"], Float[Tensor, "adapter direction direction"]]:
    """F D^-1/2, and R = I + F D^-1 F', of Sigma = D + F' F."""
    factor = factor * floor.rsqrt()[:, None]
    return factor, factor @ factor.mT + torch.eye(factor.shape[1], dtype=factor.dtype)


def log_densities(pool: Normals, prompts: Float[Tensor, "row dim"]) -> Float[Tensor, "row adapter"]:
    """log p_i of prompts, in the coordinates of the Gaussians, up to a constant that all adapters share."""
    squared, log_det = squares(pool.floor, pool.factor, prompts.double() - pool.mean[:, None])
    return -0.5 * (squared + log_det[:, None]).T


def bhattacharyya(pool: Normals) -> Float[Tensor, "adapter adapter"]:
    """B_ij of every pair of adapters (Lemma 1), fp64, symmetric, 0 on the diagonal; in nats.

    With one covariance for all, an eighth of the squared Mahalanobis distance of the means. Costs about 0.3 ms of
    processor time a pair at 20 samples and dim 384.
    """
    distance = torch.zeros(len(pool), len(pool), dtype=torch.float64)
    _, log_det = squares(pool.floor, pool.factor, pool.mean[:, None])
    first, second = torch.triu_indices(len(pool), len(pool), 1)
    for i, j in zip(first.split(PAIRS), second.split(PAIRS), strict=True):
        middle = torch.cat([pool.factor[i], pool.factor[j]], dim=1) * math.sqrt(0.5)  # S = (Sigma_i + Sigma_j) / 2
        delta = (pool.mean[i] - pool.mean[j])[:, None]
        squared, volume = squares((pool.floor[i] + pool.floor[j]) / 2, middle, delta)
        found = squared[:, 0] / 8 + (volume - (log_det[i] + log_det[j]) / 2) / 2
        distance[i, j] = distance[j, i] = found.clamp(min=0)  # below 0 only by rounding
    return distance


def pair_bound(
    distance: Float[Tensor, "adapter adapter"], priors: Sequence[float] | None = None
) -> Float[Tensor, "adapter adapter"]:
    """Lemma 1: the best possible rule for two adapters errs on at most sqrt(pi_i pi_j) exp(-B_ij) of the prompts.

    Args:
        distance: B_ij.
        priors: how much of the traffic is each adapter's; within a pair they count relative to each other. Without
            priors, exp(-B_ij): what the paper goes on with, and Theorem 1's bound for one rival.

    Returns:
        the bound for each pair; the diagonal means nothing.

    Raises:
        InputError: priors do not fit the adapters, or are not all above 0.
    """
    if priors is None:
        return (-distance).exp()
    if len(priors) != len(distance) or not all(0 < prior < math.inf for prior in priors):
        raise InputError(
            f"priors are the adapters' shares of the traffic: got {list(priors)}, "
            f"expected {len(distance)} numbers above 0."
        )
    prior = torch.tensor(list(priors), dtype=torch.float64)
    return (prior[:, None] * prior).sqrt() / (prior[:, None] + prior) * (-distance).exp()


def top_k_bound(distance: Float[Tensor, "adapter adapter"], k: int) -> Float[Tensor, " adapter"]:
    """Theorem 1 (Eq. 5): at most this share of an adapter's prompts misses it among the k best; never above 1.

    Raises:
        InputError: k is below 1.
    """
    if k < 1:
        raise InputError(f"k is the number of candidates: got {k}, expected at least 1.")
    return (overtaken(distance) / k).clamp(max=1)


def overtaken(distance: Float[Tensor, "adapter adapter"]) -> Float[Tensor, " adapter"]:
    """sum_{j != i} exp(-B_ij): bounds the expected number of rivals ahead of each adapter."""
    return (-distance).exp().fill_diagonal_(0).sum(1)

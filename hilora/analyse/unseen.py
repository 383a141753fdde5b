"""How often may routing miss the nearest adapter of an unseen task? HiLoRA Theorem 2 and Lemma 3 (appendix B.4).

The unseen task is a Gaussian q, its nearest adapter i the one with the smallest KL(q || p_i). A rival j beats it
where Lambda(z) = log p_j(z) - log p_i(z) >= 0. Chernoff bounds the probability of that by the moment
E_q[(p_j / p_i)^a], for any a in (0, 1]; Lemma 3 has it in closed form where M is positive definite,

    |Sigma_i|^(a/2) |Sigma_j|^(-a/2) |Sigma_q|^(-1/2) |M|^(-1/2) exp(h' M^-1 h / 2 - K),
    M = Sigma_q^-1 + a Sigma_j^-1 - a Sigma_i^-1,   h = Sigma_q^-1 mu_q + a Sigma_j^-1 mu_j - a Sigma_i^-1 mu_i,
    K = (mu_q' Sigma_q^-1 mu_q + a mu_j' Sigma_j^-1 mu_j - a mu_i' Sigma_i^-1 mu_i) / 2.

Worked out here from q's point of view. With Sigma_q = L L' and z = mu_q + L y, y is standard normal and

    Lambda = c + g' y - 1/2 y' T y,
    T = L' (Sigma_j^-1 - Sigma_i^-1) L,   g = L' (Sigma_i^-1 (mu_q - mu_i) - Sigma_j^-1 (mu_q - mu_j)),
    c = 1/2 (log |Sigma_i| - log |Sigma_j| + |mu_q - mu_i|_i^2 - |mu_q - mu_j|_j^2),    |x|_i^2 = x' Sigma_i^-1 x.

In the eigenvectors of T (eigenvalues t), log E_q[exp(a Lambda)] is a sum over single coordinates:

    moment(a) = a c - 1/2 sum_k log(1 + a t_k) + a^2/2 sum_k g_k^2 / (1 + a t_k),

and M is positive definite where all 1 + a t_k > 0.

moment(a) is the logarithm of a moment-generating function, so convex in a, and 0 at a = 0: the best a is where its
slope changes sign, found by bisection, and the bound never exceeds 1 for a rival.

Outside the span of all three's own directions and the mean differences, i and j have the same variance, their ridge.
Those directions add nothing (t_k = g_k = 0); the span, found by QR, is all that is looked at.

Erratum: for q = p_i, appendix B.4 (after Nielsen 2014, Eq. 35) prints the Chernoff coefficient with a and 1 - a
exchanged. The integral of p_i^(1-a) p_j^a is

    |Sigma_i|^(a/2) |Sigma_j|^((1-a)/2) |S|^(-1/2) exp(-a (1-a)/2 delta' S^-1 delta),   S = a Sigma_i + (1-a) Sigma_j.

Lemma 3 and Theorem 2 themselves are right as printed; at a = 1/2 and q = p_i they are Theorem 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hilora.analyse.bounds import Normals, normals, reduced, squares
from hilora.base.threads import one_thread
from hilora.errors import InputError
from hilora.route.features import check_samples
from hilora.route.gaussian import MIN_SAMPLES, OwnGaussian
from hilora.route.tied import TiedGaussian

STEPS = 60
"""Of the bisection: alpha to the last digit of fp64."""
NEAR_SINGULAR = 1e-9
"""M counts as positive definite while its smallest eigenvalue, relative to q's precision, exceeds this."""


@dataclass(frozen=True)
class Chernoff:
    """Lemma 3 for one unseen task.

    Attributes:
        nearest: the adapter i*, or the target.
        log_moment: (adapter,) log E_q[(p_j / p_i*)^alpha] at the best alpha, at most 0; 0 (bound 1) at i* itself.
        alpha: (adapter,) the best alpha in [0, 1]; towards 0 the moment is 1.
    """

    nearest: int
    log_moment: Float[Tensor, " adapter"]
    alpha: Float[Tensor, " adapter"]

    def miss(self, k: int) -> float:
        """Theorem 2 (Eq. 6): at most this share of the unseen prompts misses i* among the k best; never above 1.

        Raises:
            InputError: k is below 1.
        """
        if k < 1:
            raise InputError(f"k is the number of candidates: got {k}, expected at least 1.")
        others = torch.arange(len(self.log_moment)) != self.nearest
        return min(1.0, float(self.log_moment[others].exp().sum()) / k)


@one_thread()  # here and below, each matrix is of one task's samples, or of one rival's span
def fit_unseen(model: OwnGaussian | TiedGaussian, samples: Float[Tensor, "sample dim"]) -> Normals:
    """The unseen task's Gaussian, in the coordinates of `normals(model)`.

    Own covariances: fitted as the adapters' are, with the same ridge. One covariance for all: the samples' own
    covariance, shrunk towards that of the adapters by the share that those use.

    Raises:
        InputError: samples that no full Gaussian can be fitted to.
    """
    check_samples(samples, "the unseen task")
    if len(samples) < MIN_SAMPLES:
        raise InputError(f"The unseen task has {len(samples)} samples, expected at least {MIN_SAMPLES}; give more.")
    if isinstance(model, OwnGaussian):
        return normals(OwnGaussian(model.ridge).fit([samples]))
    white = samples.double() @ model.whitening_.double()
    mean = white.mean(0, keepdim=True)
    factor = (white - mean) * math.sqrt((1 - model.shrinkage) / (len(white) - 1))
    return Normals(mean, torch.full_like(mean, model.shrinkage), factor[None])


@one_thread()
def expected_scores(unseen: Normals, pool: Normals) -> Float[Tensor, " adapter"]:
    """E_q[log p_i(z)] up to what all adapters share; KL(q || p_i) = its negative, less q's entropy.

    -1/2 (log |Sigma_i| + (mu_q - mu_i)' Sigma_i^-1 (mu_q - mu_i) + trace(Sigma_i^-1 Sigma_q)).
    """
    spread = unseen.factor.expand(len(pool), -1, -1)
    distance, log_det = squares(pool.floor, pool.factor, torch.cat([(unseen.mean - pool.mean)[:, None], spread], 1))
    # trace(Sigma_i^-1 D_q) = trace(D_i^-1 D_q) - trace(R^-1 F D_i^-1 D_q D_i^-1 F')
    share = unseen.floor / pool.floor  # (adapter, dim)
    factor, small = reduced(pool.floor, pool.factor)
    inside: Tensor = torch.linalg.solve(small, factor * share[:, None]) * factor
    trace = share.sum(1) - inside.sum((1, 2))
    return -(log_det + distance.sum(1) + trace) / 2


@one_thread()
def chernoff(unseen: Normals, pool: Normals, target: int | None = None) -> Chernoff:
    """Lemma 3 at the best alpha for each rival of the nearest adapter i*, or of another one, the target.

    A target makes it a bound for a seen task too, and a more sober one than Theorem 1: q is then the Gaussian of some
    of the adapter's samples, and the pool is fitted without those.

    Adapters with fewer than `MIN_SAMPLES` samples have a diagonal covariance, which no small span holds: as rivals
    they count as the moment 1, which always bounds, and if i* is one, so do all rivals.

    Args:
        unseen: q, one Gaussian, in the coordinates of the pool: see `fit_unseen`.
        pool: the adapters.
        target: counts as i*; None for the nearest in KL(q || p_i).

    Raises:
        InputError: q is not one Gaussian with the same variance outside its directions.
    """
    if len(unseen) != 1 or not (unseen.floor == unseen.floor[0, 0]).all():
        raise InputError(f"q is one Gaussian, round outside its directions: got {len(unseen)}; see fit_unseen.")
    nearest = int(expected_scores(unseen, pool).argmax()) if target is None else target
    plain = (pool.floor == pool.floor[nearest]).all(1) & (pool.floor[nearest] == pool.floor[nearest, 0]).all()
    plain[nearest] = False
    log_moment, alpha = torch.zeros(2, len(pool), dtype=torch.float64)
    rivals = plain.nonzero()[:, 0]
    if len(rivals):
        log_moment[rivals], alpha[rivals] = _best_moment(*_quadratic(unseen, pool, nearest, rivals))
    return Chernoff(nearest, log_moment, alpha)


def _quadratic(
    unseen: Normals, pool: Normals, nearest: int, rivals: Tensor
) -> tuple[Float[Tensor, " rival"], Float[Tensor, "rival span"], Float[Tensor, "rival span"]]:
    """c, g and t of Lambda = c + g' y - 1/2 sum_k t_k y_k^2 for each rival; y standard normal under q."""
    num = len(rivals)
    own = torch.full((num,), nearest)
    factors = [unseen.factor.expand(num, -1, -1), pool.factor[own], pool.factor[rivals]]
    means = [(pool.mean[each] - unseen.mean)[:, None] for each in (own, rivals)]
    basis = torch.linalg.qr(torch.cat([*factors, *means], 1).mT).Q  # (rival, dim, span)
    eye = torch.eye(basis.shape[2], dtype=basis.dtype)
    levels = [float(unseen.floor[0, 0]), *[float(pool.floor[nearest, 0])] * 2]
    inner = [factor @ basis for factor in factors]
    roots = [torch.linalg.cholesky(x.mT @ x + level * eye) for x, level in zip(inner, levels, strict=True)]
    spread = roots[0]  # L (rival, span, span)
    c, g, t = torch.zeros(num, dtype=basis.dtype), torch.zeros_like(basis[:, 0, :, None]), torch.zeros_like(spread)
    for sign, root, mean in zip((1, -1), roots[1:], means, strict=True):
        across = torch.linalg.solve_triangular(root, spread, upper=False)  # across' across = L' Sigma^-1 L
        away = -torch.linalg.solve_triangular(root, (mean @ basis).mT, upper=False)  # whitened mu_q - mu
        c = c + sign * (root.diagonal(dim1=1, dim2=2).log().sum(1) + away.square().sum((1, 2)) / 2)
        g = g + sign * across.mT @ away
        t = t - sign * across.mT @ across
    values, vectors = torch.linalg.eigh(t)
    return c, (vectors.mT @ g)[:, :, 0], values


def _best_moment(
    c: Float[Tensor, " rival"], g: Float[Tensor, "rival span"], t: Float[Tensor, "rival span"]
) -> tuple[Float[Tensor, " rival"], Float[Tensor, " rival"]]:
    """The smallest moment(a) over a in [0, 1] with M positive definite, and that a."""
    most = (1 - NEAR_SINGULAR) / (-t.min(1).values).clamp(min=1 - NEAR_SINGULAR)
    low, high = torch.zeros_like(c), most
    for _ in range(STEPS):
        a = (low + high) / 2
        scale = 1 + a[:, None] * t
        # d/da of the moment: c - 1/2 sum t / (1 + a t) + 1/2 sum g^2 a (2 + a t) / (1 + a t)^2
        slope = c + 0.5 * (-t / scale + g.square() * a[:, None] * (1 + scale) / scale.square()).sum(1)
        low, high = torch.where(slope < 0, a, low), torch.where(slope < 0, high, a)
    a = (low + high) / 2
    scale = 1 + a[:, None] * t
    moment = a * c - 0.5 * scale.log().sum(1) + 0.5 * (a[:, None] * g).square().div(scale).sum(1)
    better = moment < 0
    return moment.clamp(max=0), torch.where(better, a, 0)

"""One covariance for all adapters' Gaussians: pooled within adapters, shrunk towards a multiple of the identity.

Scoring is one whitening and one matrix product, and the best of very many adapters can be searched for (`nearest`).
Scores are all positive in practice, so the sign rule of HiLoRA's Eq. 4 says nothing about them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from hilora.base.devices import meet
from hilora.base.threads import one_thread
from hilora.errors import InputError, UnknownNameError
from hilora.route.candidates import weigh
from hilora.route.gaussian import LOG_2PI
from hilora.route.nearest import SEARCHES, Nearest, make_search, need_faiss
from hilora.route.router import RULES, Gaussian, Known, Query, Router
from hilora.types import Route

COVARIANCES = ("own", "tied")
DERIVED = ("nearest", "_whitening")
"""What a tied Gaussian works out when it is first needed."""


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
        with one_thread(sum(map(len, embeddings))):
            means, pooled = means_and_covariance(embeddings)
            self.mean_ = (means @ self.share(pooled)).float()
        return self

    def share(self, pooled: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim dim"]:
        """Learn what all share from the covariance within adapters; returns the whitening in fp64."""
        dim = pooled.shape[0]
        level = self.shrinkage * max(float(pooled.diagonal().mean()), 1e-6)  # samples may be all alike
        pooled = (1 - self.shrinkage) * pooled + level * torch.eye(dim, dtype=torch.float64)
        # any square root of the inverse whitens: with pooled = L L', z' L^-T has the identity for its covariance
        lower = torch.linalg.cholesky(pooled)
        whitening: Tensor = torch.linalg.solve_triangular(lower, torch.eye(dim, dtype=torch.float64), upper=False).T
        self.whitening_ = whitening.float()  # (dim, whitened)
        self.log_det_ = 2 * float(lower.diagonal().log().sum())
        for name in DERIVED:  # of an earlier fit
            self.__dict__.pop(name, None)
        within = dim - level * float(whitening.square().sum())  # (1 - shrinkage) trace(Sigma^-1 S)
        self.spread_ = within / (1 - self.shrinkage) if self.shrinkage < 1 else float(dim)
        return whitening

    def top(
        self, query: Float[Tensor, "batch dim"], k: int, allowed: Bool[Tensor, "batch adapter"]
    ) -> tuple[Float[Tensor, "batch found"], Int[Tensor, "batch found"]]:
        """(1/dim) log p_i(query) of the k best allowed adapters, fp32, best first, and their positions.

        Fewer than k where a pool has fewer; -inf where a row may use fewer. Searching is the CPU's work.
        """
        dim = query.shape[1]
        white = query.cpu().numpy().astype(np.float64) @ self._whitening
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
        """(1/dim) log p_i(query) for every adapter, fp32, where the query is."""
        query, own = meet(query, self)
        white = query.float() @ own.whitening_
        distance = torch.cdist(white, own.mean_, compute_mode="donot_use_mm_for_euclid_dist").square()
        return self._density(distance)

    def near(self, query: Float[Tensor, " dim"], rows: Int[Tensor, " some"]) -> Float[Tensor, " some"]:
        """The same of some adapters, for one query; of one that is mostly zeros little is read."""
        used = query.nonzero()[:, 0]
        start, sparse = torch.zeros(1, dtype=torch.long), query[used].float()
        white = embedding_bag(used, self.whitening_, start, mode="sum", per_sample_weights=sparse)
        apart = self.mean_.index_select(0, rows)
        apart -= white
        apart *= apart
        return self._density(apart.sum(1))

    def _density(self, distance: Float[Tensor, "*batch some"]) -> Float[Tensor, "*batch some"]:
        dim = len(self.whitening_)
        return -0.5 / dim * (distance + self.log_det_ + dim * LOG_2PI)


def means_and_covariance(
    embeddings: Sequence[Float[Tensor, "_ dim"]],
) -> tuple[Float[Tensor, "adapter dim"], Float[Tensor, "dim dim"]]:
    """Each adapter's mean, and the covariance around them; fp64."""
    means = torch.stack([samples.double().mean(0) for samples in embeddings])
    centred = torch.cat([s.double() - m for s, m in zip(embeddings, means, strict=True)])
    return means, centred.T @ centred / max(1, len(centred) - len(means))


@dataclass
class Tied:
    """The k likeliest adapters under Gaussians with one covariance, weighted by softmax.

    Args:
        k: number of candidates.
        shrinkage: of the covariance.
        search: "exact", or "indexed" for very many adapters (`route.nearest`).
    """

    k: int = 3
    shrinkage: float = 0.1
    search: str = "exact"
    needs_embedding: bool = field(default=True, init=False)
    model_: TiedGaussian = field(init=False)
    seen_above_: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k is the number of candidates: got {self.k}, expected at least 1.")
        if self.search == "indexed":
            need_faiss()
        self._fresh()  # refuses what makes no sense

    def fit(self, known: Known) -> Tied:
        """Fit one Gaussian per adapter."""
        self.model_ = self._fresh()
        epoch = known.shared()
        if epoch is None:
            self.model_.fit(known.embeddings())
        else:
            means = torch.stack([own.double().mean(0) for own in known.embeddings()])
            self.model_.mean_ = (means @ self.model_.share(epoch.covariance)).float()
        _ = self.model_.nearest  # an index is built now, not at the first prompt
        return self

    def _fresh(self) -> TiedGaussian:
        return TiedGaussian(self.shrinkage, self.search)

    def __call__(self, query: Query, allowed: Bool[Tensor, "batch adapter"]) -> Route:
        """The best k of each row."""
        assert query.embedding is not None
        found, ids = self.model_.top(query.embedding, self.k, allowed)
        return weigh(found, found, ids, found.isfinite())


def gaussian_router(
    covariance: str, candidates: str, k: int, ridge: float | None, shrinkage: float, search: str
) -> Router:
    """A router by Gaussian likelihoods, by the name of its covariance.

    Raises:
        UnknownNameError: no such covariance, rule or search.
        InputError: options that do not go together, or make no sense.
    """
    if covariance not in COVARIANCES:
        raise UnknownNameError("covariance", covariance, COVARIANCES)
    if covariance == "own":
        if search != "exact":
            raise InputError("An index needs one covariance for all adapters. Use covariance='tied'.")
        return Gaussian(candidates, k, ridge)
    if candidates not in RULES:
        raise UnknownNameError("candidates rule", candidates, RULES)
    if candidates == "sign":
        raise InputError(
            "candidates='sign' needs scores of both signs, and tied scores are all positive: it would "
            "select the whole pool. Use candidates='top', or covariance='own'."
        )
    return Tied(k, shrinkage, search)

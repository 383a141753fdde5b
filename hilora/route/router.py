"""The seam of routing: (query, allowed adapters) -> Route. `fit` learns from the pool's samples.

`Gaussian` is HiLoRA's sequence level; the others are in `retriever`, `uniform` and `oracle`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hilora.errors import InputError, UnknownNameError
from hilora.route.candidates import select, sign_sizes, weigh
from hilora.route.experts import Calibration
from hilora.route.features import Features
from hilora.route.gaussian import COVARIANCES, OwnGaussian, TiedGaussian
from hilora.route.nearest import need_faiss
from hilora.route.novelty import seen_above
from hilora.route.ridge import MOST_ADAPTERS, RIDGE, held_out_scores
from hilora.types import Route


@dataclass(frozen=True)
class Query:
    """What a router may look at.

    Attributes:
        texts: the prompts' raw texts.
        embedding: (batch, dim) instructed embeddings; None for a router that does not ask for them.
        labels: (batch,) position of each row's own adapter in the pool, for the oracle; -1 = unknown.
    """

    texts: Sequence[str]
    embedding: Float[Tensor, "batch dim"] | None = None
    labels: Int[Tensor, " batch"] | None = None


@runtime_checkable
class Known(Protocol):
    """What a router may learn from: a pool, or `Collection`."""

    @property
    def ridge(self) -> float:
        """Of the own-covariance Gaussian, chosen on the samples."""
        ...

    @property
    def calibration(self) -> Calibration | None:
        """Of the scores of `experts`, from the samples; None if there is none yet."""
        ...

    def __len__(self) -> int: ...

    def samples(self) -> Sequence[Features]:
        """Each adapter's samples, in the pool's order."""
        ...


@dataclass(frozen=True)
class Collection:
    """Samples by adapter that lie in no pool."""

    held: Sequence[Features]
    ridge: float = RIDGE
    calibration: Calibration | None = None

    def __len__(self) -> int:
        return len(self.held)

    def samples(self) -> Sequence[Features]:
        """Each adapter's samples."""
        return self.held


def embeddings_of(known: Known) -> list[Float[Tensor, "_ dim"]]:
    """The embeddings of each adapter's samples."""
    return [own.embeddings for own in known.samples()]


@runtime_checkable
class Router(Protocol):
    """One call from query to route.

    Attributes:
        needs_embedding: whether it looks at `Query.embedding`.
        seen_above_: where a route's leads are above this, or its scores if it has no leads, an adapter knows such
            prompts; None where neither says anything.
    """

    needs_embedding: bool
    seen_above_: float | None

    def fit(self, known: Known) -> Router:
        """Learn from the samples of each adapter."""
        ...

    def __call__(self, query: Query, allowed: Bool[Tensor, "batch adapter"]) -> Route:
        """Route each row among the adapters that it may use."""
        ...


@dataclass
class Gaussian:
    """Gaussian likelihoods (HiLoRA 3.2) with a rule for the candidates.

    Args:
        covariance: "own" (the paper's) or "tied".
        candidates: "sign" (Eq. 4; own covariance only, since tied scores are all positive) or "top".
        k: the least number of candidates under "sign" without a positive score; the number under "top".
        ridge: for "own"; default: the pool's, chosen on its samples.
        shrinkage: for "tied".
        search: for "tied": "exact", or "indexed" for very many adapters (`route.nearest`).
    """

    covariance: str = "own"
    candidates: str = "sign"
    k: int = 3
    ridge: float | None = None
    shrinkage: float = 0.1
    search: str = "exact"
    needs_embedding: bool = field(default=True, init=False)

    model_: OwnGaussian | TiedGaussian = field(init=False)
    ridge_: float = field(init=False, default=RIDGE)
    seen_above_: float | None = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        if self.covariance not in COVARIANCES:
            raise UnknownNameError("covariance", self.covariance, COVARIANCES)
        if self.candidates not in ("sign", "top"):
            raise UnknownNameError("candidates rule", self.candidates, ("sign", "top"))
        if (self.covariance, self.candidates) == ("tied", "sign"):
            raise InputError(
                "candidates='sign' needs scores of both signs, and tied scores are all positive: it would "
                "select the whole pool. Use candidates='top', or covariance='own'."
            )
        if self.k < 1:
            raise InputError(f"k is the number of candidates: got {self.k}, expected at least 1.")
        if self.search != "exact" and self.covariance == "own":
            raise InputError("An index needs one covariance for all adapters. Use covariance='tied'.")
        if self.search == "indexed":
            need_faiss()
        self._fresh()  # refuses a ridge or a shrinkage that makes no sense

    def fit(self, known: Known) -> Gaussian:
        """Fit one Gaussian per adapter."""
        embeddings = embeddings_of(known)
        if self.ridge is None:
            self.ridge_ = known.ridge
        self.model_ = self._fresh().fit(embeddings)
        self.seen_above_ = 0.0
        if isinstance(self.model_, TiedGaussian):
            own, _ = held_out_scores(embeddings[:: -(-len(embeddings) // MOST_ADAPTERS)], self._fresh)
            self.seen_above_ = seen_above(own.tolist())
            _ = self.model_.nearest  # an index is built now, not at the first prompt
        return self

    def _fresh(self) -> OwnGaussian | TiedGaussian:
        if self.covariance == "own":
            return OwnGaussian(self.ridge_ if self.ridge is None else self.ridge)
        return TiedGaussian(self.shrinkage, self.search)

    def __call__(self, query: Query, allowed: Bool[Tensor, "batch adapter"]) -> Route:
        """Score all adapters, keep the candidates, weigh them by softmax."""
        assert query.embedding is not None
        if isinstance(self.model_, TiedGaussian):
            found, ids = self.model_.top(query.embedding, self.k, allowed)
            return weigh(found, found, ids, found.isfinite())
        scores = self.model_.score(query.embedding).masked_fill(~allowed, -torch.inf)
        fixed = torch.full((len(scores),), float(self.k))
        sizes = sign_sizes(scores, self.k) if self.candidates == "sign" else fixed
        return select(scores, sizes, allowed)

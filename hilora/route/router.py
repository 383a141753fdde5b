"""The seam of routing, (query, allowed adapters) -> Route; HiLoRA's is `Gaussian`, the others are files beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hilora.base.threads import one_thread
from hilora.errors import InputError, UnknownNameError
from hilora.route.candidates import select, sign_sizes
from hilora.route.gaussian import RIDGE, OwnGaussian
from hilora.types import Route

RULES = ("sign", "top")


@dataclass(frozen=True)
class Query:
    """What a router may look at."""

    texts: Sequence[str]  # the prompts' raw texts
    embedding: Float[Tensor, "batch dim"] | None = None  # instructed, on any device; None where it is not asked for
    labels: Int[Tensor, " batch"] | None = None  # position of each row's own adapter, for the oracle; -1 = unknown
    read: Callable[[str], Tensor] | None = None  # what a module of the base reads last, (batch, in), by its name


@runtime_checkable
class Known(Protocol):
    """What a router may learn from: a pool, or samples that lie in none (`samples.Collection`)."""

    @property
    def ridge(self) -> float:
        """Of the own-covariance Gaussian, chosen on the samples."""

    def shared(self) -> Any:
        """What adapters share (`route.epoch`), learned once and for all; None where it is these adapters' own."""

    def __len__(self) -> int: ...

    def embeddings(self) -> Sequence[Float[Tensor, "_ dim"]]:
        """Those of each adapter's samples, in the pool's order."""


@runtime_checkable
class Router(Protocol):
    """One call from query to route; the query may lie on a card, all else is on the CPU."""

    needs_embedding: bool  # whether it looks at `Query.embedding`
    seen_above_: float | None  # leads (scores, if a route has none) above it mean "seen"; None where they say nothing

    def fit(self, known: Known) -> Router:
        """Learn from the samples of each adapter."""

    def __call__(self, query: Query, allowed: Bool[Tensor, "batch adapter"]) -> Route:
        """Route each row among the adapters that it may use."""


@dataclass
class Gaussian:
    """Gaussian likelihoods (HiLoRA 3.2), each adapter with its own covariance, and a rule for the candidates."""

    candidates: str = "sign"  # Eq. 4; or "top"
    k: int = 3  # how many under "top"; the least number under "sign" where no score is positive
    ridge: float | None = None  # default: the pool's, chosen on its samples
    needs_embedding: bool = field(default=True, init=False)
    model_: OwnGaussian = field(init=False)
    seen_above_: float | None = field(init=False, default=None)  # "hi" scores as well as prompts that are known

    def __post_init__(self) -> None:
        if self.candidates not in RULES:
            raise UnknownNameError("candidates rule", self.candidates, RULES)
        if self.k < 1:
            raise InputError(f"k is the number of candidates: got {self.k}, expected at least 1.")
        OwnGaussian(RIDGE if self.ridge is None else self.ridge)  # refuses one that makes no sense

    @one_thread()
    def fit(self, known: Known) -> Gaussian:
        """Fit one Gaussian per adapter."""
        ridge = known.ridge if self.ridge is None else self.ridge
        epoch = known.shared()
        self.model_ = OwnGaussian(ridge).fit(known.embeddings(), None if epoch is None else epoch.volume(ridge))
        return self

    def __call__(self, query: Query, allowed: Bool[Tensor, "batch adapter"]) -> Route:
        """Score all adapters, keep the candidates, weigh them by softmax."""
        assert query.embedding is not None
        scores = self.model_.score(query.embedding).cpu().masked_fill(~allowed, -torch.inf)
        fixed = torch.full((len(scores),), float(self.k))
        return select(scores, sign_sizes(scores, self.k) if self.candidates == "sign" else fixed, allowed)

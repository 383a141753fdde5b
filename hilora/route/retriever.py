"""Cosine retrieval: LoraRetriever / RAMoLE section IV-A without its training, and AdapterSoup's choice.

An adapter is the mean of its samples' embeddings, E(phi) = (1/m) sum_j E(c + x_j); a prompt's score is
cos(E(c + x), E(phi)). `Retriever` takes each row's k best (HiLoRA's baseline "Retriever"; "Selection" is k = 1).

`Soup` is AdapterSoup's choice (Chronopoulou et al. 2023): one set of k adapters for a whole domain, here for all
rows of a call that may use the same adapters, as RAMoLE's tables do for mixed tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hilora.base.devices import meet
from hilora.errors import InputError
from hilora.route.candidates import select
from hilora.route.router import Known, Query
from hilora.types import Route


@dataclass
class Retriever:
    """The k adapters whose mean embedding is nearest by cosine, with equal weights.

    Args:
        k: adapters per row, or all allowed ones if there are fewer.
    """

    k: int = 3
    needs_embedding: bool = field(default=True, init=False)
    seen_above_: float | None = field(default=None, init=False)
    mean_: Float[Tensor, "adapter dim"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k is the number of adapters to retrieve: got {self.k}, expected at least 1.")

    def fit(self, known: Known) -> Retriever:
        """Learn the mean embedding of each adapter, of length 1 from here on."""
        self.mean_ = self.means(known.embeddings())
        return self

    @staticmethod
    def means(embeddings: Sequence[Float[Tensor, "_ dim"]]) -> Float[Tensor, "adapter dim"]:
        """Of each adapter's samples, of length 1."""
        return torch.nn.functional.normalize(torch.stack([own.double().mean(0) for own in embeddings]), dim=1)

    def score(self, query: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch adapter"]:
        """Cosines, fp32, worked out in fp64 so that the batch changes nothing, where the query is."""
        query, own = meet(query, self)
        return (torch.nn.functional.normalize(query.double(), dim=1) @ own.mean_.T).float()

    def __call__(self, query: Query, allowed: Bool[Tensor, "batch adapter"]) -> Route:
        """Each row's k nearest allowed adapters."""
        assert query.embedding is not None
        scores = self.score(query.embedding).cpu()
        return select(scores, torch.full((len(scores),), float(self.k)), allowed, uniform=True)


@dataclass
class Soup(Retriever):
    """The k adapters nearest to a whole domain: by the mean cosine of the rows that may use the same adapters.

    What a row gets depends on the other rows of the call; that is the method, which adapts to a domain.
    """

    def __call__(self, query: Query, allowed: Bool[Tensor, "batch adapter"]) -> Route:
        """The same k adapters for all rows of one domain."""
        assert query.embedding is not None
        scores = self.score(query.embedding).cpu()
        _, domain = torch.unique(allowed, dim=0, return_inverse=True)  # (batch,)
        count = int(domain.max()) + 1
        sums = torch.zeros(count, scores.shape[1]).index_add_(0, domain, scores)
        mean = sums / torch.bincount(domain, minlength=count)[:, None]
        return select(mean[domain], torch.full((len(scores),), float(self.k)), allowed, uniform=True)

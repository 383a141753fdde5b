"""LoRAuter (Dhasade et al. 2026, arXiv 2601.21795): adapters are found through tasks, tasks through embeddings.

A task is the mean of the embeddings of its validation samples, n of them; a prompt's weights are a softmax over the
cosines of the k nearest tasks, and outputs are summed by these:

    E_t = (1/n) sum_j E(c + x_j)      s_t = cos(E(c + x), E_t)      w = softmax over the top k of s / tau
    delta = sum_t w_t B_t A_t x        n up to 200, k = 3, tau = 0.2

Here a task is an adapter of the pool, and its validation samples are those that the pool keeps. What the paper uses
beyond these: up to 200 samples a task where a pool usually has 20 (`samples` says how many count, so that one pool
with 200 shows both); an embedder trained to retrieve (`hilora train retriever`); and, for tasks whose adapter is not
known, answers to the samples, on which all adapters are tried by successive halving. That last is not here: every
adapter comes with samples of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from hilora.errors import InputError
from hilora.route.candidates import select, weigh
from hilora.route.retriever import Retriever
from hilora.route.router import Known, Query
from hilora.types import Route


@dataclass
class Lorauter(Retriever):
    """The k adapters whose tasks are nearest by cosine, weighted by a softmax of the cosines.

    Args:
        k: adapters per row, or all allowed ones if there are fewer.
        temperature: of the softmax; above 0.
        samples: of each adapter that count, at most: the first ones.
    """

    temperature: float = 0.2
    samples: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0; got {self.temperature}.")
        if self.samples < 1:
            raise InputError(f"samples of each adapter that count: got {self.samples}, expected at least 1.")

    def fit(self, known: Known) -> Lorauter:
        """Learn the embedding of each adapter's task, of length 1."""
        self.mean_ = self.means([own[: self.samples] for own in known.embeddings()])
        return self

    def __call__(self, query: Query, allowed: Bool[Tensor, "batch adapter"]) -> Route:
        """Each row's k nearest allowed adapters, the nearer the heavier."""
        assert query.embedding is not None
        scores = self.score(query.embedding).cpu()
        nearest = select(scores, torch.full((len(scores),), float(self.k)), allowed, uniform=True)
        return weigh(nearest.scores / self.temperature, nearest.scores, nearest.ids, nearest.weights > 0)

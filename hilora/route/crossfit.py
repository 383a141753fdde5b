"""Cross-fitting: how well samples are found that the statistics have not seen, from the samples alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hilora.base.threads import one_thread
from hilora.route.features import Features, join
from hilora.route.gaussian import MIN_SAMPLES

FOLDS = 5
MOST_ADAPTERS = 200
"""Of larger pools so many adapters are looked at."""


class Likelihood(Protocol):
    """A Gaussian for each adapter, own or tied."""

    def fit(self, embeddings: Sequence[Float[Tensor, "_ dim"]]) -> Likelihood:
        """Learn from each adapter's samples."""
        ...

    def score(self, query: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch adapter"]:
        """(1/dim) log p_i(query) for every adapter."""
        ...


def folds(
    samples: Sequence[Features], spare: Sequence[bool] | None = None
) -> Iterator[tuple[list[Features], Features, Int[Tensor, " held"]]]:
    """Each fold as (what is kept of each adapter's samples, what is held out of all, whose that is).

    Adapters with too few samples to spare are never held out, nor are those that are not to be spared; a fold in
    which nothing is held out, is left out.

    Args:
        samples: by adapter.
        spare: whose samples may be held out; default: everyone's.
    """
    for fold in range(FOLDS):
        kept, held, owner = [], [], []
        for i, own in enumerate(samples):
            out = torch.arange(len(own)) % FOLDS == fold
            if len(own) - int(out.sum()) < MIN_SAMPLES or (spare is not None and not spare[i]):
                out[:] = False
            kept.append(own.take((~out).nonzero()[:, 0]))
            if out.any():
                held.append(own.take(out.nonzero()[:, 0]))
                owner += [i] * int(out.sum())
        if owner:
            yield kept, join(held), torch.tensor(owner)


def fold_scores(
    embeddings: Sequence[Float[Tensor, "_ dim"]],
    fresh: Callable[[], Likelihood],
) -> list[tuple[Int[Tensor, " held"], Float[Tensor, "held adapter"]]]:
    """(whose sample a row is, its scores) per fold: of what is held out, by Gaussians fitted to the rest."""
    found = []
    with one_thread(sum(map(len, embeddings))):
        for kept, held, owner in folds([Features(own) for own in embeddings]):
            with one_thread():  # each adapter's own matrix is small, however many there are
                model = fresh().fit([own.embeddings for own in kept])
            found.append((owner, model.score(held.embeddings)))
    return found

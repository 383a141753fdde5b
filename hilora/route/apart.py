"""Routing as if adapters that a row may not use did not exist; for measuring what a smaller pool would do.

A mask keeps an adapter from being chosen, but what a router learned from its samples stays: a shared covariance, how
rare an n-gram is, numbers tuned on the pool. Here each distinct mask gets a router of its own, fitted to the adapters
that remain, and tuned to them where a pool that lost so many would be.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hilora.route.experts import Calibration, calibrate
from hilora.route.joined import joined
from hilora.route.ridge import choose_ridge
from hilora.route.router import Known, Query, Router
from hilora.route.samples import Held, Sampled, sampled
from hilora.types import Route

GROWTH = 1.25
"""A pool is tuned again when it has grown or shrunk by this factor."""


def has_grown(size: int, tuned_on: int) -> bool:
    """Whether a pool has grown or shrunk so much that it is to be tuned again."""
    return min(size, tuned_on) * GROWTH < max(size, tuned_on)


class Remaining(Held):
    """Some of a pool's adapters, for a router to learn from."""

    def __init__(self, known: Sampled, kept: Int[Tensor, " kept"]) -> None:
        everyone = known.samples()
        self.known, self.held = known, [everyone[i] for i in kept.tolist()]
        self.tune = has_grown(len(self.held), len(known))

    @cached_property
    def ridge(self) -> float:
        """Chosen anew where the pool would."""
        return choose_ridge(self.embeddings()) if self.tune else self.known.ridge

    @cached_property
    def calibration(self) -> Calibration | None:
        """Worked out anew where the pool would."""
        return calibrate(self.held) if self.tune else self.known.calibration


def route_apart(router: Router, known: Known, query: Query, allowed: Bool[Tensor, "batch adapter"]) -> Route:
    """Route each row by a router that has seen the samples of the row's allowed adapters only.

    Args:
        router: learns from embeddings; is left as it is, for `fit` puts what it learns in place of the old.
        known: what it learned from.
        query: rows with embeddings.
        allowed: adapters that each row may use.
    """
    masks, mask_of = torch.unique(allowed, dim=0, return_inverse=True)
    assert query.embedding is not None
    embedding, parts = query.embedding.cpu(), []  # what is learned for one call is not worth sending to a card
    for number, mask in enumerate(masks):
        rows, kept = (mask_of == number).nonzero()[:, 0], mask.nonzero()[:, 0]
        if len(kept):
            some = Query([query.texts[row] for row in rows.tolist()], embedding[rows])
            own = router if len(kept) == len(known) else copy(router).fit(Remaining(sampled(known), kept))
            route = own(some, torch.ones(len(rows), len(kept), dtype=torch.bool))
            parts.append((rows, Route(kept[route.ids], route.scores, route.weights, route.leads)))
    return joined(len(allowed), parts)


@dataclass
class Apart:
    """A router for which adapters that a row may not use are not in the pool at all; slower.

    Args:
        inner: the router, fitted; it looks at embeddings.
        known: what it was fitted to.
    """

    inner: Router
    known: Known
    needs_embedding: bool = field(default=True, init=False)
    seen_above_: float | None = field(init=False)  # of the whole pool

    def __post_init__(self) -> None:
        self.seen_above_ = self.inner.seen_above_

    def fit(self, known: Known) -> Apart:
        """Fit the router to other samples."""
        self.inner, self.known = self.inner.fit(known), known
        self.seen_above_ = self.inner.seen_above_
        return self

    def __call__(self, query: Query, allowed: Bool[Tensor, "batch adapter"]) -> Route:
        """Route each row by a router that has seen the samples of the row's allowed adapters only."""
        return route_apart(self.inner, self.known, query, allowed)

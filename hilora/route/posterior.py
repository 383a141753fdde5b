"""Calibrated posterior weights: how likely is each adapter's task, given the prompt?

The weighted product of witnesses (`experts`) is a calibrated log posterior: w_i(x) = softmax_i(log p(x | i)). A
composer that weighs outputs by w is the posterior mean of the adapters' outputs: the right adapter alone where the
prompt is clear, a mixture of likely ones where it is not. A part of `hilora-plus`, not in the papers.

A prompt that no adapter knows (`novelty`) has no right adapter to find. What then serves best is broad: more
adapters, with weights nearer to each other, so that what they share (how to answer an instruction) adds up and what
each knows of its own task does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hilora.errors import InputError, UnknownNameError
from hilora.route.candidates import select
from hilora.route.conformal import conformal_sizes, threshold
from hilora.route.experts import Calibration, Experts, calibrate
from hilora.route.features import Features, hash_terms
from hilora.route.grown import GrownExperts
from hilora.route.joined import joined
from hilora.route.near import MANY, NEAR, judge_near, prepare
from hilora.route.router import Known, Query
from hilora.route.samples import sampled
from hilora.route.stored import experts, grown
from hilora.types import Route

CANDIDATES = ("top", "conformal")
FALLBACKS = ("broad", "base", "none")
BROAD_K = 8
BROAD_TEMPERATURE = 3.0


@dataclass
class Posterior:
    """Likely adapters, weighted by their calibrated probability.

    Args:
        k: at most so many adapters per row, with candidates "top".
        floor: adapters below this share of the best one's weight are left out, with candidates "top".
        terms: whether to look at n-grams beside the embedding.
        candidates: "top", or "conformal": sets that hold the right adapter with probability 1 - alpha.
        alpha: of conformal sets.
        fallback: what serves prompts that no adapter knows: "broad" (more adapters, weights nearer to each other),
            "base" (the base model alone), or "none" (they are served as any other prompt).
        near: under an epoch, adapters that all witnesses look at (`near`) for a row that may use more than `many`.
    """

    k: int = 3
    floor: float = 0.1
    terms: bool = True
    candidates: str = "top"
    alpha: float = 0.05
    fallback: str = "broad"
    near: int = NEAR
    many: int = MANY
    needs_embedding: bool = field(default=True, init=False)
    seen_above_: float | None = field(init=False, default=None)
    limit_: float = field(init=False, default=0.0)
    model_: Experts | GrownExperts = field(init=False)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k is the number of candidates: got {self.k}, expected at least 1.")
        if not 2 <= self.near <= self.many:
            raise InputError(f"near is some of many adapters: got {self.near} of {self.many}, expected at least 2.")
        if not 0 <= self.floor <= 1:
            raise InputError(f"floor is a share of the best weight: got {self.floor}, expected 0 <= floor <= 1.")
        if self.candidates not in CANDIDATES:
            raise UnknownNameError("candidates rule", self.candidates, CANDIDATES)
        if self.fallback not in FALLBACKS:
            raise UnknownNameError("fallback", self.fallback, FALLBACKS)
        threshold((), self.alpha)  # refuses what is no share

    def fit(self, known: Known) -> Posterior:
        """Fit the likelihoods, unless a pool keeps them; how to read them comes with it, or is worked out here."""
        pool = sampled(known)
        if (epoch := pool.shared()) is not None:
            found: Calibration | None = epoch.calibration if self.terms else epoch.plain
        else:
            found = pool.calibration if self.terms else None
        if found is None:
            found = calibrate(pool.samples(), self.terms)
        model = experts if epoch is None else grown
        self.model_ = model(pool, found.weights, self.terms)
        if isinstance(self.model_, GrownExperts):
            prepare(self.model_, self.many)
        self.seen_above_ = found.seen_above
        self.limit_ = threshold(found.surprises, self.alpha)
        return self

    def __call__(self, query: Query, allowed: Bool[Tensor, "batch adapter"]) -> Route:
        """Each row's likely adapters.

        Scores are log posteriors over the pool; under an epoch among the allowed, of many among the near (`near`).
        """
        assert query.embedding is not None
        texts = Features(query.embedding, hash_terms(query.texts) if self.terms else None)
        if not isinstance(self.model_, GrownExperts):
            return self._among_all(texts, allowed)
        alike = allowed.stride(0) == 0 and len(allowed) > 0  # one row that stands for all is looked at once
        many = (allowed[:1] if alike else allowed).sum(1) > self.many
        if not many.any():
            return self._among_all(texts, allowed)
        texts = Features(texts.embeddings.cpu(), texts.terms)  # a search is the CPU's work
        if bool(many.all()):
            return self._among_near(texts, allowed)
        parts, ways = [(~many).nonzero()[:, 0], many.nonzero()[:, 0]], (self._among_all, self._among_near)
        return joined(
            len(texts),
            [(rows, way(texts.take(rows), allowed[rows])) for rows, way in zip(parts, ways, strict=True)],
        )

    def _among_all(self, texts: Features, allowed: Bool[Tensor, "batch adapter"]) -> Route:
        posterior, lead = self.model_.judge(texts, allowed)
        route = self._route(posterior, lead, allowed)
        return Route(route.ids, posterior.gather(1, route.ids), route.weights, lead)

    def _among_near(self, texts: Features, allowed: Bool[Tensor, "batch adapter"]) -> Route:
        assert isinstance(self.model_, GrownExperts)
        near = judge_near(self.model_, texts, allowed, self.near)
        route = self._route(near.posterior, near.lead, torch.ones_like(near.ids, dtype=torch.bool))
        return Route(near.ids.gather(1, route.ids), near.posterior.gather(1, route.ids), route.weights, near.lead)

    def _route(
        self, posterior: Float[Tensor, "batch adapter"], lead: Float[Tensor, " batch"], allowed: Tensor
    ) -> Route:
        best = posterior.masked_fill(~allowed, -torch.inf).max(1, keepdim=True).values
        unseen = torch.zeros_like(lead, dtype=torch.bool)
        if self.seen_above_ is not None and self.fallback != "none":
            unseen = lead <= self.seen_above_
        if self.candidates == "conformal":
            sizes, near = conformal_sizes(posterior, allowed, self.limit_), allowed
        else:
            near = allowed & ((posterior - best).exp() >= self.floor)
            sizes = torch.full((len(posterior),), float(self.k))
        if self.fallback == "base":
            return select(posterior, sizes, near & ~unseen[:, None])
        near = torch.where(unseen[:, None], allowed, near)
        sizes = torch.where(unseen, float(max(BROAD_K, self.k)), sizes)
        temper = torch.where(unseen, BROAD_TEMPERATURE, 1.0)
        return select(posterior / temper[:, None], sizes, near)

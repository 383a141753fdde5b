"""Routers of a pool that has changed, made of those of the pool before: nothing is learned again that still holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from hilora.base.threads import one_thread
from hilora.route.features import Features
from hilora.route.grown import GrownExperts
from hilora.route.near import prepare
from hilora.route.parts import Parts
from hilora.route.posterior import Posterior
from hilora.route.retriever import Retriever, Soup
from hilora.route.router import Gaussian, Router
from hilora.route.rows import gaussian_gather, gaussian_of, taken
from hilora.route.samples import Sampled
from hilora.route.stored import origins
from hilora.route.tied import Tied, TiedGaussian

Grow = Callable[[Any, Sequence[Features], Int[Tensor, " adapter"]], Router]


def regrown(router: Router, before: Sampled, now: Sampled) -> Router | None:
    """A router of a changed pool; what it shares with the one before is never written to.

    Args:
        router: fitted to the pool as it was before; stays as it is.
        before: that pool.
        now: the pool as it is.

    Returns:
        None where it has to be fitted: what all adapters share is not known to be the same.
    """
    keys, one = before.sample_keys(), now.sample_keys()
    if before.epoch_key != now.epoch_key or type(router) not in GROW or not keys:
        return None
    if keys == one and (before.ridge, before.calibration) == (now.ridge, now.calibration):
        return router
    grow = GROW[type(router)]
    if grow.shares and not now.epoch_key:
        return None
    origin = origins(keys, one)
    return grow.over(router, now.samples((origin < 0).nonzero()[:, 0].tolist()), origin)


@dataclass(frozen=True)
class _Grow:
    """How a class of routers grows, and whether its adapters share something that depends on all of them."""

    over: Grow
    shares: bool = True


@one_thread()
def _gaussian(router: Gaussian, newcomers: Sequence[Features], origin: Int[Tensor, " adapter"]) -> Gaussian:
    made, model = copy(router), router.model_
    parts: Any = model if isinstance(model, Parts) else Parts.whole(model)
    made.model_ = parts.over(newcomers, origin)
    return made


def _tied(router: Tied, newcomers: Sequence[Features], origin: Int[Tensor, " adapter"]) -> Tied:
    """All in the pool's order: of adapters that score alike, the search finds the first."""
    made, models = copy(router), [router.model_]
    if newcomers:
        fresh = gaussian_of(router.model_, [own.embeddings for own in newcomers])
        assert isinstance(fresh, TiedGaussian)
        models.append(fresh)
    made.model_ = gaussian_gather(models, _from(origin, len(router.model_.mean_)))
    _ = made.model_.nearest
    return made


def _retriever(router: Retriever, newcomers: Sequence[Features], origin: Int[Tensor, " adapter"]) -> Retriever:
    made, tables = copy(router), [router.mean_]
    if newcomers:
        tables.append(router.means([own.embeddings for own in newcomers]))
    made.mean_ = taken(tables, _from(origin, len(router.mean_)))
    return made


def _posterior(router: Posterior, newcomers: Sequence[Features], origin: Int[Tensor, " adapter"]) -> Posterior:
    made, model = copy(router), router.model_
    assert isinstance(model, GrownExperts)
    made.model_ = model.over(newcomers, origin)
    prepare(made.model_, router.many)
    return made


def _from(origin: Int[Tensor, " adapter"], held: int) -> Int[Tensor, " adapter"]:
    """Rows of what was there, and of the newcomers behind it."""
    rows, new = origin.clone(), origin < 0
    rows[new] = held + torch.arange(int(new.sum()))
    return rows


GROW: Mapping[type, _Grow] = {
    Gaussian: _Grow(_gaussian),
    Tied: _Grow(_tied),
    Retriever: _Grow(_retriever, shares=False),
    Soup: _Grow(_retriever, shares=False),
    Posterior: _Grow(_posterior),
}
"""Class of a router -> how it grows."""

"""Methods with trained parts: what is put into a method when its pool is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from hilora.compose.moe import Moe
from hilora.compose.phatgoose import Phatgoose
from hilora.compose.router_lora import RouterLora
from hilora.errors import MismatchError
from hilora.merge.lorahub import WeightedSum
from hilora.pool.trained import Trained, load_trained, require_all
from hilora.pool.view import PoolView
from hilora.route.uniform import Everyone

if TYPE_CHECKING:
    from hilora.methods import Method

Complete = Callable[["Method", PoolView], "Method"]
"""A method and its pool -> the method with its trained parts."""


def router_lora(name: str) -> Complete:
    """The weights of a RouterLoRA, by the name it was saved under; it serves adapters that came later, too."""

    def complete(method: Method, pool: PoolView) -> Method:
        return replace(method, gate=RouterLora(router_weights(load_trained(pool, name))))

    return complete


def router_weights(trained: Trained) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Site -> (A_r, B_r)."""
    sites = {key.rsplit("|", 1)[0] for key in trained.tensors}
    return {site: (trained.tensors[f"{site}|down"], trained.tensors[f"{site}|up"]) for site in sites}


def phatgoose(k: int) -> Complete:
    """Gate vectors of every enabled adapter."""

    def complete(method: Method, pool: PoolView) -> Method:
        trained = load_trained(pool, "phatgoose")
        require_all(trained, pool)
        return replace(method, gate=Phatgoose(gate_vectors(trained, pool), k))

    return complete


def gate_vectors(trained: Trained, pool: PoolView) -> dict[str, torch.Tensor]:
    """Site -> (pool position, in), from tensors named site|hash."""
    position = {entry.hash: i for i, entry in enumerate(pool.entries)}
    vectors: dict[str, torch.Tensor] = {}
    for key, vector in trained.tensors.items():
        site, content = key.rsplit("|", 1)
        if content in position:
            vectors.setdefault(site, torch.zeros(len(pool), len(vector)))[position[content]] = vector
    return vectors


def moe(kind: str, k: int | None = None, *, fused: bool = False) -> Complete:
    """W_g of every site, and the experts that it weighs."""

    def complete(method: Method, pool: PoolView) -> Method:
        trained = load_trained(pool, kind)
        position = {entry.hash: i for i, entry in enumerate(pool.entries)}
        gone = [name for name, content in trained.adapters.items() if content not in position]
        if gone:
            raise MismatchError(
                f"{kind} has experts that this pool lacks: {', '.join(gone)}. "
                f"Add them again, or run: hilora train moe --kind {kind} --pool {pool.path}"
            )
        experts = tuple(position[trained.adapters[name]] for name in trained.recipe["experts"])
        return replace(method, router=Everyone(experts), gate=Moe(trained.tensors, experts, k, fused))

    return complete


def lorahub(method: Method, pool: PoolView) -> Method:
    """The weights of the adapters that were drawn; those that are gone since count nothing."""
    trained = load_trained(pool, "lorahub")
    weights = {
        trained.adapters[name]: float(w)
        for name, w in zip(trained.recipe["drawn"], trained.tensors["weights"], strict=True)
    }
    members = tuple(i for i, entry in enumerate(pool.entries) if entry.hash in weights)
    return replace(method, router=Everyone(members), merge=WeightedSum(tuple(sorted(weights.items()))))

"""Methods with trained parts: what is put into a method when its pool is known."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from hilora.compose.moe import Moe
from hilora.compose.phatgoose import Phatgoose
from hilora.compose.router_lora import RouterLora
from hilora.errors import MismatchError
from hilora.merge.lorahub import WeightedSum
from hilora.methods.method import Complete, Method
from hilora.pool.derived import Merged
from hilora.pool.trained import Trained, damaged, load_trained, require_all, tensor_of, trained_path
from hilora.pool.view import PoolView
from hilora.route.uniform import Everyone


def router_lora(name: str) -> Complete:
    """The weights of a RouterLoRA, by the name it was saved under; it serves adapters that came later, too."""

    def complete(method: Method, pool: PoolView) -> Method:
        trained, weights = load_trained(pool, name), {}
        for site in {key.rsplit("|", 1)[0] for key in trained.tensors}:
            into, out = _shape(trained, pool, site)
            down = tensor_of(trained, pool, f"{site}|down", (None, into))
            weights[site] = down, tensor_of(trained, pool, f"{site}|up", (out, len(down)))
        return replace(method, gate=RouterLora(weights))

    return complete


def phatgoose(k: int) -> Complete:
    """Gate vectors of every enabled adapter."""

    def complete(method: Method, pool: PoolView) -> Method:
        trained = load_trained(pool, "phatgoose")
        require_all(trained, pool)
        vectors: dict[str, torch.Tensor] = {}
        for key in trained.tensors:
            site, content = key.rsplit("|", 1)
            into, _ = _shape(trained, pool, site)
            vector = tensor_of(trained, pool, key, (into,))
            for i, entry in enumerate(pool.entries):
                if entry.hash == content:
                    vectors.setdefault(site, torch.zeros(len(pool), into))[i] = vector
        return replace(method, gate=Phatgoose(vectors, k))

    return complete


def moe(kind: str, k: int | None = None, *, fused: bool = False) -> Complete:
    """W_g of every site, and the experts that it weighs."""

    def complete(method: Method, pool: PoolView) -> Method:
        trained = load_trained(pool, kind)
        position = {(entry.name, entry.hash): i for i, entry in enumerate(pool.entries)}
        experts = _named(trained, pool, "experts")
        if gone := [name for name, content in experts if (name, content) not in position]:
            raise MismatchError(
                f"{kind} has experts that this pool lacks: {gone!r}. Add them again, or train it again: "
                f"hilora train moe --kind {kind} --data DIR --pool {pool.path}"
            )
        weights = {
            site: tensor_of(trained, pool, site, (len(experts), _shape(trained, pool, site)[0]))
            for site in trained.tensors
        }
        positions = tuple(position[expert] for expert in experts)
        return replace(method, router=Everyone(positions), gate=Moe(weights, positions, k, fused))

    return complete


def lorahub(method: Method, pool: PoolView) -> Method:
    """The weights of the adapters that were drawn; those that are gone since count nothing."""
    trained = load_trained(pool, "lorahub")
    drawn = _named(trained, pool, "drawn")
    weights: dict[str, list[float]] = {}
    for (_, content), w in zip(drawn, tensor_of(trained, pool, "weights", (len(drawn),)).tolist(), strict=True):
        weights.setdefault(content, []).append(w)  # an adapter may be there under two names
    members = tuple(i for i, entry in enumerate(pool.entries) if (entry.name, entry.hash) in drawn)
    means = tuple(sorted((content, sum(own) / len(own)) for content, own in weights.items()))
    return replace(method, router=Everyone(members), make=partial(Merged, WeightedSum(means)))


def _named(trained: Trained, pool: PoolView, what: str) -> list[tuple[str, str]]:
    """(name, content hash) of the adapters that a recipe lists."""
    try:
        return [(str(name), str(trained.adapters[name])) for name in trained.recipe[what]]
    except (KeyError, TypeError) as error:
        raise damaged(trained_path(pool.path, trained.kind), error) from error


def _shape(trained: Trained, pool: PoolView, site: str) -> tuple[int, int]:
    """(in, out) of a site of the base."""
    if site not in pool.base.sites:
        raise damaged(trained_path(pool.path, trained.kind), f"the base has no {site}")
    return pool.base.sites[site]

"""A plan's row as what another server can be told: which adapters, with which factor, how many ROCs of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import torch

from hilora.base.passes import needs_base
from hilora.compose.rocs import TopRocs
from hilora.compose.weighted import Weighted
from hilora.errors import InputError
from hilora.methods.method import Method
from hilora.pool.derived import Canonical
from hilora.pool.view import PoolView, Source
from hilora.types import Factors, Plan, Route

GATES = (TopRocs, Weighted)
"""Composers whose work on an adapter is a factor and a number of ROCs."""


@dataclass(frozen=True)
class Part:
    """One adapter's part in a prompt's composition.

    Attributes:
        content: hash of the adapter; of one that a method made of it ("canonical ..."), where ROCs are chosen.
        factor: on what it adds: its routing weight, if the method weighs, times the row's scale.
        rocs: that a token uses of it.
        rank: the ROCs that it has.
    """

    content: str
    factor: float
    rocs: int
    rank: int

    @property
    def is_whole(self) -> bool:
        """Whether nothing is chosen token by token."""
        return self.rocs == self.rank


def check_method(method: Method, *, whole: bool = False) -> Method:
    """A method whose routes come out as parts.

    Args:
        method: any.
        whole: adapters may only be used whole.

    Raises:
        InputError: it weighs adapters token by token, or makes others of them; or it chooses ROCs, and may not; or it
            routes by a pass of the base model, which only the other server has.
    """
    if method.needs_base:
        raise InputError(needs_base(method.name, "what routes for vLLM"))
    makes = method.make not in (None, Canonical)  # canonical ROCs add up to the same adapter
    makes = makes or method.complete is not None  # as lorahub, whose one adapter comes with what was trained
    if method.router is not None and (makes or not isinstance(method.gate, GATES)):
        raise InputError(
            f"{method.name} is not a fixed sum of the pool's adapters for a prompt, so no other server can be told "
            "what it does. Choose hilora-plus, hilora, hilora-gs, selection or mixture."
        )
    if whole and method.gamma < 1:
        raise InputError(
            f"{method.name} with gamma {method.gamma:g} chooses ROCs for every token, which a server that knows "
            "whole adapters only cannot do. Set gamma to 1, choose hilora-gs, hilora-plus, mixture or selection, or "
            "use the plugin for vLLM."
        )
    return method


def parts_of(method: Method, source: Source, plan: Plan) -> tuple[Part, ...]:
    """The parts of a plan of one row, by content hash, so that the same composition is the same tuple."""
    weighs = not isinstance(method.gate, TopRocs) or method.gate.weighted
    scale = float(plan.scale[0])
    found = []
    for column, place in enumerate(plan.ids):
        rocs, rank = int(plan.rocs[0, column]), int(plan.ranks[column])
        factor = scale * (float(plan.weights[0, column]) if weighs else 1.0)
        if not rocs or not factor:
            continue
        content = source.entries[place].hash
        found.append(Part(content.split()[-1] if rocs == rank else content, factor, rocs, rank))
    return tuple(sorted(found, key=lambda part: part.content))


def criterion_of(method: Method) -> str:
    """By which a method's ROCs are chosen, where any are (`compose.rocs.CRITERIA`)."""
    return str(getattr(method.gate, "criterion", "value"))


@dataclass(frozen=True)
class Made:
    """Where the factors of parts are: of a pool's adapters, and of those that a method has made of these.

    Attributes:
        view: the pool.
        source: the method's.
    """

    view: PoolView
    source: Source

    def factors(self, content: str) -> Factors:
        """Factors by content; what was made is called by a word and a hash, see `pool.derived`."""
        return self.source.factors(content) if " " in content else self.view.factors(content)


@dataclass(frozen=True)
class Room:
    """How much of a route another server has room for.

    Attributes:
        ranks: sum of its adapters' ranks.
        adapters: how many.
    """

    ranks: int | None = None
    adapters: int | None = None

    def within(self, route: Route, ranks: Sequence[int]) -> tuple[Route, list[int]]:
        """A route without the adapters that find no room, and how many each row lacks. The likeliest stay.

        Args:
            route: any.
            ranks: of all adapters that it counts along.
        """
        weights, left = route.weights.clone(), [0] * len(route.ids)
        for row, ids in enumerate(route.ids.tolist()):
            used = adapters = 0
            for place in weights[row].argsort(descending=True, stable=True).tolist():
                if weights[row, place] <= 0:
                    continue
                rank = ranks[ids[place]]
                if used + rank > (self.ranks or inf) or adapters + 1 > (self.adapters or inf):
                    weights[row, place], left[row] = 0, left[row] + 1
                else:
                    used, adapters = used + rank, adapters + 1
        total = weights.sum(1, keepdim=True)
        weights = torch.where(total > 0, weights / total, weights)
        return replace(route, weights=weights) if any(left) else route, left


EVERYTHING = Room()

"""What a method is: router, allocation and composer under the name that its paper uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hilora.compose.delta import Gate
from hilora.pool.view import PoolView, Source
from hilora.route.allocate import Share, draw_capped
from hilora.route.router import Router

Complete = Callable[["Method", PoolView], "Method"]
"""A method and its pool -> the method with its trained parts."""


@dataclass(frozen=True)
class Method:
    """One way to serve prompts."""

    name: str  # as in its paper
    router: Router | None = None  # which adapters; None serves the base model alone
    gate: Gate | None = None  # the composer
    gamma: float = 1.0  # share of the candidates' ROCs in the budget
    share: Share = draw_capped  # how the budget is shared among them
    normalise: bool = False  # whether outputs are scaled by sqrt(mean rank / active ROCs)
    active: int | None = None  # ROCs that a token uses in all, where that is not the budget
    sparse: int | None = None  # adapters that a token uses of those in the route, where it is not all of them
    make: Callable[[PoolView, Any], Source] | None = None  # what it makes of a pool's adapters (`derived`)
    abstain: bool = False  # prompts whose adapters may be used, and none fits, stay unanswered
    complete: Complete | None = None  # puts in what was trained and lies beside the pool
    part: str | None = None  # name of that file
    needs_base: bool = False  # routes by a pass of the base model over each prompt (`base.passes`)

"""What a method is: router, allocation and composer under the name that its paper uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hilora.compose.delta import Gate
from hilora.merge.average import Merge
from hilora.pool.view import PoolView
from hilora.route.router import Router

Complete = Callable[["Method", PoolView], "Method"]
"""A method and its pool -> the method with its trained parts."""


@dataclass(frozen=True)
class Method:
    """One way to serve prompts.

    Attributes:
        name: as in its paper.
        router: which adapters; None serves the base model alone.
        gate: the composer.
        gamma: share of the candidates' ROCs in the budget.
        allocation: "sampled" or "expected".
        normalise: whether outputs are scaled by sqrt(mean rank / active ROCs).
        active: ROCs that a token uses in all, where that is not the budget.
        sparse: adapters that a token uses of those in the route, where it is not all of them.
        canonical: whether the composer needs canonical ROCs.
        merge: makes one adapter of those that the router chose for a row.
        abstain: whether prompts that the router finds no adapter for, of those that they may use, stay unanswered.
            Where none may be used, the base answers.
        complete: puts in what was trained and lies beside the pool; None for methods without training.
        part: name of that file.
    """

    name: str
    router: Router | None = None
    gate: Gate | None = None
    gamma: float = 1.0
    allocation: str = "expected"
    normalise: bool = False
    active: int | None = None
    sparse: int | None = None
    canonical: bool = False
    merge: Merge | None = None
    abstain: bool = False
    complete: Complete | None = None
    part: str | None = None

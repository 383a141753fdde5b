"""Prompts -> routes -> plans, with the reasons: all of routing, and no base model.

This is what `hilora route` runs, and what `HiLoRA` runs in front of the base model.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace

import torch

from hilora.allocate import make_plan, row_stream
from hilora.methods import Method
from hilora.pool.view import EmbedderInfo, PoolView
from hilora.route.embed import Embedder
from hilora.route.router import Gaussian, Query
from hilora.types import Choice, Plan, Route


@dataclass(frozen=True)
class Routed:
    """Routes of several prompts, not yet planned.

    Attributes:
        texts: what was routed on.
        route: one row per prompt; None when the base model serves alone.
        note: why it does, if it does.
    """

    texts: list[str]
    route: Route | None
    note: str = ""


class Planner:
    """Routes prompts over a pool by a method.

    Args:
        pool: the pool; its view is kept.
        method: the method, see `methods.get_method`.
        embedder: the pool's, loaded already; default: loaded when first needed.

    Raises:
        MismatchError: the embedder is not the pool's.
    """

    def __init__(self, pool: PoolView, method: Method, embedder: Embedder | None = None) -> None:
        if embedder is not None:
            pool.check_embedder(describe_embedder(embedder))
        self.pool = copy(pool)  # a view of its own: routes count along its entries
        self.method = method = replace(method, router=deepcopy(method.router))  # fitted to this pool only
        self._embedder = embedder
        if method.router is not None and self.pool.entries:
            if isinstance(method.router, Gaussian) and method.router.ridge is None:
                method.router.ridge = pool.ridge
            method.router.fit(pool.embeddings() if method.router.needs_embedding else [torch.empty(0, 0)] * len(pool))

    @property
    def embedder(self) -> Embedder:
        """The pool's embedder."""
        if self._embedder is None:
            wanted = self.pool.embedder
            self._embedder = Embedder(wanted.name, instruction=wanted.instruction)
            self.pool.check_embedder(describe_embedder(self._embedder))
        return self._embedder

    def route(
        self,
        texts: Sequence[str],
        *,
        labels: Sequence[str] | None = None,
        allow: Sequence[str] | None = None,
        deny: Sequence[str] | None = None,
    ) -> Routed:
        """Choose candidates and weights for each prompt.

        Args:
            texts: raw prompt texts.
            labels: the right adapter of each prompt, for the oracle.
            allow, deny: names of adapters to keep to, or to leave out.

        Raises:
            UnknownNameError: a label or list names an adapter that the pool does not have.
        """
        texts = list(texts)
        router = self.method.router
        allowed = self.pool.allowed(allow, deny)
        positions = None if labels is None else torch.tensor([self.pool.index(name) for name in labels])
        if router is None:
            return Routed(texts, None)
        if not bool(allowed.any()):
            why = "no adapter is allowed" if self.pool.entries else "the pool is empty"
            return Routed(texts, None, f"{why}: the base model answered alone")
        vectors = self.embedder(texts) if router.needs_embedding else None
        return Routed(texts, router(Query(texts, vectors, positions), allowed))

    def plan(self, routed: Routed, rows: Sequence[int], seed: int = 0) -> Plan:
        """The plan of some of the routed rows: their shares of the budget.

        Each row draws from a stream of its own, keyed by (seed, prompt): the batch does not matter.
        """
        assert routed.route is not None
        method, route, index = self.method, routed.route, list(rows)
        part = Route(route.ids[index], route.scores[index], route.weights[index])
        return make_plan(
            part,
            [entry.rank for entry in self.pool.entries],
            gamma=method.gamma,
            allocation=method.allocation,
            normalise=method.normalise,
            active=method.active,
            streams=[row_stream(seed, routed.texts[row], "rocs") for row in index],
        )

    def choices(self, routed: Routed, rows: Sequence[int], plan: Plan) -> list[tuple[Choice, ...]]:
        """Why each of the rows is served as it is: its candidates, best first."""
        assert routed.route is not None
        route, out = routed.route, []
        column = {adapter: c for c, adapter in enumerate(plan.ids)}
        threshold = self.method.router.seen_above_ if self.method.router else None
        for place, row in enumerate(rows):
            found = []
            for i, adapter in enumerate(route.ids[row].tolist()):
                weight = float(route.weights[row, i])
                if weight > 0:
                    entry, score = self.pool.entries[adapter], float(route.scores[row, i])
                    rocs = int(plan.rocs[place, column[adapter]])
                    seen = None if threshold is None else score > threshold
                    found.append(Choice(entry.name, score, weight, rocs, entry.rank, seen))
            out.append(tuple(found))
        return out

    def explain(self, routed: Routed, seed: int = 0) -> list[tuple[Choice, ...]]:
        """The choices of every routed prompt, as `generate` would serve it with that seed."""
        if routed.route is None:
            return [() for _ in routed.texts]
        rows = range(len(routed.texts))
        return self.choices(routed, rows, self.plan(routed, rows, seed))


def describe_embedder(embedder: Embedder) -> EmbedderInfo:
    """An embedder as a pool records it."""
    return EmbedderInfo(embedder.name, embedder.dim, embedder.instruction, embedder.fingerprint)

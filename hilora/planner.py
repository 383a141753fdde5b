"""Prompts -> routes -> plans, with the reasons: all of routing, and no base model.

This is what `hilora route` runs, and what `HiLoRA` runs in front of the base model.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from hilora.base.embed import Embedder
from hilora.base.models import default_dtype
from hilora.errors import InputError
from hilora.methods.method import Method
from hilora.pool.derived import Canonical, Merged, Source, Stored
from hilora.pool.memory import Memory
from hilora.pool.view import EmbedderInfo, PoolView
from hilora.route.allocate import make_plan, row_stream
from hilora.route.apart import route_apart
from hilora.route.router import Query
from hilora.types import Choice, Plan, Route

Names = Sequence[str] | Sequence[Sequence[str]] | None
"""Adapter names: one list for all prompts, or one list per prompt."""


@dataclass(frozen=True)
class Routed:
    """Routes of several prompts, not yet planned.

    Attributes:
        texts: what was routed on.
        route: one row per prompt; None when the base model serves all of them.
        source: the adapters that the route counts along.
        notes: per prompt, why no adapter serves it, if none does; else "".
        silent: rows that are to stay unanswered.
    """

    texts: list[str]
    route: Route | None
    source: Source
    notes: list[str]
    silent: frozenset[int] = frozenset()


class Planner:
    """Routes prompts over a pool by a method.

    Args:
        pool: the pool; its view is kept.
        method: the method, see `methods.get_method`.
        embedder: the pool's, loaded already; default: loaded when first needed.
        memory: where adapters are kept between batches; default: one of its own.
        dtype: that an embedder loaded here computes in; default: bf16 where it is fast, else fp32.

    Raises:
        MismatchError: the embedder is not the pool's, or what the method has trained does not fit the pool.
        PoolError: the method is not trained yet.
    """

    def __init__(
        self,
        pool: PoolView,
        method: Method,
        embedder: Embedder | None = None,
        memory: Memory | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if embedder is not None:
            pool.check_embedder(describe_embedder(embedder))
        self.pool = copy(pool)  # a view of its own: routes count along its entries
        if method.complete is not None:
            method = method.complete(method, self.pool)
        self.method = method = replace(method, router=deepcopy(method.router))  # fitted to this pool only
        self.memory = Memory() if memory is None else memory
        self.source: Source = (Canonical if method.canonical else Stored)(self.pool, self.memory)
        self.merged = None if method.merge is None else Merged(self.pool, method.merge, self.memory)
        self._embedder = embedder
        self._dtype = dtype or default_dtype()
        if method.router is not None and self.pool.entries:
            method.router.fit(self.pool)

    @property
    def embedder(self) -> Embedder:
        """The pool's embedder."""
        if self._embedder is None:
            wanted = self.pool.embedder
            self._embedder = Embedder(wanted.name, instruction=wanted.instruction, dtype=self._dtype)
            self.pool.check_embedder(describe_embedder(self._embedder))
        return self._embedder

    def route(
        self,
        texts: Sequence[str],
        *,
        labels: Sequence[str] | None = None,
        allow: Names = None,
        deny: Names = None,
        apart: bool = False,
    ) -> Routed:
        """Choose candidates and weights for each prompt.

        Args:
            texts: raw prompt texts.
            labels: the right adapter of each prompt, for the oracle.
            allow, deny: names of adapters to keep to, or to leave out: a list for all, or one per prompt.
            apart: route as if the adapters left out were not in the pool at all (`route.apart`); slower.

        Raises:
            UnknownNameError: a label or list names an adapter that the pool does not have.
            InputError: there are not as many lists as prompts.
        """
        texts = list(texts)
        router = self.method.router
        allowed = self._allowed(len(texts), allow, deny)
        positions = None if labels is None else torch.tensor([self.pool.index(name) for name in labels])
        if router is None:
            return Routed(texts, None, self.source, [""] * len(texts))
        why = "no adapter is allowed" if self.pool.entries else "the pool is empty"
        served = allowed.any(1)
        notes = ["" if s else f"{why}: the base model answered alone" for s in served.tolist()]
        if not bool(served.any()):
            return Routed(texts, None, self.source, notes)
        vectors = self.embedder(texts) if router.needs_embedding else None
        query = Query(texts, vectors, positions)
        if apart and router.needs_embedding:
            route = route_apart(router, self.pool, query, allowed)
        else:
            route = router(query, allowed)
        strange = (served & ~(route.weights > 0).any(1)).nonzero()[:, 0].tolist()
        abstain = self.method.abstain
        for row in strange:
            notes[row] = f"no adapter fits: {'not answered' if abstain else 'the base model answered alone'}"
        silent = frozenset(strange if abstain else [])
        if self.merged is None:
            return Routed(texts, route, self.source, notes, silent)
        return Routed(texts, _merge_rows(route, self.merged), self.merged, notes, silent)

    def plan(self, routed: Routed, rows: Sequence[int], seed: int = 0) -> Plan:
        """The plan of some of the routed rows: their shares of the budget.

        Each row draws from a stream of its own, keyed by (seed, prompt): the batch does not matter.
        """
        assert routed.route is not None
        method, route, index = self.method, routed.route, list(rows)
        part = Route(route.ids[index], route.scores[index], route.weights[index])
        return make_plan(
            part,
            [entry.rank for entry in routed.source.entries],
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
                    entry, score = routed.source.entries[adapter], float(route.scores[row, i])
                    rocs = int(plan.rocs[place, column[adapter]])
                    fit = score if route.leads is None else float(route.leads[row])
                    seen = None if threshold is None else fit > threshold
                    found.append(Choice(entry.name, score, weight, rocs, entry.rank, seen))
            out.append(tuple(found))
        return out

    def explain(self, routed: Routed, seed: int = 0) -> list[tuple[Choice, ...]]:
        """The choices of every routed prompt, as `generate` would serve it with that seed."""
        if routed.route is None:
            return [() for _ in routed.texts]
        rows = range(len(routed.texts))
        return self.choices(routed, rows, self.plan(routed, rows, seed))

    def _allowed(self, count: int, allow: Names, deny: Names) -> Bool[Tensor, "batch adapter"]:
        """Which adapters each prompt may use."""
        rows = zip(_per_prompt("allow", allow, count), _per_prompt("deny", deny, count), strict=True)
        masks: dict[tuple[object, object], Tensor] = {}  # few lists serve many prompts
        found = []
        for pair in rows:
            if pair not in masks:
                masks[pair] = self.pool.allowed(*pair)
            found.append(masks[pair])
        if len(masks) == 1:  # one list for all, however large the pool: no copies
            return found[0].expand(count, -1)
        return torch.stack(found) if found else torch.empty(0, len(self.pool), dtype=torch.bool)


def _per_prompt(what: str, names: Names, count: int) -> list[tuple[str, ...] | None]:
    """The list of names of each prompt.

    Raises:
        InputError: there are not as many lists as prompts, or a text stands for a list.
    """
    if isinstance(names, str):
        raise InputError(f"{what} is a list of adapter names; got the text {names!r}. Write [{names!r}].")
    if names is None:
        return [None] * count
    if all(isinstance(name, str) for name in names):
        return [tuple(str(name) for name in names)] * count
    if any(isinstance(name, str) for name in names):
        raise InputError(f"{what} mixes names and lists of names. Give one list for all prompts, or a list for each.")
    if len(names) != count:
        raise InputError(f"{what} holds {len(names)} lists for {count} prompts; give one each, or one for all.")
    return [tuple(listed) for listed in names]


def _merge_rows(route: Route, merged: Merged) -> Route:
    """Each row's adapters replaced by the one that merges them; its score is their best."""
    ids = torch.zeros(len(route.ids), 1, dtype=torch.long)
    chosen = route.weights > 0
    for row in range(len(ids)):
        members = tuple(sorted(route.ids[row][chosen[row]].tolist()))
        if members:
            ids[row, 0] = merged.position(members)
    return Route(ids, route.scores[:, :1], chosen.any(1, keepdim=True).float(), route.leads)


def describe_embedder(embedder: Embedder) -> EmbedderInfo:
    """An embedder as a pool records it."""
    return EmbedderInfo(embedder.name, embedder.dim, embedder.instruction, embedder.fingerprint)

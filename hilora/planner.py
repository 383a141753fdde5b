"""Prompts -> routes -> plans, with the reasons: all of `hilora route`, and what runs in front of the base model."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from hilora.base.asked import look
from hilora.base.embed import Embedder, describe_embedder
from hilora.base.passes import Pass, no_pass
from hilora.base.prompts import Names, Prompts, per_prompt, query_texts
from hilora.methods.method import Method
from hilora.pool.view import PoolView, Source
from hilora.route.allocate import make_plan, row_stream
from hilora.route.router import Query
from hilora.types import Choice, Plan, Route


@dataclass(frozen=True)
class Routed:
    """Routes of several prompts, not yet planned."""

    texts: list[str]  # what was routed on
    route: Route | None  # one row per prompt; None when the base model serves all of them
    source: Source  # the adapters that the route counts along
    notes: list[str]  # per prompt, why no adapter serves it, if none does, and what was left out; else ""
    silent: frozenset[int] = frozenset()  # rows that are to stay unanswered


class Planner:
    """Routes prompts over a pool by a method.

    Args:
        pool: the pool; its view is kept.
        method: the method, see `methods.lookup.get_method`.
        embedder: the pool's, loaded already, which stays where it is; default: loaded when first needed.
        memory: where adapters are kept between batches (`pool.memory.Memory`); default: one of their own.
        dtype: that an embedder loaded here computes in; default: bf16 where it is fast, else fp32.
        since: of the same method, whose router is taken over as far as it holds: see `over`.
        device: where prompts are embedded and compared; default: the base model's in a `HiLoRA`, else the CPU.

    Raises:
        PoolError: the embedder is not the pool's; the method is not trained yet, or for other adapters.
    """

    def __init__(
        self,
        pool: PoolView,
        method: Method,
        embedder: Embedder | None = None,
        memory: Any = None,
        dtype: torch.dtype | None = None,
        since: Planner | None = None,
        device: torch.device | None = None,
    ) -> None:
        if embedder is not None:
            pool.embedder.check(describe_embedder(embedder), pool.path)
        self.pool = copy(pool)  # a view of its own: routes count along its entries
        self.epoch, self._given, self.device, self.memory, self._dtype = pool.epoch_key, method, device, memory, dtype
        if method.complete is not None:
            method = method.complete(method, self.pool)
        kept = None if since is None else self.pool.regrown(since.method.router, since.pool)
        self.method: Method = replace(method, router=kept or deepcopy(method.router))  # fitted to this pool only
        self.base: Pass = no_pass(method.name) if since is None else since.base  # set by whoever has a model
        self._embedder: list[Embedder | None] = [embedder] if since is None else since._embedder
        self.source: Source = self.pool if method.make is None else method.make(self.pool, memory)
        if kept is None and self.method.router is not None and self.pool.entries:
            self.method.router.fit(self.pool)

    @property
    def embedder(self) -> Embedder:
        """The pool's embedder."""
        if (found := self._embedder[0]) is None:
            found = self._embedder[0] = self.pool.embedder.load(self.pool.path, self._dtype, device=self.device)
        return found

    def over(self, pool: PoolView) -> Planner:
        """A planner of this method for another view of the pool, such as a later one; this one stays as it is.

        It routes as one that is made for that view. Shared are embedder, memory, and what was learned and holds.

        Raises:
            PoolError: as for `Planner`; its samples were embedded with another embedder.
        """
        pool.embedder.check(self.pool.embedder, pool.path)
        memory = getattr(self.source, "memory", None) if self.memory is None else self.memory
        return Planner(pool, self._given, None, memory, self._dtype, self, self.device)

    def route(
        self,
        prompts: Prompts,
        *,
        labels: Sequence[str] | None = None,
        allow: Names = None,
        deny: Names = None,
        visible: Bool[Tensor, "batch adapter"] | None = None,
    ) -> Routed:
        """Choose candidates and weights for each prompt.

        Args:
            prompts: texts and chats; what of them is routed on: `base.prompts.query_text`, `base.asked`.
            labels: the right adapter of each prompt, for the oracle.
            allow, deny: names of adapters to keep to, or to leave out: a list for all, or one per prompt.
            visible: the same as a mask, for callers who know of tenants' own adapters, too; instead of these lists.

        Raises:
            InputError: a list or label names an adapter that the pool lacks; not as many lists as prompts.
        """
        texts, router, abstain = query_texts(prompts), self.method.router, self.method.abstain
        allowed = self._allowed(len(texts), allow, deny) if visible is None else visible & self.pool.enabled
        positions = None if labels is None else torch.tensor([self.pool.index(name) for name in labels])
        if router is None:
            return Routed(texts, None, self.source, [""] * len(texts))
        served = allowed.any(1)
        whole = allow is None and visible is None  # else whoever may use nothing hears nothing of others' adapters
        why = "the pool is empty" if whole and not self.pool.entries else "no adapter is allowed"
        notes = ["" if s else f"{why}: the base model answered alone" for s in served.tolist()]
        if not served.any():
            return Routed(texts, None, self.source, notes)
        asked = look(prompts, self.embedder if router.needs_embedding else None, self.device)
        route = router(Query(asked.texts, asked.embedding, positions, lambda name: self.base(prompts, name)), allowed)
        strange = (served & ~(route.weights > 0).any(1)).nonzero()[:, 0].tolist()
        for row in strange:
            notes[row] = f"no adapter fits: {'not answered' if abstain else 'the base model answered alone'}"
        silent, notes = frozenset(strange if abstain else []), asked.notes(notes)
        return Routed(texts, self.source.count(route), self.source, notes, silent)

    def plan(self, routed: Routed, rows: Sequence[int], seed: int = 0) -> Plan:
        """The plan of some of the routed rows; each draws from its own stream, whatever else is in the batch."""
        assert routed.route is not None
        method, route, index = self.method, routed.route, list(rows)
        return make_plan(
            Route(route.ids[index], route.scores[index], route.weights[index]),
            [entry.rank for entry in routed.source.entries],
            gamma=method.gamma,
            share=method.share,
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
                if (weight := float(route.weights[row, i])) > 0:
                    entry, score = routed.source.entries[adapter], float(route.scores[row, i])
                    fit = score if route.leads is None else float(route.leads[row])
                    seen = None if threshold is None else fit > threshold
                    rocs = int(plan.rocs[place, column[adapter]])
                    found.append(Choice(entry.name, score, weight, rocs, entry.rank, seen))
            out.append(tuple(found))
        return out

    def explain(self, routed: Routed, seed: int = 0) -> list[tuple[Choice, ...]]:
        """The choices of every routed prompt, as `generate` would serve it with that seed."""
        rows = range(len(routed.texts))
        return [()] * len(rows) if routed.route is None else self.choices(routed, rows, self.plan(routed, rows, seed))

    def _allowed(self, count: int, allow: Names, deny: Names) -> Bool[Tensor, "batch adapter"]:
        """Which adapters each prompt may use."""
        pairs = list(zip(per_prompt("allow", allow, count), per_prompt("deny", deny, count), strict=True))
        masks = {pair: self.pool.allowed(*pair) for pair in dict.fromkeys(pairs)}  # few lists serve many prompts
        if len(masks) == 1:  # one list for all, however large the pool: no copies
            return masks[pairs[0]].expand(count, -1)
        return torch.stack([masks[p] for p in pairs]) if pairs else torch.empty(0, len(self.pool), dtype=torch.bool)

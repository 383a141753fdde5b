"""Rows of different calls under one plan: each brings the adapters that it was routed to."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hilora.compose.delta import Gate
from hilora.compose.stack import stack_sites
from hilora.engine.attachment import FORMS
from hilora.engine.batching import ServeRows
from hilora.engine.request import Request
from hilora.pool.memory import Memory
from hilora.pool.view import Source
from hilora.types import Factors, Plan, Site

BOUND = 2
"""Plans that stay bound: of those who are reading, and of those who are not."""
Serving = ServeRows
"""Places -> the model under their part of a plan (`attachment.FORMS`)."""


@dataclass(frozen=True, eq=False)
class RowPlan:
    """What one row uses, by content hash."""

    source: Source  # where the adapters are
    ids: tuple[int, ...]  # their positions there
    contents: tuple[str, ...]
    ranks: Int[Tensor, " adapter"]
    weights: Float[Tensor, " adapter"]
    rocs: Int[Tensor, " adapter"]
    scale: float


def row_plans(plan: Plan, source: Source) -> list[RowPlan]:
    """A plan of several rows, taken apart; what a row does not use is left out."""
    found = []
    for row in range(len(plan.scale)):
        used = ((plan.rocs[row] > 0) | (plan.weights[row] > 0)).nonzero()[:, 0]
        ids = tuple(plan.ids[column] for column in used.tolist())
        contents = tuple(source.entries[i].hash for i in ids)
        tensors = plan.ranks[used], plan.weights[row, used], plan.rocs[row, used]
        found.append(RowPlan(source, ids, contents, *tensors, float(plan.scale[row])))
    return found


def one_plan(rows: Sequence[RowPlan | None]) -> tuple[dict[str, Source], Plan]:
    """The plan of rows that step together, over all that any of them uses; None is a row of the base model.

    Returns:
        The adapters' hashes in the order of the plan's columns, with where they are; and the plan.
    """
    sources = {content: row.source for row in rows if row is not None for content in row.contents}
    column = {content: c for c, content in enumerate(sorted(sources))}
    count, ids = len(column), [0] * len(column)
    ranks, scale = torch.zeros(count, dtype=torch.long), torch.ones(len(rows))
    weights, rocs = torch.zeros(len(rows), count), torch.zeros(len(rows), count, dtype=torch.long)
    for place, row in enumerate(rows):
        if row is not None:
            index = [column[content] for content in row.contents]
            ranks[index], weights[place, index], rocs[place, index] = row.ranks, row.weights, row.rocs
            scale[place] = row.scale
            for own, at in zip(index, row.ids, strict=True):
                ids[own] = at
    whole = bool(((rocs == 0) | (rocs == ranks)).all())
    return {c: sources[c] for c in sorted(sources)}, Plan(tuple(ids), ranks, weights, rocs, scale, whole)


class Bank:
    """The adapters in use, and what makes a model serve requests with them.

    Args:
        model: the model.
        gate: the composer.
        placements: where its modules compute (`base.modules.placements`).
        memory: keeps factors and stacks.
        form, packed: how deltas are worked out.
    """

    def __init__(
        self,
        model: Any,
        gate: Gate | None,
        placements: Mapping[str, tuple[torch.device, torch.dtype]],
        memory: Memory,
        form: str,
        packed: bool,
    ) -> None:
        self.model, self.gate, self.placements = model, gate, placements
        self.memory, self.form, self.packed = memory, form, packed
        self._bound: OrderedDict[tuple[RowPlan | None, ...], Serving] = OrderedDict()
        self._open, self._opened = ExitStack(), ()

    @contextmanager
    def __call__(self, requests: Sequence[Request]) -> Iterator[None]:
        """The model under the plans of some requests, row by row; it stays so until others come, or `close`."""
        rows: Any = tuple(request.plan for request in requests)
        if not any(row is not None and row.contents for row in rows):
            rows = ()
        if rows != self._opened:
            self.close()
            if rows:
                self._open.enter_context(self._serving(rows)(range(len(rows))))
            self._opened = rows
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """The model as it is by itself."""
        self._open.close()
        self._opened = ()

    def drop(self) -> None:
        """Keep nothing bound, either."""
        self.close()
        self._bound.clear()

    def _serving(self, rows: tuple[RowPlan | None, ...]) -> Serving:
        if rows not in self._bound:
            self._bound[rows] = self._bind(rows)
            while len(self._bound) > BOUND:
                self._bound.popitem(last=False)
        self._bound.move_to_end(rows)
        return self._bound[rows]

    def stacked(self, adapters: Mapping[str, Source]) -> dict[str, Site]:
        """Adapters stacked site by site, kept for the next batch that uses the same."""
        return self.memory.get(
            f"stack {' '.join(adapters)}",
            lambda: stack_sites([self._factors(*each) for each in adapters.items()], self.placements),
        )

    def sites_of(self, plan: Plan, source: Source) -> dict[str, Site]:
        """The adapters of a plan of one source, stacked site by site."""
        return self.stacked({source.entries[i].hash: source for i in plan.ids})

    def bind(self, sites: Mapping[str, Site], plan: Plan) -> Serving:
        """What makes the model serve some of a plan's rows."""
        assert self.gate is not None
        return FORMS[self.form](self.model, sites, plan, self.gate, self.packed)

    def _bind(self, rows: Sequence[RowPlan | None]) -> Serving:
        adapters, plan = one_plan(rows)
        return self.bind(self.stacked(adapters), plan)

    def _factors(self, content: str, source: Source) -> Factors:
        return self.memory.get(content, lambda: source.factors(content))

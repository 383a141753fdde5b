"""What one row uses of adapters, and the plan of any rows that step together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hilora.pool.view import Source
from hilora.types import Plan


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


def one_plan(rows: Sequence[RowPlan | None], slots: Mapping[str, int], ids: Sequence[int]) -> Plan:
    """The plan of rows that step together; None is a row of the base model.

    Args:
        rows: what each uses.
        slots: where its adapters are.
        ids: of each slot, the adapter's position in its pool.
    """
    count, used = len(ids), [(place, row) for place, row in enumerate(rows) if row is not None and row.contents]
    ranks, scale = torch.ones(count, dtype=torch.long), torch.ones(len(rows))
    weights, rocs = torch.zeros(len(rows), count), torch.zeros(len(rows), count, dtype=torch.long)
    if used:
        places = torch.tensor([place for place, row in used for _ in row.contents])
        columns = torch.tensor([slots[content] for _, row in used for content in row.contents])
        ranks[columns] = torch.cat([row.ranks for _, row in used])
        weights[places, columns] = torch.cat([row.weights for _, row in used])
        rocs[places, columns] = torch.cat([row.rocs for _, row in used])
        scale[[place for place, _ in used]] = torch.tensor([row.scale for _, row in used])
    return Plan(tuple(ids), ranks, weights, rocs, scale, bool(((rocs == 0) | (rocs == ranks)).all()))

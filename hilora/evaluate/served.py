"""What a row is served with, as a digest: rows that are served alike have one answer, which is measured once.

Under several halves of the pool, several settings and several values of an option, many prompts meet the same
adapters with the same budget again. Nothing else decides an answer but rounding, which depends on who shares the
batch: in bf16 some answers, long ones mostly, change somewhere. So it is generated once and counts for all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from hilora.evaluate.rows import Row
from hilora.planner import Planner, Routed

CHUNK = 256
"""Rows that are planned at once."""
DIGITS = 4
"""Decimals of weights that count. What half precision multiplies with is coarser; fp32 would tell more apart."""


def served_digests(
    planner: Planner, routed: Routed, rows: Sequence[Row], limits: Mapping[str, int], seed: int, world: str
) -> list[str]:
    """A digest of all that decides each row's answer and its scores.

    Args:
        planner, routed: the method, and its routes of the rows.
        rows: the rows.
        limits: task -> the most tokens of an answer.
        seed: of the allocation.
        world: what else the answers depend on, as a text: model, adapters, trained parts.
    """
    method = planner.method
    # a trained composer is what `world` says of its part, and its number of adapters for a token
    composer = repr((method.part, method.sparse) if method.part else method.gate)
    out = []
    for start in range(0, len(rows), CHUNK):
        places = range(start, min(start + CHUNK, len(rows)))
        for place, plan in zip(places, _plans(planner, routed, places, seed), strict=True):
            row = rows[place]
            silent = place in routed.silent
            parts = (world, composer, plan, silent, limits[row.task], row.inputs, row.targets, row.metrics)
            out.append(hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest())
    return out


def _plans(planner: Planner, routed: Routed, places: Sequence[int], seed: int) -> list[Any]:
    """What each row's plan says: (scale, adapters with their ROCs and, where they count, weights)."""
    if routed.route is None:
        return [()] * len(places)
    plan = planner.plan(routed, places, seed)
    contents = [routed.source.entries[adapter].hash for adapter in plan.ids]
    is_weighted = getattr(planner.method.gate, "weighted", True)
    columns = zip(plan.rocs.tolist(), plan.weights.tolist(), plan.scale.tolist(), strict=True)
    found = []
    for rocs, weights, scale in columns:
        used = [
            (content, count, round(weight, DIGITS) if is_weighted else None)
            for content, count, weight in zip(contents, rocs, weights, strict=True)
            if count
        ]
        found.append((round(scale, DIGITS), sorted(used)))
    return found

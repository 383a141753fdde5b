"""The budget shared without a draw: what HiLoRA's multinomial gives on average, rounded.

`allocation="expected"`; also what the ridge is chosen by, since it must not depend on a seed.
"""

from __future__ import annotations

import numpy as np

from hilora.route.allocate import Floats, Ints


def share_expected(weights: Floats, capacity: Ints, total: int, stream: object = None) -> Ints:
    """The deterministic share: t * weight capped at capacity, t such that all is shared, then rounded.

    Rounding is by largest remainder; equal remainders go to the earlier candidate.
    """
    full = np.zeros(len(weights), dtype=bool)
    while True:
        rest = np.where(full, 0.0, weights)
        if rest.sum() <= 0:
            rest = (~full).astype(float)
        room = total - capacity[full].sum()
        ideal = np.where(full, capacity, room * rest / max(rest.sum(), 1e-300))
        over = ~full & (ideal > capacity)
        if not over.any():
            break
        full |= over
    share = np.floor(ideal + 1e-9).astype(np.int64)
    order = np.argsort(-(ideal - share), kind="stable")
    order = order[(share < capacity)[order]]
    share[order[: total - int(share.sum())]] += 1
    return share

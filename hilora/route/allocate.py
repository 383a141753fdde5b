"""From a route to a budget: how many ROCs of each adapter a row may activate.

HiLoRA section 3.2: O(x) = gamma * (sum of the candidates' ranks), shared by a multinomial draw over the
routing weights, no adapter above its rank. The paper leaves open what happens above the rank: the excess is
drawn again among the adapters with room. Each row draws from its own stream, keyed by seed and prompt, so
that neither the batch nor a row's place in it changes anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from hilora.types import Plan, Route

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Share = Callable[[Floats, Ints, int, np.random.Generator], Ints]
"""(weights, ranks, total, the row's random stream) -> how many of `total` ROCs each candidate gets."""


def row_stream(seed: int, text: str, purpose: str) -> np.random.Generator:
    """A random stream that depends on the seed, the prompt and what it is used for, nothing else."""
    digest = hashlib.blake2b(f"{seed}\0{purpose}\0{text}".encode(errors="surrogatepass"), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def draw_capped(weights: Floats, capacity: Ints, total: int, stream: np.random.Generator) -> Ints:
    """Multinomial(total, weights), what exceeds an adapter's capacity drawn again among those with room.

    Weights (candidate,) sum to 1; a zero is never drawn while others have room. `total` is at most sum(capacity).
    """
    share = np.zeros_like(capacity)
    while (left := total - int(share.sum())) > 0:
        open_weights = np.where(share < capacity, weights, 0.0)
        if open_weights.sum() <= 0:  # only adapters of vanishing weight have room
            open_weights = (share < capacity).astype(float)
        share += stream.multinomial(left, open_weights / open_weights.sum())
        share = np.minimum(share, capacity)
    return share


def budget(capacity: Ints, gamma: float) -> int:
    """O(x): gamma times the candidates' ROCs, to the nearest integer, at least 1."""
    whole = int(capacity.sum())
    return min(whole, max(1, int(np.floor(gamma * whole + 0.5))))


def make_plan(
    route: Route,
    ranks: Sequence[int],
    *,
    gamma: float,
    share: Share = draw_capped,
    normalise: bool = True,
    active: int | None = None,
    streams: Sequence[np.random.Generator] | None = None,
) -> Plan:
    """Share each row's budget among its candidates.

    Args:
        route: candidates and weights.
        ranks: of all adapters that the route counts along.
        gamma: share of the candidates' ROCs that a row activates, in (0, 1].
        share: the paper's multinomial, or another way to share the budget.
        normalise: scale by sqrt(mean rank of the candidates / O), the paper's variance normalisation.
        active: the O of that factor, where the token level activates another number than the budget.
        streams: one per row; needed unless the budget is all ROCs.
    """
    ids, weights = route.ids.numpy(), route.weights.double().numpy()
    all_ranks = np.asarray(ranks, dtype=np.int64)
    used = sorted({int(i) for i in ids[weights > 0]})
    column = {adapter: c for c, adapter in enumerate(used)}
    rocs, plan_weights = torch.zeros(len(ids), len(used), dtype=torch.long), torch.zeros(len(ids), len(used))
    scale = torch.ones(len(ids))
    for row in range(len(ids)):
        chosen = weights[row] > 0
        if not chosen.any():
            continue  # the base model serves this row
        columns = [column[int(i)] for i in ids[row][chosen]]
        capacity, pi = all_ranks[ids[row][chosen]], weights[row][chosen] / weights[row][chosen].sum()
        total = budget(capacity, gamma)
        if total < capacity.sum():
            assert streams is not None
            rocs[row, columns] = torch.from_numpy(share(pi, capacity, total, streams[row]))
        else:
            rocs[row, columns] = torch.from_numpy(capacity)
        plan_weights[row, columns] = torch.from_numpy(pi).float()
        if normalise:
            scale[row] = float(np.sqrt(capacity.mean() / min(active or total, total)))
    used_ranks = torch.from_numpy(all_ranks[used])
    whole = bool(((rocs == 0) | (rocs == used_ranks)).all())
    return Plan(tuple(used), used_ranks, plan_weights, rocs, scale, whole)

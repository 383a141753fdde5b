"""Does any adapter here know such prompts? A score that falls when none does.

The log posterior's softmax says which adapter fits best, not whether one fits: prompts of an unseen task have a best
adapter too. What changes is its lead over the rest. The lead of a row is the score of the best adapter that it may
use minus the mean score of all,

    lead(x) = max_i s_i(x) - mean_i s_i(x),        s_i(x) = sum_v w_v log p_v(x | i),

so that whatever makes a prompt unlikely under every adapter (its length, rare words) cancels. Samples that the
statistics have not seen have leads, too; a prompt is called unseen where its lead is below all but a few of theirs.

Scores by themselves do not tell: a text of one word is near the middle of all embeddings, and so near every adapter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

UNSEEN_SHARE = 0.02
"""Share of held-out samples, of seen tasks all, that the threshold calls unseen: one at the least."""
FEWEST = 20
"""Held-out samples without which there is no threshold."""


def leads(
    scores: Float[Tensor, "batch adapter"], allowed: Bool[Tensor, "batch adapter"] | None = None
) -> Float[Tensor, " batch"]:
    """How far the best adapter that a row may use is above the mean of all; 0 where it may use none.

    The mean is of all adapters, allowed or not, as it is for the samples that the threshold comes from: otherwise a
    row that may use one adapter alone would have no lead.
    """
    mask = torch.ones_like(scores, dtype=torch.bool) if allowed is None else allowed
    best = scores.masked_fill(~mask, -torch.inf).max(1).values
    return (best - scores.mean(1)).nan_to_num(nan=0.0, neginf=0.0)


def seen_above(held_out: Sequence[float]) -> float | None:
    """The lead above which a prompt is called seen: at most `UNSEEN_SHARE` of these leads are not, or one of them.

    None where there are fewer than `FEWEST`.
    """
    if len(held_out) < FEWEST:
        return None
    below = max(1, int(UNSEEN_SHARE * len(held_out)))  # so many are called unseen
    return float(torch.tensor(held_out).quantile((below - UNSEEN_SHARE) / (len(held_out) - 1)))

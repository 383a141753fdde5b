"""Candidate sets that hold the right adapter with a stated probability (split conformal prediction).

An adapter's surprise at a prompt is -log of its posterior. Let q be the ceil((n + 1)(1 - alpha))-th smallest
surprise of the right adapter on n prompts that the statistics have not seen. The set of all adapters whose surprise
is at most q then holds the right adapter of a new prompt with probability at least 1 - alpha, whatever the
distributions and however wrong the posterior, as long as the new prompt is exchangeable with those n: averaged over
prompts, not for each task, and not for prompts of unseen tasks, whose right adapter does not exist. Of all sets with
that coverage on average, those cut at a probability are the smallest where the posterior is right (Sadinle, Lei and
Wasserman 2019).

A pool has no prompts to spare, so its samples are cross-fitted: each is scored by statistics that have not seen it,
but that have seen fewer samples than the pool's own. The guarantee is then about 1 - 2 alpha in theory (Barber et
al. 2021), and close to 1 - alpha in practice. It is to be renewed when the pool changes; `hilora pool` does so as a
pool grows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hilora.errors import InputError


def surprises(
    logits: Float[Tensor, "batch adapter"], allowed: Bool[Tensor, "batch adapter"] | None = None
) -> Float[Tensor, "batch adapter"]:
    """-log posterior of each adapter among the allowed ones; infinite for the others."""
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    return torch.logsumexp(logits, dim=1, keepdim=True) - logits


def own_surprises(logits: Float[Tensor, "batch adapter"], owner: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """The surprise of each row's right adapter."""
    return surprises(logits).gather(1, owner[:, None])[:, 0]


def threshold(calibration: Sequence[float], alpha: float) -> float:
    """The largest surprise that a set with coverage 1 - alpha lets in.

    Args:
        calibration: surprises of the right adapters of prompts that the statistics have not seen.
        alpha: share of prompts that may miss their adapter, in (0, 1).

    Returns:
        infinity where there are too few prompts to promise that much: fewer than (1 - alpha) / alpha.

    Raises:
        InputError: alpha is no share.
    """
    if not 0 < alpha < 1:
        raise InputError(
            f"alpha is the share of prompts that may miss their adapter: got {alpha}, expected 0.05, say."
        )
    place = math.ceil((len(calibration) + 1) * (1 - alpha) - 1e-9)
    return sorted(calibration)[place - 1] if place <= len(calibration) else math.inf


def conformal_sizes(
    logits: Float[Tensor, "batch adapter"], allowed: Bool[Tensor, "batch adapter"], limit: float
) -> Float[Tensor, " batch"]:
    """How many allowed adapters each row's set holds: at least the best one, if any is allowed."""
    inside = surprises(logits, allowed) <= limit
    return torch.maximum((inside & allowed).sum(1), allowed.any(1).long()).float()

"""The search for the adapters that are nearest to a prompt by meaning (`witnesses.Meaning`), in a pool that grows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hilora.route.exact import Exact
from hilora.route.parts import Parts
from hilora.route.rows import taken


class NearMeaning:
    """Looks at every adapter's meaning; the best are always found.

    Scores are log-likelihoods up to a term that is the same for all, in fp64; each depends on text and adapter alone.

    Args:
        parts: meaning's; the mean adapter first.
    """

    def __init__(self, parts: Parts[Any]) -> None:
        models = [parts.main] if parts.late is None else [parts.main, parts.late]
        means, noise = [each.model_.mean_ for each in models], [each.noise_ for each in models]
        rows = parts.place[1:]
        if len(models) == 1 and len(parts) == len(noise[0]) and bool((rows.diff() == 1).all()):
            own, offset = means[0][1:], noise[0][1:]  # in the pool's order as they are
        else:
            own, offset = taken(means, rows), taken(noise, rows)
        self._all = Exact(own, offset)
        self._mean = means[0][0].double().numpy()
        self._mean_offset = float(noise[0][0]) - float(self._mean @ self._mean) / 2
        self._whitening = parts.main.model_.whitening_.double().numpy()

    def top(
        self, embeddings: Float[Tensor, "text dim"], count: int, allowed: Bool[Tensor, "text adapter"]
    ) -> tuple[Float[Tensor, "text found"], Int[Tensor, "text found"], Float[Tensor, " text"]]:
        """Scores and positions of the best allowed adapters, by position; the mean adapter's score."""
        white = embeddings.cpu().numpy().astype(np.float64) @ self._whitening
        scores, ids = self._all.top(torch.from_numpy(white), count, allowed)
        ids, order = ids.sort(1)
        return scores.gather(1, order), ids, torch.from_numpy((white * self._mean).sum(1) + self._mean_offset)

"""The search that looks at every adapter: an fp32 matrix product, then fp64 for those that could be the best."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hilora.route.scored import SLACK, Floats, Found, Ints, Scored, empty, everyone

ROUGH_AT_ONCE = 2**25
"""Rough numbers that are held at once."""


class Exact:
    """Looks at every adapter.

    Args:
        means: whitened means, fp32.
        offset: what else counts for each adapter.
    """

    def __init__(self, means: Float[Tensor, "adapter dim"], offset: Float[Tensor, " adapter"] | None = None) -> None:
        self.scored = Scored(means, offset)
        self.rough_constant = self.scored.constant.astype(np.float32)
        # |fp32 dot - dot| <= gamma |w| |m|, gamma = dim u / (1 - dim u); constants and sums round once more each
        eps = float(np.finfo(np.float32).eps)
        self.rounding = 2 * means.shape[1] * eps * self.scored.longest
        self.constant_rounding = 4 * eps * float(np.abs(self.scored.constant).max(initial=0.0))

    def top(self, white: Float[Tensor, "batch dim"], k: int, allowed: Bool[Tensor, "batch adapter"]) -> Found:
        """The k best allowed adapters of each row (all, if there are fewer)."""
        k = min(k, len(self.scored))
        scores, ids = empty(len(white), k)
        rows = max(1, ROUGH_AT_ONCE // max(1, len(self.scored)))
        for start in range(0, len(white), rows):
            part = slice(start, start + rows)
            self._top(white[part].double().numpy(), allowed[part], scores[part], ids[part])
        return torch.from_numpy(scores), torch.from_numpy(ids)

    def _top(self, white: Floats, allowed: Tensor, scores: Floats, ids: Ints) -> None:
        """Put the best of each row into `scores` and `ids`."""
        k, count = scores.shape[1], min(scores.shape[1] + SLACK, len(self.scored))
        asked, means = white.astype(np.float32), self.scored.means
        if len(asked) == 1:  # half the time
            roughs = torch.mv(self.scored.table, torch.from_numpy(asked[0])).numpy()[None]
        else:
            roughs = asked @ means.T
        roughs += self.rough_constant
        if not everyone(allowed):
            roughs[~allowed.numpy()] = -np.inf
        for row, (own, rough) in enumerate(zip(white, roughs, strict=True)):
            some = np.argpartition(rough, -count)[-count:] if count < len(rough) else np.arange(count)
            values = rough[some]
            if 0 < k < count < len(rough):
                doubt = 2 * (np.sqrt(own @ own) * self.rounding + self.constant_rounding)
                last = np.partition(values, -k)[-k]
                if np.isfinite(last) and last - values.min() <= doubt:  # more are alike
                    some = np.flatnonzero(rough >= last - doubt)
                    values = rough[some]
            self.scored.best(own, some[values > -np.inf], scores[row], ids[row])

"""Cross-fitting: how well samples are found that the statistics have not seen, from the samples alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from hilora.route.features import Features, join
from hilora.route.gaussian import MIN_SAMPLES

FOLDS = 5


def folds(
    samples: Sequence[Features], spare: Sequence[bool] | None = None
) -> Iterator[tuple[list[Features], Features, Int[Tensor, " held"]]]:
    """Each fold as (what is kept of each adapter's samples, what is held out of all, whose that is).

    Adapters with too few samples to spare are never held out, nor are those that are not to be spared; a fold in
    which nothing is held out, is left out.

    Args:
        samples: by adapter.
        spare: whose samples may be held out; default: everyone's.
    """
    for fold in range(FOLDS):
        kept, held, owner = [], [], []
        for i, own in enumerate(samples):
            out = torch.arange(len(own)) % FOLDS == fold
            if len(own) - int(out.sum()) < MIN_SAMPLES or (spare is not None and not spare[i]):
                out[:] = False
            kept.append(own.take((~out).nonzero()[:, 0]))
            if out.any():
                held.append(own.take(out.nonzero()[:, 0]))
                owner += [i] * int(out.sum())
        if owner:
            yield kept, join(held), torch.tensor(owner)

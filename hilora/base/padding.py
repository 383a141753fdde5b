"""Rows of different lengths as one rectangle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pad_batch(encoded: Sequence[list[int]], fill: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask (batch, seq); decoders continue on the right and are padded on the left."""
    longest = max(map(len, encoded))
    ids = torch.full((len(encoded), longest), fill)
    mask = torch.zeros(len(encoded), longest, dtype=torch.long)
    for row, tokens in enumerate(encoded):
        where = slice(longest - len(tokens), None) if left else slice(len(tokens))
        ids[row, where] = torch.tensor(tokens)
        mask[row, where] = 1
    return ids, mask

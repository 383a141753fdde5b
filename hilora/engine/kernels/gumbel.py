"""Gumbel noise of new tokens: a function of each row's key and position, the same numbers wherever it is made.

On the CPU numpy makes it: Philox4x64-10, keyed by the row's 128 bits, counted from position << 128, and

    noise = -log(-log(U)),   U = 1 - (bits >> 11) / 2^53,

in fp64, rounded to fp32. On a GPU one launch makes that of all rows (`philox`), with the same bits and U and in fp64,
but for the last place of the logarithms, which each library rounds in its own way: after rounding to fp32, the last
place of one number in some hundred millions. For U = 1, one draw in 2^53, numpy draws again and so shifts the rest of
the row; the kernel takes the largest U below 1 instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hilora.base.devices import send
from hilora.engine.kernels.tried import works


def gumbel(key: int, position: int, size: int) -> Float[Tensor, " _"]:
    """Noise of one new token, a function of its key and position (Philox, counted by position): fp32."""
    stream = np.random.Generator(np.random.Philox(key=key, counter=position << 128))
    return torch.from_numpy(stream.gumbel(size=size)).float()


def gumbel_rows(
    keys: Sequence[int], positions: Sequence[int], size: int, device: torch.device
) -> Float[Tensor, "row size"]:
    """Noise of a new token of each row, on a device.

    Args:
        keys: of the rows, 128 bits each.
        positions: of the token among each row's new ones.
        size: of the vocabulary.
        device: on CUDA one launch makes all, if triton works there.
    """
    if device.type == "cuda" and keys and size and (fill := _kernel(device)) is not None:
        out = torch.empty(len(keys), size, device=device)
        fill(out, send(words(keys, positions), device))
        return out
    pairs = zip(keys, positions, strict=True)
    noise = [gumbel(key, position, size) for key, position in pairs]
    return torch.stack(noise).to(device) if noise else torch.empty(0, size, device=device)


def words(keys: Sequence[int], positions: Sequence[int]) -> Tensor:
    """(row, 3): the key's lower and upper 64 bits and the position, as int64 of the same bits."""
    rows = [(key & 0xFFFFFFFFFFFFFFFF, key >> 64, position) for key, position in zip(keys, positions, strict=True)]
    return torch.from_numpy(np.array(rows, dtype=np.uint64).view(np.int64))


@cache
def _kernel(device: torch.device) -> Any:
    """What fills a tensor with noise on a CUDA device; None where triton is missing or does not work."""

    def launch() -> None:
        from hilora.engine.kernels.philox import fill

        fill(torch.empty(1, 1, device=device), words([0], [0]).to(device))

    if not works(launch, device, "Noise is made on the CPU"):
        return None
    from hilora.engine.kernels.philox import fill

    return fill

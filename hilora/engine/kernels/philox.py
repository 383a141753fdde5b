"""The noise of `gumbel` as a Triton kernel."""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256
"""Counters of a program, four numbers each."""


@triton.jit
@no_type_check
def noise(out, drawn, size, block: tl.constexpr):
    """Fill a row of `out` (row, size): program (row, part); `drawn` (row, 3) holds keys and positions."""
    row = tl.program_id(0)
    counter = tl.program_id(1) * block + tl.arange(0, block)
    nothing = tl.zeros([block], tl.uint64)
    low = tl.load(drawn + 3 * row).to(tl.uint64)
    high = tl.load(drawn + 3 * row + 1).to(tl.uint64)
    position = nothing + tl.load(drawn + 3 * row + 2).to(tl.uint64)
    # numpy counts before it draws: the first block of four is that of counter 1
    one, two, three, four = tl.philox_impl((counter + 1).to(tl.uint64), nothing, position, nothing, low, high, 10)
    at = out + row.to(tl.int64) * size + 4 * counter
    left = size - 4 * counter
    tl.store(at, _gumbel(one), mask=left > 0)
    tl.store(at + 1, _gumbel(two), mask=left > 1)
    tl.store(at + 2, _gumbel(three), mask=left > 2)
    tl.store(at + 3, _gumbel(four), mask=left > 3)


@triton.jit
@no_type_check
def _gumbel(bits):
    drawn = tl.maximum(bits >> 11, 1)
    uniform = 1.0 - drawn.to(tl.float64) * (1.0 / 9007199254740992.0)
    return (-tl.log(-tl.log(uniform))).to(tl.float32)


def fill(out: Tensor, drawn: Tensor) -> None:
    """Fill (row, size) fp32 with noise, by (row, 3) int64 keys and positions on the same device."""
    grid = (out.shape[0], triton.cdiv(out.shape[1], 4 * BLOCK))
    launch: Any = noise[grid]
    if out.device.type != "cuda":  # triton's interpreter
        launch(out, drawn, out.shape[1], block=BLOCK)
        return
    with torch.cuda.device(out.device):
        launch(out, drawn, out.shape[1], block=BLOCK)

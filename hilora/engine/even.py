"""What the engine knows of a batch that the equation does not: rows are of one length, one after another."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hilora.compose.delta import Tokens


class Even(Tokens):
    """Tokens of rows of one length, row by row: what a row has is repeated, not looked up.

    Args:
        each: tokens of a row.
        x: (token, in).
    """

    def __init__(self, each: int, x: Tensor) -> None:
        self.each, self.x = each, x

    def __call__(self, of_rows: Tensor) -> Tensor:
        """(..., batch) -> (..., token)."""
        return of_rows if self.each == 1 else of_rows.repeat_interleave(self.each, -1)


def add_delta(output: Float[Tensor, "token out"], z: Float[Tensor, "roc token"], up: Tensor) -> Tensor:
    """output + (gated z).T @ up.T, as one fused product and sum; in the output's dtype.

    Without gradients the sum is made in `output` itself, which the module has just computed for us.
    """
    if z.dtype != output.dtype:
        return output + (z.T @ up.T).to(output.dtype)
    if torch.is_grad_enabled():
        return torch.addmm(output, z.T, up.T)
    return output.addmm_(z.T, up.T)

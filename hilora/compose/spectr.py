"""SpectR (Fleshman and Van Durme 2025, arXiv 2504.03454), its score in the form of SEQR (2509.18093).

At each site, adapter i's score for a token is the length of what the adapter would add to the output. With B = Q R,
|B A x| = |R A x|, since Q keeps lengths (SEQR); canonical ROCs are the same, with R A turned into its singular basis:

    score_i = |B_i A_i x| = sqrt(sum_j (sigma_ij v_ij . x)^2)          "output"
    score_i = |V_i x|     = sqrt(sum_j (v_ij . x)^2)                   "basis": the score in SpectR's own code
    delta   = sum_i p_i B_i A_i x,     p_i = 1/k on the k largest scores, or their softmax

Nothing is computed for it but squares of projections that are there anyhow. SpectR's code has k = 4 and averages
parameters, in the singular basis (`fuse`); SEQR has k = 1. SEQR's standardised scores, calibrated beforehand, need
texts at every site, and are not here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hilora.compose.delta import Gated, Tokens
from hilora.compose.layout import Layout, fuse_by, top_weights, wide
from hilora.errors import InputError, UnknownNameError
from hilora.types import Plan, Rocs

SCORES = ("output", "basis")


def top_equal(scores: Float[Tensor, "here token"], k: int) -> Float[Tensor, "here token"]:
    """Equal weights on the k largest scores of each token, or on those that are finite if they are fewer."""
    top, ids = scores.topk(min(k, len(scores)), dim=0)
    chosen = (top > -torch.inf).to(scores.dtype)
    return torch.zeros_like(scores).scatter(0, ids, chosen / chosen.sum(0, keepdim=True).clamp_min(1))


WEIGHTS: dict[str, Callable[[Tensor, int], Tensor]] = {"equal": top_equal, "softmax": top_weights}
"""(scores (here, token), k) -> weights of the k best, 0 elsewhere."""


def check(k: int, score: str, weights: str, temperature: float) -> None:
    """Refuse what makes no sense.

    Raises:
        InputError: k below 1, a temperature that is not above 0, a score or weights that there are not.
    """
    if k < 1:
        raise InputError(f"k is the number of adapters that a token uses: got {k}, expected at least 1.")
    if not temperature > 0:
        raise InputError(f"temperature must be above 0; got {temperature}.")
    if score not in SCORES:
        raise UnknownNameError("score", score, SCORES)
    if weights not in WEIGHTS:
        raise UnknownNameError("weights", weights, WEIGHTS)


def scorer(rocs: Rocs, layout: Layout, score: str) -> Callable[[Tensor, Tokens], Float[Tensor, "here token"]]:
    """Bind the score to canonical ROCs: (z (roc, token), tokens) -> lengths, in at least fp32.

    Adapters that a token's row may not use are at -inf.
    """
    dtype = wide(rocs)
    size = rocs.size.to(dtype).square() if score == "output" else None  # squares of singular values

    def scores(z: Tensor, tokens: Tokens) -> Tensor:
        squares = z.to(dtype).square()
        lengths = layout.sums(squares if size is None else squares * size[:, None]).sqrt()
        return lengths.masked_fill(tokens(layout.barred), -torch.inf)

    return scores


@dataclass(frozen=True)
class Spectr:
    """Each token's k adapters by the length of their outputs; the ROCs must be canonical.

    Args:
        k: adapters that a token uses at each site.
        score: a name in `SCORES`.
        weights: a name in `WEIGHTS`.
        temperature: of the softmax.
        fuse: average A and B separately, which has cross terms, instead of outputs.
    """

    k: int = 4
    score: str = "output"
    weights: str = "equal"
    temperature: float = 1.0
    fuse: bool = False
    joinable: ClassVar[bool] = False  # each site routes by itself

    def __post_init__(self) -> None:
        check(self.k, self.score, self.weights, self.temperature)

    def __call__(self, rocs: Rocs, plan: Plan) -> Gated:
        """Bind to a site's ROCs: their lengths, and who may use them."""
        layout = Layout.of(rocs, plan)
        scores, weigh = scorer(rocs, layout, self.score), WEIGHTS[self.weights]
        fused = fuse_by(rocs) if self.fuse else None

        def gated(z: Tensor, tokens: Tokens) -> Tensor:
            weight = weigh(scores(z, tokens) / self.temperature, self.k)
            if fused is None:
                return layout.weigh(z, weight, tokens)
            return fused(z, weight.to(z.dtype)[layout.adapter]) * tokens(layout.scale)

        return gated

"""LAG, LoRA-augmented generation (Fleshman and Van Durme 2025, arXiv 2507.05346).

Two stages at each site, for each token: Arrow's prototypes retrieve, SpectR's length chooses among what they found.

    candidates = the n adapters with the largest |v_i1 . x|                        Eq. 6, n = 20
    chosen     = the k of these with the largest |V_i x|                           Eq. 7, k = 1
    delta      = B_i A_i x of the chosen one; of several, their average            Eq. 8

With n of at least the pool's size it is SpectR, with n = k = 1 Arrow's best adapter. Eq. 7 measures in the adapter's
singular basis (`score="basis"`); "output" measures |B_i A_i x|. The paper routes among adapters of tasks and of
documents apart; a pool here is one library. All projections of the batch's adapters are there when a gate is asked,
so that the first stage spares no time here: what it does to the choice is what is reproduced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hilora.compose.delta import Gated, Tokens
from hilora.compose.layout import Layout
from hilora.compose.spectr import WEIGHTS, check, scorer
from hilora.errors import InputError
from hilora.types import Plan, Rocs


@dataclass(frozen=True)
class Lag:
    """Each token's adapters by SpectR's score among those that Arrow's filter lets through; ROCs must be canonical.

    Args:
        candidates: adapters that the filter lets through.
        k: adapters that a token uses at each site, of those.
        score, weights, temperature: as for `spectr.Spectr`.
    """

    candidates: int = 20
    k: int = 1
    score: str = "basis"
    weights: str = "equal"
    temperature: float = 1.0
    joinable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self.k, self.score, self.weights, self.temperature)
        if self.candidates < self.k:
            raise InputError(
                f"candidates are the adapters among which k = {self.k} are chosen: got {self.candidates}, expected "
                f"at least {self.k}."
            )

    def __call__(self, rocs: Rocs, plan: Plan) -> Gated:
        """Bind to a site's ROCs: where each adapter's first one lies, their lengths, and who may use them."""
        layout = Layout.of(rocs, plan)
        scores, weigh = scorer(rocs, layout, self.score), WEIGHTS[self.weights]

        def gated(z: Tensor, tokens: Tokens) -> Tensor:
            found = scores(z, tokens)
            if self.candidates < len(found):
                arrow = z[layout.first].to(found.dtype).abs().masked_fill(found == -torch.inf, -torch.inf)
                near = arrow.topk(self.candidates, dim=0).indices
                kept = torch.full_like(found, -torch.inf)
                found = kept.scatter(0, near, found.gather(0, near))
            return layout.weigh(z, weigh(found / self.temperature, self.k), tokens)

        return gated

"""How a token-wise method weighs adapters, layer by layer: RAMoLE Fig. 3.

A prompt goes through the model once under its plan, with a composer that hands on what the method's own one does.
Where that multiplies an adapter's projections by one weight, the weight is what came out over what went in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hilora.analyse.activation import look
from hilora.analyse.rocs import by_layer
from hilora.base.prompts import Prompt, encode_prompts
from hilora.compose.delta import Gate, Gated, Tokens
from hilora.engine.generate import HiLoRA
from hilora.errors import InputError
from hilora.types import Plan, Rocs, Site


@dataclass
class WeightRecorder:
    """A composer that does what another one does, and keeps each adapter's mean weight over the tokens.

    Args:
        inner: the composer.
    """

    inner: Gate
    joinable: ClassVar[bool] = False  # each site is to be seen by itself
    means_: dict[str, Tensor] = field(default_factory=dict, init=False)  # site -> (column,)

    def __call__(self, rocs: Rocs, plan: Plan) -> Gated:
        """Bind the inner composer."""
        assert isinstance(rocs, Site)
        gated, name = self.inner(rocs, plan), rocs.name

        def watched(z: Tensor, tokens: Tokens) -> Tensor:
            given = z.detach().double().clone()  # composers may work in place
            out = gated(z, tokens)
            came = out.detach().double()
            size = torch.zeros(len(plan.ids), z.shape[1], dtype=torch.float64, device=z.device)
            norms = [size.index_add(0, rocs.owner, each.square()).sqrt() for each in (came, given)]
            self.means_[name] = (norms[0] / norms[1].clamp_min(1e-30)).mean(1).cpu()
            return out

        return watched


def weights_by_site(
    router: HiLoRA, prompts: Sequence[Prompt], *, seed: int = 0
) -> tuple[list[str], list[str], Float[Tensor, "site adapter"]]:
    """Mean weight of each adapter at each site, over the tokens of prompts; 0 where a prompt did not retrieve it.

    Args:
        router: its method weighs whole adapters (`ramole`, `mixture`, `arrow`, `phatgoose`, mixtures of experts).
        prompts: e.g. of one task.
        seed: of the allocation.

    Returns:
        sites layer by layer, names of the adapters that any prompt could use, weights.

    Raises:
        InputError: an encoder-decoder model, or a method without adapters.
    """
    planner, model = router.planner, router.model
    if model.config.is_encoder_decoder:
        raise InputError("Weights are recorded for decoder-only models; this base model has an encoder, too.")
    routed = planner.route(prompts)
    if routed.route is None or planner.method.gate is None:
        raise InputError(f"Method {planner.method.name!r} uses no adapter: there is nothing to weigh.")
    entries = routed.source.entries
    sums: dict[str, Tensor] = {}
    for row, ids in enumerate(encode_prompts(list(prompts), router.tokenizer)):
        plan = planner.plan(routed, [row], seed)
        if plan.ids:
            recorder = WeightRecorder(planner.method.gate)
            look(model, [routed.source.factors(entries[i].hash) for i in plan.ids], plan, recorder, ids)
            for site, mean in recorder.means_.items():
                total = sums.setdefault(site, torch.zeros(len(entries), dtype=torch.float64))
                total[list(plan.ids)] += mean
    if not sums:
        raise InputError("The base model answers all of these prompts alone: there is nothing to weigh.")
    found = by_layer(sums)
    weights = torch.stack([sums[site] for site in found]) / len(prompts)
    used = (weights > 0).any(0).nonzero()[:, 0].tolist()
    return found, [entries[i].name for i in used], weights[:, used].float()

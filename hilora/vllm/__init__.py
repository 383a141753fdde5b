"""HiLoRA inside stock vLLM: a plugin that has vLLM's LoRA layers add, for each request, what its composition says.

    HILORA_POOL=pools/flan-mini python app.py

    planner = Planner(Pool.open("pools/flan-mini"), get_method("hilora-plus"))
    llm = LLM(model, enable_lora=True, max_loras=8, max_lora_rank=16)
    llm.generate(prompts, [params(routed.composition, max_tokens=64) for routed in route(planner, prompts)])

Importing this needs no vLLM.
"""

from __future__ import annotations

from typing import Any

from hilora.gateway.parts import Part
from hilora.vllm.composed import Routed, route
from hilora.vllm.front import seal
from hilora.vllm.wire import Composition

__all__ = ["Composition", "Part", "Routed", "params", "route"]


def params(composition: Composition | None, **sampling: Any) -> Any:
    """vLLM's `SamplingParams` for a request that uses a composition; None for the base alone.

    Args:
        composition: such as `route` gives.
        sampling: what else `SamplingParams` takes.
    """
    from vllm import SamplingParams

    extra = dict(sampling.pop("extra_args", None) or {}) | (seal(composition) or {})
    return SamplingParams(**sampling, extra_args=extra or None)
